"""The Karras grid: exact ends, order, and the points that published models were sampled at."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.noise.karras import karras_grid, karras_sigma


@pytest.mark.parametrize(
    ("n", "index_from_the_top", "sigma"),
    [
        # Second time points of published two-step samplers.
        (18, 11, 0.585348),
        (40, 22, 1.382368),
        (201, 106, 1.912844),
        (40, 17, 4.365562),
        (40, 18, 3.519699),
        (151, 67, 3.991219),
        (151, 62, 5.248503),
        # Editing: two points of a stroke edit, one of denoising.
        (40, 16, 5.380004),
        (40, 20, 2.240440),
        (18, 12, 0.296442),
    ],
)
def test_published_time_points(n: int, index_from_the_top: int, sigma: float) -> None:
    assert float(karras_grid(n)[n - 1 - index_from_the_top]) == pytest.approx(sigma, abs=5.1e-7)


def test_improved_two_step_points_lie_on_the_last_grid() -> None:
    grid = karras_grid(1281)
    assert float(grid[1280 - 788]) == pytest.approx(0.82087, abs=5e-6)
    assert float(grid[1280 - 709]) == pytest.approx(1.52577, abs=5e-6)


def test_n_counts_points() -> None:
    assert karras_grid(2).tolist() == [0.002, 80.0]
    assert karras_grid(19).shape == (19,)
    assert karras_grid(19).dtype == torch.float64


@given(
    n=st.integers(2, 3000),
    sigma_min=st.floats(1e-5, 10.0),
    ratio=st.floats(1.1, 1e6),
    rho=st.floats(0.7, 50.0),
)
def test_grid_is_ascending_with_exact_ends(n: int, sigma_min: float, ratio: float, rho: float) -> None:
    sigma_max = sigma_min * ratio
    grid = karras_grid(n, sigma_min, sigma_max, rho)
    assert grid.shape == (n,)
    assert float(grid[0]) == sigma_min
    assert float(grid[-1]) == sigma_max
    assert bool((grid[1:] > grid[:-1]).all())
    # The defining property: the points are evenly spaced in sigma^(1/rho).
    even = grid ** (1 / rho)
    expected = torch.linspace(float(even[0]), float(even[-1]), n, dtype=torch.float64)
    torch.testing.assert_close(even, expected, rtol=1e-10, atol=0)


def test_continuous_form_passes_through_every_grid_point() -> None:
    u = torch.arange(18, dtype=torch.float64) / 17
    assert torch.equal(karras_sigma(u), karras_grid(18))
    assert float(karras_sigma(0.0)) == 0.002
    assert float(karras_sigma(1.0)) == 80.0
    assert karras_sigma(torch.rand(2, 3, generator=torch.Generator().manual_seed(0))).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 1}, "at least 2 points"),
        ({"n": 0}, "at least 2 points"),
        ({"n": 5, "sigma_min": 0.0}, "sigma_min"),
        ({"n": 5, "sigma_min": -1.0}, "sigma_min"),
        ({"n": 5, "sigma_min": math.nan}, "sigma_min"),
        ({"n": 5, "sigma_max": 0.002}, "sigma_max"),
        ({"n": 5, "sigma_max": 0.001}, "sigma_max"),
        ({"n": 5, "sigma_max": math.inf}, "sigma_max"),
        ({"n": 5, "rho": 0.0}, "rho"),
        ({"n": 5, "rho": -7.0}, "rho"),
        ({"n": 5, "rho": math.nan}, "rho"),
        ({"n": 5, "rho": 1e-4}, "rho"),
        ({"n": 5, "rho": 1e-4, "sigma_max": 0.5}, "rho"),
        ({"n": 9, "sigma_min": 1.0, "sigma_max": 1.0 + 1e-15}, "told apart"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        karras_grid(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("u", [-0.01, 1.01, math.nan])
def test_positions_off_the_grid_are_refused(u: float) -> None:
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        karras_sigma(u)


@given(sigma_min=st.floats(1e-5, 10.0), ratio=st.floats(1.1, 1e6), rho=st.floats(0.7, 50.0))
def test_positions_next_to_the_ends_stay_within_the_range(sigma_min: float, ratio: float, rho: float) -> None:
    """Rounding in the powers must not carry a level past the ends, where a model has never been."""
    sigma_max = sigma_min * ratio
    sigma = karras_sigma(torch.tensor([5e-324, 1e-17, 1 - 2.0**-53], dtype=torch.float64), sigma_min, sigma_max, rho)
    assert bool(((sigma >= sigma_min) & (sigma <= sigma_max)).all())
