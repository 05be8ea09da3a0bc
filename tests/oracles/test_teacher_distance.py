"""The distance to a teacher's trajectory, where the trajectory is known: Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.evaluation.teacher import solver_error, solver_grid, teacher_metrics, trajectory_ends
from atonce.noise.worlds import Gaussian

SHAPE = (1, 4, 4)
# Each pixel its own mean and standard deviation.
WORLD = Gaussian(torch.linspace(-0.5, 0.5, 16).reshape(SHAPE).double(), torch.linspace(0.2, 0.8, 16).reshape(SHAPE).double())


def noise(n: int = 40) -> Tensor:
    return normal(3, torch.arange(n), SHAPE, Stream.SAMPLE).double()


@pytest.mark.parametrize("sigma_end", [0.0, 0.002])
def test_the_exact_function_has_no_distance_but_the_solvers_error(sigma_end: float) -> None:
    exact = lambda x, sigma: WORLD.consistency(x, sigma, sigma_end)
    distances = []
    for steps in (16, 32, 64, 128):
        grid = solver_grid(80.0, sigma_end, steps=steps)
        assert (len(grid) - 1, grid[0], grid[-1]) == (steps, 80.0, sigma_end)
        metrics = teacher_metrics(trajectory_ends(exact, WORLD.denoiser, noise(), grid), steps=steps)
        distances.append(metrics["teacher_distance"].value)
        assert metrics["teacher_correlation"].value > 0.999
    assert distances[-1] < 1e-3
    # Heun is of second order: half the interval, a quarter of the error.
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(distances, distances[1:])]
    assert slopes[-1] == pytest.approx(2.0, abs=0.25), slopes


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9])
def test_both_solutions_end_at_the_last_level(steps: int) -> None:
    """Of the teacher D = 0 the ODE is dx = x / sigma dsigma: x grows as sigma does, and Heun's method is exact on any grid."""
    grid = solver_grid(80.0, 2.0, steps=steps)
    assert solver_error(lambda x, _: torch.zeros_like(x), noise(), grid) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("steps", [64, 63, 33, 17])
def test_the_estimate_of_the_solvers_error_is_its_error(steps: int) -> None:
    exact = lambda x, sigma: WORLD.consistency(x, sigma, 0.002)
    grid = solver_grid(80.0, 0.002, steps=steps)
    ends = trajectory_ends(exact, WORLD.denoiser, noise(), grid)
    true = float((ends.answers - ends.solutions).square().mean().sqrt())
    assert solver_error(WORLD.denoiser, noise(), grid) == pytest.approx(true, rel=0.35)


def test_a_known_error_is_the_distance() -> None:
    """An answer that is 0.1 off in every pixel has distance 0.1 and still the correlation 1."""
    off = lambda x, sigma: WORLD.consistency(x, sigma, 0.002) + 0.1
    metrics = teacher_metrics(trajectory_ends(off, WORLD.denoiser, noise(), solver_grid(80.0, 0.002, steps=256)), steps=256)
    assert metrics["teacher_distance"].value == pytest.approx(0.1, rel=0.01)
    assert metrics["teacher_correlation"].value == pytest.approx(1.0, abs=1e-4)


def test_another_noise_has_no_correlation() -> None:
    """The right distribution of images, but of unrelated noise: far away, and uncorrelated."""
    other = normal(4, torch.arange(400), SHAPE, Stream.SAMPLE).double() * 80.0
    unrelated = lambda x, sigma: WORLD.consistency(other, sigma, 0.002)
    metrics = teacher_metrics(
        trajectory_ends(unrelated, WORLD.denoiser, noise(400), solver_grid(80.0, 0.002, steps=32)), steps=32
    )
    std = torch.as_tensor(WORLD.std)
    assert metrics["teacher_distance"].value == pytest.approx(float((2 * std.square().mean()).sqrt()), rel=0.05)
    assert abs(metrics["teacher_correlation"].value) < 0.1


def test_the_denoisers_mean_is_no_answer() -> None:
    """From sigma_max the denoiser gives the mean of the data, which is as far from the end as the data spread."""
    metrics = teacher_metrics(
        trajectory_ends(WORLD.denoiser, WORLD.denoiser, noise(400), solver_grid(80.0, 0.002, steps=64)), steps=64
    )
    std = torch.as_tensor(WORLD.std)
    assert metrics["teacher_distance"].value == pytest.approx(float(std.square().mean().sqrt()), rel=0.05)
