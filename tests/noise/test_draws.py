"""Distributions over intervals and levels, and drawing from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from atonce.core.errors import InputError
from atonce.core.streams import Stream, uniform
from atonce.noise.draws import (
    draw_intervals,
    inverse_delta_weight,
    lognormal_interval_pmf,
    lognormal_sigma,
    uniform_interval_pmf,
)
from atonce.noise.karras import karras_grid


def _uniforms(count: int) -> torch.Tensor:
    return uniform(7, torch.arange(count), 1, Stream.SIGMA)[:, 0]


def test_the_mean_of_the_log_is_negative() -> None:
    """With P_mean = +1.1 the mass would sit at e^1.1 = 3.0 instead of e^-1.1 = 0.33."""
    grid = karras_grid(1281)
    right, wrong = lognormal_interval_pmf(grid), lognormal_interval_pmf(grid, P_mean=1.1)
    log_sigma = torch.log(grid[:-1])
    assert float((right * log_sigma).sum()) == pytest.approx(-1.093057, abs=5e-7)
    assert float((wrong * log_sigma).sum()) > 0.5
    assert int(right.argmax()) == 329
    assert int(wrong.argmax()) != 329


@given(
    n=st.integers(2, 1500),
    sigma_min=st.floats(1e-6, 1e3),
    ratio=st.floats(1.001, 1e8),
    P_mean=st.floats(-300.0, 300.0),
    P_std=st.floats(1e-3, 1e3),
)
def test_pmf_is_a_distribution_however_extreme(n: int, sigma_min: float, ratio: float, P_mean: float, P_std: float) -> None:
    pmf = lognormal_interval_pmf(karras_grid(n, sigma_min, sigma_min * ratio), P_mean, P_std)
    assert pmf.shape == (n - 1,)
    assert bool((pmf >= 0).all())
    assert float(pmf.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("P_mean", [-60.0, -15.0, -1.1, 3.0, 40.0])
@pytest.mark.parametrize("P_std", [0.3, 2.0])
def test_pmf_keeps_its_digits_in_the_tails(P_mean: float, P_std: float) -> None:
    """Against a second way through the logarithms of the normal's distribution function; erf alone gives 0/0 here."""
    grid = karras_grid(11)
    pmf = lognormal_interval_pmf(grid, P_mean, P_std)
    z = (grid.log().numpy() - P_mean) / P_std
    low, high = z[:-1], z[1:]
    # Each interval is moved to the lower tail, where the logarithms keep their digits.
    upper = low + high > 0
    a, b = np.where(upper, -high, low), np.where(upper, -low, high)
    mass = special.log_ndtr(b) + np.log1p(-np.exp(special.log_ndtr(a) - special.log_ndtr(b)))
    expected = np.exp(mass - special.logsumexp(mass))
    torch.testing.assert_close(pmf, torch.as_tensor(expected), rtol=1e-9, atol=1e-300)


def test_pmf_is_that_of_continuous_levels_between_the_grid_points() -> None:
    grid = karras_grid(11)
    pmf = lognormal_interval_pmf(grid, -1.1, 2.0)
    sigma = lognormal_sigma(_uniforms(200_000), -1.1, 2.0)
    inside = sigma[(sigma >= grid[0]) & (sigma < grid[-1])]
    counts = torch.histogram(inside, grid)[0]
    assert stats.chisquare(counts, (pmf * counts.sum()).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("n", [2, 11, 161])
def test_intervals_follow_the_pmf(n: int) -> None:
    for pmf in (lognormal_interval_pmf(karras_grid(n)), uniform_interval_pmf(n)):
        drawn = draw_intervals(_uniforms(200_000), pmf)
        assert drawn.dtype == torch.int64
        counts = torch.bincount(drawn, minlength=n - 1)
        assert counts.shape == (n - 1,)
        if n > 2:
            assert stats.chisquare(counts, (pmf * 200_000).numpy()).pvalue > 1e-4


def test_edges_of_the_distribution_belong_to_the_interval_above() -> None:
    pmf = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64)  # sums are exact in binary
    edges = torch.tensor([0.25, 0.75, 0.875], dtype=torch.float64)
    assert draw_intervals(edges, pmf).tolist() == [1, 2, 3]
    assert draw_intervals(torch.nextafter(edges, torch.zeros(3, dtype=torch.float64)), pmf).tolist() == [0, 1, 2]
    assert draw_intervals(torch.tensor([0.0, 2.0**-33, 1 - 2.0**-33, 1.0], dtype=torch.float64), pmf).tolist() == [0, 0, 3, 3]


def test_intervals_without_probability_are_never_drawn() -> None:
    pmf = torch.tensor([0.0, 0.1, 0.0, 0.7, 0.2, 0.0, 0.0], dtype=torch.float64)
    cdf = torch.cumsum(pmf, 0)
    near = torch.cat([cdf, torch.nextafter(cdf, torch.zeros_like(cdf)), torch.nextafter(cdf, torch.ones_like(cdf))])
    drawn = draw_intervals(torch.cat([near, torch.tensor([0.0, 1.0], dtype=torch.float64), _uniforms(20_000)]), pmf)
    assert set(drawn.tolist()) == {1, 3, 4}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda v: sum(v) > 1e-6), st.floats(0, 1))
def test_draws_invert_the_distribution(masses: list[float], u: float) -> None:
    pmf = torch.tensor(masses, dtype=torch.float64)
    i = int(draw_intervals(torch.tensor([u], dtype=torch.float64), pmf))
    assert masses[i] > 0
    cdf = torch.cumsum(pmf, 0) / pmf.sum()
    assert float(cdf[i]) >= u - 1e-12
    assert i == 0 or float(cdf[i - 1]) <= u + 1e-12


def test_draws_keep_the_shape_of_the_uniforms() -> None:
    assert draw_intervals(torch.full((4, 1), 0.5), uniform_interval_pmf(11)).shape == (4, 1)
    strided = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))[:, 1]
    assert torch.equal(draw_intervals(strided, uniform_interval_pmf(11)), (strided.double() * 10).long())


def test_uniform_pmf_has_one_entry_for_each_interval() -> None:
    assert uniform_interval_pmf(11).tolist() == [0.1] * 10


def test_continuous_levels_have_the_right_quantiles() -> None:
    u = torch.tensor([0.5, special.ndtr(1.0), special.ndtr(-3.0)], dtype=torch.float64)
    expected = torch.tensor([-1.1, 0.9, -7.1], dtype=torch.float64).exp()
    torch.testing.assert_close(lognormal_sigma(u, -1.1, 2.0), expected, rtol=1e-12, atol=0)
    extreme = lognormal_sigma(torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64), -1.1, 2.0)
    assert bool((torch.isfinite(extreme) & (extreme > 0)).all())
    log = torch.log(lognormal_sigma(_uniforms(200_000), -1.2, 1.2))
    assert stats.kstest(log.numpy(), "norm", args=(-1.2, 1.2)).pvalue > 1e-4


def test_weight_is_the_inverse_of_the_interval() -> None:
    grid = karras_grid(161)
    torch.testing.assert_close(inverse_delta_weight(grid) * (grid[1:] - grid[:-1]), torch.ones(160, dtype=torch.float64))


@pytest.mark.parametrize(
    "grid",
    [
        torch.tensor([1.0]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([-1.0, 1.0]),
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
    ],
)
def test_a_grid_that_does_not_ascend_is_refused(grid: torch.Tensor) -> None:
    for call in (lognormal_interval_pmf, inverse_delta_weight):
        with pytest.raises(InputError, match="grid"):
            call(grid)


@pytest.mark.parametrize(("P_mean", "P_std"), [(math.nan, 2.0), (-1.1, 0.0), (-1.1, -2.0), (-1.1, math.inf)])
def test_bad_parameters_are_named(P_mean: float, P_std: float) -> None:
    with pytest.raises(InputError, match="P_std"):
        lognormal_interval_pmf(karras_grid(5), P_mean, P_std)
    with pytest.raises(InputError, match="P_std"):
        lognormal_sigma(torch.tensor([0.5]), P_mean, P_std)


@pytest.mark.parametrize("P_mean", [1e30, -1e30, 1e200])
def test_unresolvable_parameters_are_an_error_and_not_nan(P_mean: float) -> None:
    with pytest.raises(InputError, match="cannot be resolved"):
        lognormal_interval_pmf(karras_grid(11), P_mean)


def test_a_grid_without_interval_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 points"):
        uniform_interval_pmf(1)
