"""Kernel distance (KID): the squared maximum mean discrepancy under the cubic polynomial kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.core.streams import Stream, bits


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x·y / D + 1)^3 (Binkowski et al. 2018, section 4): [n, D] and [m, D] to [n, m], float64."""
    return (x.to(torch.float64) @ y.to(torch.float64).T / x.shape[1] + 1.0) ** 3


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared MMD (Gretton et al. 2012, lemma 6) under the cubic kernel; it may be negative.

    Args:
        x: Features [n, D].
        y: Features [m, D].

    Returns:
        The estimate.

    Raises:
        InputError: The dimensions differ or a set has fewer than two samples.
    """
    n, m = x.shape[0], y.shape[0]
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"features must be [n, D] and [m, D], got {list(x.shape)} and {list(y.shape)}")
    if min(n, m) < 2:
        raise InputError(f"the kernel distance needs at least 2 samples on each side, got {n} and {m}")
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    within_x = (xx.sum() - xx.trace()) / (n * (n - 1))
    within_y = (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within_x + within_y - 2.0 * xy.mean())


def subset(n: int, size: int, seed: int, index: int, side: int) -> Tensor:
    """Subset ``index`` of ``size`` out of ``n`` items without repetition: int64 [size], a function of the arguments alone."""
    words = bits(seed, torch.tensor([2 * index + side]), n, Stream.EVALUATE, step=1)[0]
    return torch.argsort(words, stable=True)[:size]


def kernel_metric(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Metric:
    """KID: the mean of the unbiased squared MMD over random subsets (protocol of Binkowski et al.: 100 subsets of 1000).

    The interval is the value ± 1.96 s. The spread v of the subset values is that of sets of ``size``; by subsampling
    (Politis and Romano 1994) it is carried to the whole sets as s^2 = v · ((size / n) / (1 - size / n) + 1 / subsets), n the
    smaller set, where size / n is capped at a half. Where the two distributions agree, this is on the wide side.

    Args:
        x: Features of the samples [n, D].
        y: Features of the reference [m, D].
        subsets: Number of subsets, at least 20.
        size: Items in each; halved sets where n or m has fewer than twice as many.
        seed: Of the choice of subsets.

    Returns:
        The metric.

    Raises:
        InputError: Too few subsets or samples.
    """
    if subsets < 20:
        raise InputError(f"subsets must be at least 20, got {subsets}")
    smaller = min(x.shape[0], y.shape[0])
    if smaller < 4:
        raise InputError(f"the kernel distance needs at least 4 samples on each side, got {smaller}")
    size = min(size, smaller // 2)
    values = []
    for index in range(subsets):
        one, other = subset(x.shape[0], size, seed, index, 0), subset(y.shape[0], size, seed, index, 1)
        values.append(squared_mmd(x[one], y[other]))
    value = math.fsum(values) / subsets
    spread = math.fsum((v - value) ** 2 for v in values) / (subsets - 1)
    half = 1.96 * math.sqrt(spread * (size / (smaller - size) + 1.0 / subsets))
    settings = f"cubic kernel, {subsets} subsets of {size}"
    return Metric(value, (value - half, value + half), higher_is_better=False, unit="squared MMD", settings=settings)
