"""Solvers and samplers where the trajectory is known: printed results, measured orders, variances that must stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian, Mixture
from atonce.sampling.ode import integrate
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


@pytest.mark.parametrize("world", [SHIFTED, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("order", [1, 2])
def test_global_order(world: Gaussian | Mixture, order: int) -> None:
    """The error at the end of the Karras grid falls like N^-1 (Euler) and N^-2 (Heun)."""
    x = _states(2, 80.0)
    truth = world.solution(x, 80.0, 0.002)
    counts = [65, 129, 257, 513]
    errors = []
    for n in counts:
        sigmas = [float(s) for s in karras_grid(n).flip(0)]
        end, _ = integrate(world.denoiser, x, sigmas, order=order)
        errors.append(float((end - truth).norm()))
    measured = -slope([n - 1 for n in counts], errors)
    assert abs(measured - order) < 0.1, (measured, errors)


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
