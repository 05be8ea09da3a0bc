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
from atonce.training.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """Where a run stands in its curriculum.

    Attributes:
        points: Number N of grid points, or 0 where the pairs come from no grid.
        index: Number of the ECT stage, or 0.
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
    if recipe.pairs == "denoising":
        return Stage()
    if recipe.pairs == "ect":
        return Stage(index=min(images_seen * recipe.ect_stages // recipe.images, recipe.ect_stages - 1))
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


def draw_pairs(recipe: Recipe, stage: Stage, index: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels of student and target for the images with the given global indices.

    Args:
        recipe: The recipe.
        stage: The stage they belong to.
        index: Global sample indices, int64 [B], on the CPU.

    Returns:
        t and r, float64 [B], r < t, on the CPU.
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
        case "denoising":
            t = lognormal_sigma(u, recipe.P_mean, recipe.P_std)
            return t, torch.zeros_like(t)


@functools.lru_cache(maxsize=4)
def _grid(
    sigma_min: float, sigma_max: float, rho: float, points: int, lognormal: bool, P_mean: float, P_std: float
) -> tuple[Tensor, Tensor]:
    grid = karras_grid(points, sigma_min, sigma_max, rho)
    return grid, lognormal_interval_pmf(grid, P_mean, P_std) if lognormal else uniform_interval_pmf(points)


def learning_rate(recipe: Recipe, images_seen: int) -> float:
    """Learning rate of the batch that starts at ``images_seen``: linear ramp-up, constant, cosine cooldown.

    Args:
        recipe: The recipe.
        images_seen: Images seen before this batch.

    Returns:
        The rate.
    """
    rate = recipe.lr
    if recipe.lr_rampup:
        rate *= min((images_seen + recipe.batch) / recipe.lr_rampup, 1.0)
    if recipe.lr_cooldown:
        start = recipe.images * (1 - recipe.lr_cooldown)
        if images_seen > start:
            rate *= 0.5 * (1 + math.cos(math.pi * min((images_seen - start) / (recipe.images - start), 1.0)))
    return rate


def ema_decay(recipe: Recipe, decay: float, images_seen: int) -> float:
    """Decay of a moving average at this batch: the published one, its half-life capped at a share of the images seen.

    Karras et al. 2022 cap it at 5 %; without a cap the first weights, which are noise, stay in a short run's average.

    Args:
        recipe: The recipe.
        decay: Decay per step.
        images_seen: Images seen including this batch.

    Returns:
        The decay per step to use now.
    """
    if not recipe.ema_rampup:
        return decay
    return min(decay, 0.5 ** (recipe.batch / (recipe.ema_rampup * images_seen)))
