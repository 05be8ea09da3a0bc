"""How far a consistency model is from what it should answer: the end of its teacher's trajectory from the same noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.evaluation.resampling import percentile_interval, resamples
from atonce.noise.karras import karras_grid
from atonce.sampling.ode import integrate
from atonce.sampling.times import denoiser_times

Function = Callable[[Tensor, float], Tensor]

STEPS = 64
"""Intervals of Heun's method by default: 127 or 128 calls of the teacher."""


@dataclasses.dataclass(frozen=True)
class Ends:
    """Where two maps take the same noise.

    Attributes:
        answers: The model's, float64 [n, C, H, W].
        solutions: The ends of the teacher's trajectories, float64 [n, C, H, W].
    """

    answers: Tensor
    solutions: Tensor

    def distances(self) -> Tensor:
        """Root mean square of the difference over the pixels of each image: [n]."""
        return (self.answers - self.solutions).flatten(1).square().mean(1).sqrt()


def solver_grid(sigma_max: float, sigma_end: float, sigma_min: float = 0.002, steps: int = STEPS) -> list[float]:
    """Descending noise levels for the trajectory's solution: Karras' grid from sigma_max to sigma_end.

    Args:
        sigma_max: Where it starts.
        sigma_end: Where it ends; at 0 the grid goes to ``sigma_min`` and closes with 0.
        sigma_min: Smallest noise level of the teacher.
        steps: Number of intervals, at least 2.

    Returns:
        ``steps`` + 1 levels.

    Raises:
        InputError: There are fewer than 2 steps.
    """
    if whole(steps, "teacher_steps") < 2:
        raise InputError(f"the trajectory of the teacher needs at least 2 steps, got {steps}: {STEPS} are usual")
    if sigma_end <= 0:
        return denoiser_times(steps, sigma_min, sigma_max)
    return [float(sigma) for sigma in karras_grid(steps + 1, sigma_end, sigma_max).flip(0)]


@torch.no_grad()
def trajectory_ends(f: Function, denoiser: Function, noise: Tensor, sigmas: list[float]) -> Ends:
    """f(x_T, sigma_max) and the solution of the probability-flow ODE from the same x_T = sigma_max z, by Heun's method.

    Nothing is clamped on either side, so an exact f has no distance but the solver's error.

    Args:
        f: The consistency model of (x [B, C, H, W], sigma).
        denoiser: The teacher D(x, sigma).
        noise: z [B, C, H, W].
        sigmas: Of :func:`solver_grid`; it should end where f's answers live.

    Returns:
        Both ends, on the CPU.

    Raises:
        InputError: The model or the teacher gives something else than finite images of x's shape.
    """
    start = sigmas[0] * noise.to(torch.float64)
    answers = check_answer(f(start.to(noise.dtype), sigmas[0]), noise, "model").to(torch.float64)
    work = lambda x, sigma: check_answer(denoiser(x.to(noise.dtype), sigma), noise, "teacher").to(torch.float64)
    solutions, _ = integrate(work, start, sigmas, 2)
    return Ends(answers.cpu(), solutions.cpu())


def check_answer(found: Any, x: Tensor, who: str) -> Tensor:
    """What a function of (x, sigma) gave, if it is images like x.

    Args:
        found: What it gave.
        x: What it was given [B, C, H, W].
        who: The model or the teacher, for the message.

    Returns:
        The same.

    Raises:
        InputError: It is something else, has another shape, or holds values that are not finite.
    """
    if not isinstance(found, Tensor) or found.shape != x.shape:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the {who} gave {shape} for x {list(x.shape)}: it must give images of the same shape")
    if not bool(torch.isfinite(found).all()):
        raise InputError(f"the {who} gives values that are not finite: its distance to anything cannot be measured")
    return found


def solver_error(denoiser: Function, noise: Tensor, sigmas: list[float]) -> float:
    """About the error of the solution per pixel: a third of the difference to every second level (Heun is of second order).

    Args:
        denoiser: The teacher.
        noise: z [B, C, H, W]; a few images are enough.
        sigmas: The grid. Of an odd number of intervals the last one is taken as it is, so that both solutions end at one level.

    Returns:
        Root mean square over pixels and images.
    """
    halved = sigmas[::2] if len(sigmas) % 2 else [*sigmas[::2], sigmas[-1]]
    fine, coarse = (trajectory_ends(lambda x, _: x, denoiser, noise, grid).solutions for grid in (sigmas, halved))
    return float((fine - coarse).square().mean().sqrt()) / 3


def teacher_metrics(ends: Ends, *, steps: int, seed: int = 0) -> dict[str, Metric]:
    """Distance and correlation of a model's answers and its teacher's solutions.

    ``teacher_distance`` is the mean over the images of the root mean square difference of their pixels; ``teacher_correlation``
    the correlation of both sides' deviations from their own mean images, over all pixels and images: 1 where each noise becomes
    the same image, near 0 where the images are alike only on average. Intervals: percentile bootstrap over the images.

    Args:
        ends: Of :func:`trajectory_ends`.
        steps: Intervals of the solver, for the settings.
        seed: Of the resampling.

    Returns:
        Both metrics.

    Raises:
        InputError: There are fewer than two images, or nothing varies.
    """
    n = ends.answers.shape[0]
    if n < 2:
        raise InputError(f"the distance to a teacher needs at least 2 images, got {n}")
    distances = ends.distances()
    a, b = ((side - side.mean(0)).flatten(1) for side in (ends.answers, ends.solutions))
    # A resample's correlation about the whole set's mean images: three sums for each image are enough.
    sums = torch.stack([(a * b).sum(1), a.square().sum(1), b.square().sum(1)], 1)

    def correlation(rows: Tensor) -> float:
        ab, aa, bb = rows.sum(0).tolist()
        return ab / math.sqrt(aa * bb) if aa * bb > 0 else math.nan

    value = correlation(sums)
    if math.isnan(value):
        raise InputError("the model or the teacher gives the same image for every noise: there is no correlation to measure")
    drawn = list(resamples(n, seed, 12))
    correlations = [c for c in (correlation(sums[rows]) for rows in drawn) if not math.isnan(c)]
    words = f"Heun, {steps} steps"
    mean = float(distances.mean())
    return {
        "teacher_distance": Metric(
            mean, percentile_interval([float(distances[rows].mean()) for rows in drawn]), False, "rms per pixel", words, n
        ),
        "teacher_correlation": Metric(value, percentile_interval(correlations), True, "correlation", words, n),
    }


def named_teacher(card: Mapping[str, Any] | None) -> str:
    """The name of the teacher that a model's card speaks of: a gallery name, a folder or a hub id.

    Args:
        card: ``model.card``.

    Returns:
        The name, without the digest behind it.

    Raises:
        InputError: The card names none.
    """
    card = card if isinstance(card, Mapping) else {}
    recipe = card.get("recipe")
    named = card.get("teacher") or (recipe.get("teacher") if isinstance(recipe, Mapping) else None)
    if not isinstance(named, str) or not named.strip():
        raise InputError("metric teacher_distance needs the teacher, and the model's card names none: give teacher=")
    return named.split(", sha256")[0].strip()
