"""How the discretisation and the decay rates change while a model trains.

The counter k and its end K are whatever the caller counts, as long as both count the same; we count images seen.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from atonce.core.errors import InputError


def _check(k: int, K: int, s0: int, s1: int, lowest_s0: int) -> None:
    if K < 1:
        raise InputError(f"the length K of a curriculum is {K}, but must be at least 1")
    if k < 0:
        raise InputError(f"the counter k of a curriculum is {k}, but must be at least 0")
    if s0 < lowest_s0:
        raise InputError(f"s0 is {s0}, but this curriculum needs at least {lowest_s0} to have an interval")
    if s1 < s0:
        raise InputError(f"s1 is {s1}, but a curriculum ends at least where it begins (s0 = {s0}): raise s1 or lower s0")


def n_ct(k: int, K: int, s0: int, s1: int) -> int:
    """Number of grid points of consistency training: from s0 at the start to s1 + 1 at the end.

    N(k) = ceil(sqrt((k/K) ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1: Song et al., "Consistency models", 2023.
    Computed in whole numbers, so the ceiling never depends on rounding. Beyond K the last value holds.

    Args:
        k: Progress, at least 0.
        K: Progress at the end, at least 1.
        s0: Points at the start, at least 2.
        s1: Intervals at the end, at least s0.

    Returns:
        The number of points, between s0 and s1 + 1.

    Raises:
        InputError: An argument is out of range.
    """
    _check(k, K, s0, s1, lowest_s0=2)
    # ceil(x - 1) + 1 = ceil(x), and the least m with m^2 >= p/K is the least m with m^2 >= ceil(p/K).
    square = -(-(min(k, K) * ((s1 + 1) ** 2 - s0**2) + K * s0**2) // K)
    return math.isqrt(square - 1) + 1


def mu_ct(k: int, K: int, s0: int, s1: int, mu0: float, form: Literal["code", "paper"] = "code") -> float:
    """Decay of the moving-average target network of consistency training.

    The paper has exp(s0 ln(mu0) / N(k)); both published codes divide by N(k) - 1 (they count intervals there), so that
    training starts from mu0^2 instead of mu0 when s0 = 2. Their checkpoints come from the second form.

    Args:
        k: Progress, at least 0.
        K: Progress at the end, at least 1.
        s0: Points at the start, at least 2.
        s1: Intervals at the end, at least s0.
        mu0: Decay at the start (in the paper's form), between 0 and 1.
        form: "code" or "paper".

    Returns:
        The decay, in (0, 1).

    Raises:
        InputError: An argument is out of range.
    """
    if not 0 < mu0 < 1:
        raise InputError(f"mu0 is {mu0}, but must lie strictly between 0 and 1 (0.9 to 0.95 is usual)")
    n = n_ct(k, K, s0, s1)
    match form:
        case "code":
            return math.exp(s0 * math.log(mu0) / (n - 1))
        case "paper":
            return math.exp(s0 * math.log(mu0) / n)
        case _:
            raise InputError(f"the form of mu is {form!r}, but must be 'code' or 'paper'")


def _ict_stage_length(K: int, s0: int, s1: int) -> int:
    """K' = floor(K / (log2(floor(s1/s0)) + 1)), at least 1."""
    stages = math.log2(s1 // s0) + 1
    length = math.floor(K / stages)
    if length < 1:
        raise InputError(
            f"a curriculum of length {K} is shorter than its {math.ceil(stages)} stages (s0 = {s0}, s1 = {s1}): "
            "train for longer or bring s1 nearer to s0"
        )
    return length


def n_ict(k: int, K: int, s0: int = 10, s1: int = 1280) -> int:
    """Number of grid points of improved consistency training: the intervals double from s0 to s1 in equal stages.

    N(k) = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2(floor(s1/s0)) + 1)): Song and Dhariwal, "Improved
    techniques for training consistency models", 2023. When s1/s0 is a power of two, s1 is reached one
    stage length (or a little more) before the end. Beyond K the value at K holds.

    Args:
        k: Progress, at least 0.
        K: Progress at the end, at least the number of stages.
        s0: Intervals at the start, at least 1.
        s1: Intervals at the end, at least s0.

    Returns:
        The number of points, between s0 + 1 and s1 + 1.

    Raises:
        InputError: An argument is out of range, or K is shorter than the number of stages.
    """
    _check(k, K, s0, s1, lowest_s0=1)
    doublings = min(k, K) // _ict_stage_length(K, s0, s1)
    # Past this many doublings s1 is exceeded anyway, and the power would only grow.
    return int(min(s0 * 2 ** min(doublings, s1.bit_length()), s1)) + 1


def ict_stages(K: int, s0: int = 10, s1: int = 1280) -> list[tuple[int, int]]:
    """The stages of :func:`n_ict` within 0 <= k < K.

    Args:
        K: Progress at the end.
        s0: Intervals at the start.
        s1: Intervals at the end.

    Returns:
        (first k, number of points) for each stage, both ascending; the first stage begins at 0.

    Raises:
        InputError: An argument is out of range, or K is shorter than the number of stages.
    """
    _check(0, K, s0, s1, lowest_s0=1)
    stages = [(0, s0 + 1)]
    for first in range(0, K, _ict_stage_length(K, s0, s1)):
        points = n_ict(first, K, s0, s1)
        if points > stages[-1][1]:
            stages.append((first, points))
        if points == s1 + 1:
            break
    return stages


def ect_stage(images_seen: int, images_per_stage: int) -> int:
    """Stage of easy consistency tuning: the number of whole stages behind us, from 0.

    Args:
        images_seen: Images seen, at least 0.
        images_per_stage: Images in each stage, at least 1 (3.2 million in the published CIFAR-10 recipe).

    Returns:
        The stage.

    Raises:
        InputError: An argument is out of range.
    """
    if images_seen < 0:
        raise InputError(f"images_seen is {images_seen}, but must be at least 0")
    if images_per_stage < 1:
        raise InputError(f"images_per_stage is {images_per_stage}, but must be at least 1")
    return images_seen // images_per_stage


def ect_r(t: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """Noise level of the target in easy consistency tuning.

    r = max(0, t (1 - n(t) / q^(stage + 1))) with n(t) = 1 + k sigmoid(-b t): Geng et al., "Consistency models made
    easy", 2024. At q = 2 the early stages give r = 0 for small t, where the target is the data itself; a
    network whose clock is ln(sigma) must not be called there.

    Args:
        t: Noise levels of the student, above 0, any shape.
        stage: Stage from 0.
        q: Ratio by which the gap shrinks with each stage, above 1.
        k: How much wider the gap is for small t, at least 0.
        b: How fast that widening fades with t, at least 0.

    Returns:
        float64 tensor of the shape of ``t``, 0 <= r < t.

    Raises:
        InputError: A parameter is out of range, or the stage is so late that r could not be told from t.
    """
    if stage < 0:
        raise InputError(f"the stage is {stage}, but must be at least 0")
    if not (math.isfinite(q) and q > 1):
        raise InputError(f"q is {q}, but must be a number above 1 (2 for CIFAR-10, 4 for ImageNet-64)")
    if not (math.isfinite(k) and k >= 0 and math.isfinite(b) and b >= 0):
        raise InputError(f"k = {k} and b = {b} must be numbers of at least 0 (8 and 1 are usual)")
    shrink = math.pow(q, -(stage + 1))
    if shrink < 2.0**-50:
        raise InputError(f"at stage {stage} with q = {q} the pair (t, r) collapses to one point: hold the stage earlier")
    level = t.to(torch.float64)
    n = 1 + k * torch.sigmoid(-b * level)
    return (level * (1 - n * shrink)).clamp(min=0)


def half_life_to_decay(batch: int, half_life_images: float) -> float:
    """Decay per optimiser step of a moving average that forgets half of its content in so many images.

    Args:
        batch: Images per optimiser step, at least 1.
        half_life_images: Half-life in images, above 0.

    Returns:
        0.5^(batch / half_life_images), below 1.

    Raises:
        InputError: An argument is out of range.
    """
    if batch < 1:
        raise InputError(f"the batch is {batch} images, but must be at least 1")
    if not half_life_images > 0:
        raise InputError(f"the half-life is {half_life_images} images, but must be above 0")
    return float(0.5 ** (batch / half_life_images))


def decay_half_life(beta: float) -> float:
    """Optimiser steps in which a moving average with decay ``beta`` forgets half of its content.

    Args:
        beta: Decay per step, strictly between 0 and 1.

    Returns:
        ln(1/2) / ln(beta), in steps.

    Raises:
        InputError: The decay is out of range.
    """
    if not 0 < beta < 1:
        raise InputError(f"the decay is {beta}, but must lie strictly between 0 and 1")
    return math.log(0.5) / math.log(beta)
