"""Weights by noise level."""

from __future__ import annotations

import pytest
import torch

from atonce.noise.karras import karras_grid
from atonce.objectives.weights import edm, inverse_delta


@pytest.mark.parametrize(("sigma", "weight"), [(0.002, 250004.0), (0.5, 8.0), (1.0, 5.0), (80.0, 4.00015625)])
def test_edm(sigma: float, weight: float) -> None:
    level = torch.tensor([sigma], dtype=torch.float64)
    torch.testing.assert_close(edm(level, 0.5), torch.tensor([weight], dtype=torch.float64), rtol=1e-12, atol=0)


def test_inverse_delta_is_that_of_the_interval() -> None:
    grid = karras_grid(11)
    text = "67.93130651 14.62705769 4.28823664 1.54527588 .64524369 .30086692 .15284377 .08314787 .04783455 .02882985"
    expected = torch.tensor([float(word) for word in text.split()], dtype=torch.float64)
    torch.testing.assert_close(inverse_delta(grid[1:], grid[:-1]), expected, rtol=0, atol=5.1e-9)


def test_inverse_delta_in_float32_on_the_finest_grid() -> None:
    """The engine forms the difference in float32; at N = 1281 that still leaves four digits."""
    grid = karras_grid(1281)
    rough = inverse_delta(grid[1:].float(), grid[:-1].float()).double()
    assert float((rough * (grid[1:] - grid[:-1]) - 1).abs().max()) < 1e-4
