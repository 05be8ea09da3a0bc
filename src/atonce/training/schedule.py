"""From the image clock to noise levels: which stage of the curriculum a batch is in, and the pairs (t, r) it trains on."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atonce.core.streams import Stream, uniform
from atonce.noise.curricula import ect_r, mu_ct, n_ct, n_ict
from atonce.noise.draws import draw_intervals, lognormal_interval_pmf, lognormal_sigma, uniform_interval_pmf
from atonce.noise.karras import karras_grid
from atonce.objectives.imm import group_times
from atonce.sampling.times import denoiser_times
from atonce.training.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """Where a run stands in its curriculum.

    Attributes:
        points: Number N of grid points, or 0 where the pairs come from no grid.
        index: Number of the stage of ECT or of progressive distillation, or 0.
        mu: Decay of the target network, where it is a moving average.
    """

    points: int = 0
    index: int = 0
    mu: float = 0.0


def stage_at(recipe: Recipe, images_seen: int) -> Stage:
    """The stage of the batch that starts at ``images_seen``; the budget is the curriculum's length.

    Args:
        recipe: The recipe.
        images_seen: Images seen before this batch.

    Returns:
        The stage. It is a function of the clock alone, so an interrupted run goes through the same stages.
    """
    if recipe.pairs in ("denoising", "tangent", "mean-flow", "groups"):
        return Stage()
    if recipe.pairs == "ect":
        return Stage(index=min(images_seen * recipe.ect_stages // recipe.images, recipe.ect_stages - 1))
    if recipe.pairs == "halving":
        stages = halvings(recipe)
        index = min(images_seen * stages // recipe.images, stages - 1)
        return Stage(points=(recipe.teacher_steps >> (index + 1)) + 1, index=index)
    match recipe.curriculum:
        case "fixed":
            points = recipe.s1 + 1
        case "ct":
            points = n_ct(images_seen, recipe.images, recipe.s0, recipe.s1)
        case "ict":
            points = n_ict(images_seen, recipe.images, recipe.s0, recipe.s1)
    if isinstance(recipe.mu, str):
        form = "code" if recipe.mu == "ct-code" else "paper"
        mu = mu_ct(images_seen, recipe.images, recipe.s0, recipe.s1, recipe.mu0, form)  # type: ignore[arg-type]
    else:
        mu = recipe.mu
    return Stage(points=points, mu=mu)


def halvings(recipe: Recipe) -> int:
    """Stages of progressive distillation: how often the teacher's grid is halved until one interval is left."""
    return recipe.teacher_steps.bit_length() - 1


def student_name(steps: int) -> str:
    """What the weights of a student of progressive distillation are called, by the steps it takes."""
    return f"{steps}-step{'s' * (steps != 1)}"


def halving_grid(recipe: Recipe, intervals: int) -> list[float]:
    """End points of the intervals of a student of progressive distillation, descending, the last one 0.

    The teacher's grid is the sampler's (EDM, equation 5); each student keeps every second point of the one before.

    Args:
        recipe: The recipe.
        intervals: Number of intervals, a power of two up to ``teacher_steps``.

    Returns:
        ``intervals`` + 1 noise levels.
    """
    return denoiser_times(recipe.teacher_steps, recipe.sigma_min, recipe.sigma_max, recipe.rho)[
        :: recipe.teacher_steps // intervals
    ]


def draw_middle(recipe: Recipe, stage: Stage, t: Tensor) -> Tensor:
    """The noise levels where the teacher's first step of progressive distillation ends.

    Args:
        recipe: The recipe.
        stage: The stage the batch belongs to.
        t: Noise levels where the steps start [B], as drawn by :func:`draw_pairs`.

    Returns:
        float64 [B], on the device of ``t``.
    """
    fine = torch.tensor(halving_grid(recipe, 2 * (stage.points - 1)), dtype=torch.float64, device=t.device)
    where = (t[:, None] - fine[None, ::2]).abs().argmin(1)
    return fine[2 * where + 1]


def draw_pairs(recipe: Recipe, stage: Stage, index: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels of student and target for the images with the given global indices.

    Args:
        recipe: The recipe.
        stage: The stage they belong to.
        index: Global sample indices, int64 [B], on the CPU.

    Returns:
        t and r, float64 [B], r < t, on the CPU; in continuous time r = t, in MeanFlow r <= t.
    """
    u = uniform(recipe.seed, index, 1, Stream.SIGMA)[:, 0]
    match recipe.pairs:
        case "karras" | "lognormal-intervals":
            lognormal = recipe.pairs == "lognormal-intervals"
            grid, pmf = _grid(
                recipe.sigma_min, recipe.sigma_max, recipe.rho, stage.points, lognormal, recipe.P_mean, recipe.P_std
            )
            i = draw_intervals(u, pmf)
            return grid[i + 1], grid[i]
        case "ect":
            t = lognormal_sigma(u, recipe.P_mean, recipe.P_std)
            return t, ect_r(t, stage.index, recipe.ect_q, recipe.ect_k, recipe.ect_b)
        case "halving":
            coarse = torch.tensor(halving_grid(recipe, stage.points - 1), dtype=torch.float64)
            i = (u * (len(coarse) - 1)).long()
            return coarse[i], coarse[i + 1]
        case "denoising":
            t = lognormal_sigma(u, recipe.P_mean, recipe.P_std)
            return t, torch.zeros_like(t)
        case "tangent":
            t = lognormal_sigma(u, recipe.P_mean, recipe.P_std)
            return t, t
        case "mean-flow":
            return flow_times(recipe, index)
        case "groups":
            return times_of_groups(recipe, index)[:2]


def flow_times(recipe: Recipe, index: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of MeanFlow, as noise levels: a logit-normal flow time sigma / (1 + sigma) is a log-normal sigma.

    Both as published: r drawn as t is, and the two put in order (Geng et al. 2025, section 4.3), or from a distribution of its
    own and cut at t (their CIFAR-10 code). A share of the pairs has r = t.

    Args:
        recipe: The recipe.
        index: Global sample indices, int64 [B], on the CPU.

    Returns:
        t and r, float64 [B], r <= t, t at most ``sigma_max``.
    """
    u = uniform(recipe.seed, index, 3, Stream.SIGMA)
    t = lognormal_sigma(u[:, 0], recipe.P_mean, recipe.P_std).clamp(max=recipe.sigma_max)
    if recipe.r_mean is None:
        r = lognormal_sigma(u[:, 1], recipe.P_mean, recipe.P_std).clamp(max=recipe.sigma_max)
        t, r = torch.maximum(t, r), torch.minimum(t, r)
    else:
        r = torch.minimum(lognormal_sigma(u[:, 1], recipe.r_mean, recipe.r_std), t)
    return t, torch.where(u[:, 2] < recipe.distinct, r, t)


def times_of_groups(recipe: Recipe, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t, r and s of IMM as noise levels, float64 [B]: equal for the images of a group, those with equal index // group."""
    u = uniform(recipe.seed, index // recipe.group, 2, Stream.SIGMA)
    return group_times(u, recipe.sigma_min, recipe.sigma_max, float(recipe.sigma_data), recipe.imm_k)


@functools.lru_cache(maxsize=4)
def _grid(
    sigma_min: float, sigma_max: float, rho: float, points: int, lognormal: bool, P_mean: float, P_std: float
) -> tuple[Tensor, Tensor]:
    grid = karras_grid(points, sigma_min, sigma_max, rho)
    return grid, lognormal_interval_pmf(grid, P_mean, P_std) if lognormal else uniform_interval_pmf(points)


def learning_rate(recipe: Recipe, images_seen: int) -> float:
    """Learning rate of the batch that starts at ``images_seen``: linear ramp-up, constant, cosine cooldown.

    In progressive distillation each stage goes through this once.

    Args:
        recipe: The recipe.
        images_seen: Images seen before this batch.

    Returns:
        The rate.
    """
    rate, seen, budget = recipe.lr, float(images_seen), float(recipe.images)
    if recipe.pairs == "halving":  # each student has a schedule of its own
        budget /= halvings(recipe)
        seen -= budget * stage_at(recipe, images_seen).index
    if recipe.lr_rampup:
        rate *= min((seen + recipe.batch) / recipe.lr_rampup, 1.0)
    if recipe.lr_cooldown:
        start = budget * (1 - recipe.lr_cooldown)
        if seen > start:
            rate *= 0.5 * (1 + math.cos(math.pi * min((seen - start) / (budget - start), 1.0)))
    return rate
