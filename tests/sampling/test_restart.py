"""Restart sampling: Algorithm 1 of consistency models, line by line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.sampling.restart import restart

NOISE = torch.randn(4, 5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("end", [0.0, 0.002, 0.1])
def test_line_by_line(end: float) -> None:
    def f(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x / (1 + sigma))

    x = restart(f, lambda i: NOISE[i], [80.0, 3.0, 0.821], end, clip=None)
    first = f(80.0 * NOISE[0], 80.0)
    second = f(first + (9.0 - end**2) ** 0.5 * NOISE[1], 3.0)
    torch.testing.assert_close(x, f(second + (0.821**2 - end**2) ** 0.5 * NOISE[2], 0.821), rtol=1e-14, atol=1e-14)


def test_the_noise_that_is_added_is_shorter_by_the_end() -> None:
    """With an f that forgets its input, the state at the second call shows the renoising alone."""
    states: list[Tensor] = []

    def f(x: Tensor, sigma: float) -> Tensor:
        states.append(x)
        return torch.zeros_like(x)

    restart(f, lambda i: torch.ones(1, 1, 1, 1, dtype=torch.float64), [1.0, 0.5], 0.3)
    assert float(states[0]) == 1.0
    assert abs(float(states[1]) - 0.4) < 1e-15  # sqrt(.25 - .09); without the end .5


def test_every_estimate_is_clamped() -> None:
    inputs: list[Tensor] = []

    def f(x: Tensor, sigma: float) -> Tensor:
        inputs.append(x)
        return torch.full_like(x, 7.0)

    x = restart(f, lambda i: torch.zeros(1, 1, 1, 1), [80.0, 1.0], 0.002, clip=(-1.0, 1.0))
    assert float(x) == 1.0
    assert float(inputs[1]) == 1.0
    assert float(restart(f, lambda i: torch.zeros(1, 1, 1, 1), [80.0, 1.0], 0.002, clip=None)) == 7.0


def test_callback_and_calls() -> None:
    seen: list[dict[str, Any]] = []
    drawn: list[int] = []

    def noise(i: int) -> Tensor:
        drawn.append(i)
        return NOISE[i]

    x = restart(lambda x, s: x / 100, noise, [80.0, 2.0, 1.0], 0.002, clip=None, callback=seen.append)
    assert drawn == [0, 1, 2]
    assert [(info["step"], info["sigma"], info["calls"]) for info in seen] == [(0, 80.0, 1), (1, 2.0, 2), (2, 1.0, 3)]
    assert torch.equal(seen[-1]["x0"], x)
