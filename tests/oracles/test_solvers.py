"""Solvers and samplers where the trajectory is known: printed results, measured orders, variances that must stay.

On Gaussian data every step is affine in the state and in the noise, so mean and variance of what a sampler gives, with churn
too, are products and sums of its factors, which :func:`factor` derives by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian, Mixture
from atonce.objectives.discrete import teacher_step
from atonce.sampling.ode import Churn, integrate
from atonce.sampling.restart import restart
from atonce.sampling.times import denoiser_times

WORLD = Gaussian(0.0, 0.5)
SHIFTED = Gaussian(0.3, 0.5)
MIXTURE = Mixture(
    torch.tensor([[-1.0, 0.2], [0.8, -0.5], [0.3, 1.0]]).double(),
    torch.tensor([0.3, 0.4, 0.25]).double(),
    torch.tensor([0.5, 0.3, 0.2]).double(),
)
ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize(("order", "end", "calls"), [(2, 0.00659530796, 35), (1, 0.0052878930, 18)])
def test_eighteen_steps_from_80(order: int, end: float, calls: int) -> None:
    """EDM's sampler on N(0, .25): its result is not the exact .0062498779, and the gap is the solver's alone."""
    x, used = integrate(WORLD.denoiser, ONE, denoiser_times(18, 0.002, 80.0), order=order)
    assert used == calls
    assert abs(float(x) - end) < (6e-12 if order == 2 else 6e-11)
    assert abs(float(WORLD.solution(ONE, 80.0, 0.0)) - 0.0062498779) < 6e-11


def _states(dimension: int, sigma: float) -> Tensor:
    return sigma * torch.randn(16, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slope(widths: list[float], errors: list[float]) -> float:
    """Least-squares slope of ln(error) over ln(width)."""
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def distil(world: Gaussian | Mixture, order: int) -> Callable[[Tensor, list[float]], Tensor]:
    """The teacher steps of distillation, one after the other along the levels."""
    step = teacher_step(world.denoiser, order)

    def along(x: Tensor, sigmas: list[float]) -> Tensor:
        for sigma, to in zip(sigmas, sigmas[1:], strict=False):
            t, r = (torch.full((len(x),), level, dtype=torch.float64) for level in (sigma, to))
            x = step(x, x, x, t, r)
        return x

    return along


def solve(world: Gaussian | Mixture, order: int) -> Callable[[Tensor, list[float]], Tensor]:
    """The sampler's solver."""
    return lambda x, sigmas: integrate(world.denoiser, x, sigmas, order)[0]


WORLDS = pytest.mark.parametrize("world", [SHIFTED, MIXTURE], ids=["gaussian", "mixture"])


@pytest.mark.parametrize(
    ("index", "euler", "heun", "exact"),
    [
        (0, 0.71983575, 0.71983871, 0.71983788),
        (5, 0.65124981, 0.65146479, 0.65138987),
        (11, 0.71464523, 0.76674998, 0.75507010),
        (16, 0.99983358, 0.99989468, 0.99989468),
    ],
)
def test_one_interval_of_eighteen(index: int, euler: float, heun: float, exact: float) -> None:
    """The same numbers as one step of distillation (tests/oracles/test_discrete.py)."""
    interval = denoiser_times(18, 0.002, 80.0)[index : index + 2]
    for order, value in ((1, euler), (2, heun)):
        assert abs(float(solve(WORLD, order)(ONE, interval)) - value) <= 5.1e-9
    assert abs(float(WORLD.solution(ONE, *interval)) - exact) <= 5.1e-9


@WORLDS
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("t", [0.2, 1.0, 10.0])
def test_order_of_one_step(world: Gaussian | Mixture, order: int, t: float) -> None:
    """Against the exact trajectory the error of one step falls like its width to the power 2 (Euler) and 3 (Heun).

    For the step of distillation tests/oracles/test_discrete.py measures the same.
    """
    x = _states(2, math.hypot(t, 1.0))
    widths = [0.04, 0.02, 0.01, 0.005]
    errors = [float((solve(world, order)(x, [t, t - t * h]) - world.solution(x, t, t - t * h)).norm()) for h in widths]
    assert abs(slope(widths, errors) - (order + 1)) < 0.1, errors


@pytest.mark.parametrize("solver", [solve, distil], ids=["sampler", "teacher"])
@WORLDS
@pytest.mark.parametrize("order", [1, 2])
def test_global_order(solver: Callable[..., Callable[..., Tensor]], world: Gaussian | Mixture, order: int) -> None:
    """The error at the end of the Karras grid falls like N^-1 (Euler) and N^-2 (Heun)."""
    x = _states(2, 80.0)
    truth = world.solution(x, 80.0, 0.002)
    counts = [65, 129, 257, 513]
    errors = [float((solver(world, order)(x, karras_grid(n).flip(0).tolist()) - truth).norm()) for n in counts]
    measured = -slope([n - 1 for n in counts], errors)
    assert abs(measured - order) < 0.1, (measured, errors)


# ---- churn


def factor(start: float, to: float, order: int, s: float = 0.5) -> float:
    """What one step does to v = x - mean on N(mean, s^2): the slope of the ODE at level t is v t / (s^2 + t^2)."""
    a = start / (s**2 + start**2)
    euler = 1 + (to - start) * a
    if order == 1 or to == 0:
        return euler
    return 1 + (to - start) * (a + to / (s**2 + to**2) * euler) / 2


def recursion(sigmas: list[float], order: int, churn: Churn, variance: float, s: float = 0.5) -> tuple[float, float]:
    """Mean (of x - mean, from 1) and variance after Algorithm 2: V <- A^2 (V + S_noise^2 (start^2 - t^2)), A the factor."""
    mean, count = 1.0, sum(t > 0 for t in sigmas)
    for t, to in zip(sigmas, sigmas[1:], strict=False):
        inside = churn.S_min <= t <= churn.S_max
        start = t * (1 + (min(churn.S_churn / count, 2**0.5 - 1) if inside else 0.0))
        a = factor(start, to, order, s)
        mean, variance = a * mean, a**2 * (variance + churn.S_noise**2 * (start**2 - t**2))
    return mean, variance


def impulses(sigmas: list[float], order: int, churn: Churn, world: Gaussian = WORLD) -> Tensor:
    """The solver's answers to 1 in the state (first) and to 1 in the noise of each interval (others), all else 0."""
    n = len(sigmas) - 1
    rows = torch.eye(n + 1, dtype=torch.float64)
    x, _ = integrate(world.denoiser, rows[:, :1], sigmas, order, churn=churn, noise=lambda i: rows[:, i + 1 : i + 2])
    return x[:, 0]


GRID = denoiser_times(18, 0.002, 80.0)
CHURNS = pytest.mark.parametrize(
    ("sigmas", "churn"),
    [
        (GRID, Churn(40.0)),  # 40 / 18 is cut to sqrt(2) - 1
        (GRID, Churn(4.0, S_noise=1.007)),
        (GRID, Churn(4.0, GRID[12], GRID[4])),  # both ends of the band are levels of the grid
        (GRID[:-1], Churn(4.0)),  # no closing 0
        (denoiser_times(256, 0.002, 80.0), Churn(40.0, 0.05, 50.0, 1.003)),  # EDM's values for ImageNet at 64x64
        ([80.0, 0.0], Churn(0.3)),
    ],
    ids=["capped", "small", "band", "open", "imagenet", "one"],
)


@CHURNS
@pytest.mark.parametrize("order", [1, 2])
def test_variance_with_churn_is_the_recursion(sigmas: list[float], churn: Churn, order: int) -> None:
    gains = impulses(sigmas, order, churn)
    mean, variance = recursion(sigmas, order, churn, 80.0**2)
    assert math.isclose(float(gains[0]), mean, rel_tol=1e-11)
    assert math.isclose(float(80.0**2 * gains[0] ** 2 + gains[1:].square().sum()), variance, rel_tol=1e-11)
    assert int((gains[1:] != 0).sum()) == sum(churn.S_min <= t <= churn.S_max for t in sigmas[:-1])


@pytest.mark.parametrize("order", [1, 2])
def test_samples_with_churn_have_mean_and_variance_of_the_recursion(order: int) -> None:
    """20,000 independent values, within four standard errors; data N(.3, .25)."""
    churn, rows = Churn(6.0, 0.05, 50.0, 1.05), 20_000
    index = torch.arange(rows)

    def z(step: int) -> Tensor:
        return normal(11, index, (1,), Stream.SAMPLE, step).double()

    x, _ = integrate(SHIFTED.denoiser, 80.0 * z(0), GRID, order, churn=churn, noise=lambda i: z(i + 1))
    mean, variance = recursion(GRID, order, churn, 80.0**2)
    # The state starts around 0, so x - .3 starts around -.3.
    assert abs(float(x.mean()) - 0.3 * (1 - mean)) < 4 * math.sqrt(variance / rows)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / rows)
    without = recursion(GRID, order, Churn(), 80.0**2)[1]
    assert abs(without / variance - 1) > 4 * math.sqrt(2 / rows)  # fine enough to see that there was churn


@pytest.mark.parametrize("order", [1, 2])
def test_churn_leaves_the_distribution_alone_as_the_steps_shrink(order: int) -> None:
    """With unit S_noise the variance at the end goes to s^2 + .002^2 like N^-1 (Euler) and N^-2 (Heun), as without churn."""
    counts = [65, 129, 257, 513]
    errors = []
    for n in counts:
        gains = impulses(karras_grid(n).flip(0).tolist(), order, Churn(10.0))
        errors.append(abs(float((80.0**2 + 0.25) * gains[0] ** 2 + gains[1:].square().sum()) - 0.250004))
    assert abs(-slope([n - 1 for n in counts], errors) - order) < 0.15, errors


@pytest.mark.parametrize("amount", [0.0, 30.0])
def test_samples_with_churn_are_samples_of_the_mixture(amount: float) -> None:
    """Mean and covariance within five standard errors, 4000 samples of 64 steps; churn forgets the noise they started from."""
    rows = 4000
    index = torch.arange(rows)

    def z(step: int) -> Tensor:
        return normal(12, index, (2,), Stream.SAMPLE, step).double()

    sigmas = denoiser_times(64, 0.002, 80.0)
    x, _ = integrate(MIXTURE.denoiser, 80.0 * z(0), sigmas, churn=Churn(amount), noise=lambda i: z(i + 1))
    weights = MIXTURE.weights / MIXTURE.weights.sum()
    mean = weights @ MIXTURE.means
    offset = MIXTURE.means - mean
    cov = (offset * weights[:, None]).T @ offset + (weights @ MIXTURE.stds**2) * torch.eye(2).double()
    assert bool(((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / rows).sqrt()).all())
    assert float((torch.cov(x.T) - cov).abs().max()) < 5 * float(cov.diagonal().max()) * math.sqrt(2 / rows)
    kept = float(torch.corrcoef(torch.stack([x[:, 0], z(0)[:, 0]]))[0, 1])
    assert kept > 0.8 if amount == 0 else abs(kept) < 0.2, kept


def exact(sigma_end: float) -> Callable[[Tensor, float], Tensor]:
    return lambda x, sigma: WORLD.consistency(x, sigma, sigma_end)


class TestRestart:
    def test_one_step_is_the_consistency_function(self) -> None:
        z = _states(3, 1.0)
        x = restart(exact(0.002), lambda i: z, [80.0], 0.002, clip=None)
        torch.testing.assert_close(x, 80.0 * z * 0.0062499279, rtol=1e-7, atol=0)
        # Starting from noise alone, not from data plus noise, the spread is a little small.
        assert abs(80.0 * float(exact(0.002)(ONE, 80.0)) - 0.49999423) < 6e-9

    def test_one_step_on_a_mixture(self) -> None:
        z = _states(2, 1.0)
        x = restart(lambda x, s: MIXTURE.consistency(x, s, 0.002), lambda i: z, [80.0], 0.002, clip=None)
        torch.testing.assert_close(x, MIXTURE.solution(80.0 * z, 80.0, 0.002), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("steps", [2, 3, 6])
    def test_the_variance_stays(self, steps: int) -> None:
        """Every restart keeps s^2 + end^2 = .250004; the sampler is linear here, so its gains are read off unit impulses."""
        sigmas = [80.0, 0.821, 0.5, 0.3, 0.1, 0.05][:steps]
        gains = [float(restart(exact(0.002), lambda i, j=j: ONE * (i == j), sigmas, 0.002, clip=None)) for j in range(steps)]
        # The first gain acts on noise of variance 80^2; for data plus noise it would be 80^2 + s^2.
        variance = gains[0] ** 2 * (80.0**2 + 0.25) / 80.0**2 + sum(g**2 for g in gains[1:])
        assert abs(variance - 0.250004) < 5e-9

    def test_the_variance_grows_where_the_end_is_forgotten(self) -> None:
        """Renoising with tau instead of sqrt(tau^2 - end^2) gives .25000508: the assertion above tells them apart."""
        gains = [float(restart(exact(0.002), lambda i, j=j: ONE * (i == j), [80.0, 0.821], 0.0, clip=None)) for j in (0, 1)]
        variance = gains[0] ** 2 * (80.0**2 + 0.25) / 80.0**2 + gains[1] ** 2
        assert abs(variance - 0.25000508) < 6e-9

    def test_samples_of_a_mixture_are_samples_of_the_mixture(self) -> None:
        """Three steps with the exact function leave the distribution alone: first two moments, 2000 samples."""
        g = torch.Generator().manual_seed(1)
        data = MIXTURE.sample(20_000, seed=5)
        x = restart(
            lambda x, s: MIXTURE.solution(x, s, 0.002, steps=4),
            lambda i: torch.randn(2000, 2, generator=g, dtype=torch.float64),
            [80.0, 2.0, 0.5],
            0.002,
            clip=None,
        )
        torch.testing.assert_close(x.mean(0), data.mean(0), rtol=0, atol=0.08)
        torch.testing.assert_close(torch.cov(x.T), torch.cov(data.T), rtol=0, atol=0.08)
