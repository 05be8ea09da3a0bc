"""Intervals by resampling: the bootstrap over items, and the jackknife over blocks of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from scipy import stats
from torch import Tensor

from atonce.core.records import Metric
from atonce.core.streams import Stream, uniform

RESAMPLES = 200
_AT_ONCE = 1 << 20  # random numbers


def resamples(n: int, seed: int, step: int, first: int = 0) -> Iterator[Tensor]:
    """Draws of n out of n items with repetition, for the bootstrap (Efron 1979).

    Args:
        n: Number of items.
        seed: Of the resampling.
        step: A number that separates uses of one seed.
        first: Number of the first draw; other numbers give other draws.

    Yields:
        200 times positions int64 [n], a function of the arguments alone.
    """
    numbers = torch.arange(first, first + RESAMPLES)
    for part in numbers.split(max(1, _AT_ONCE // n)):
        u = uniform(seed, part, n, Stream.EVALUATE, step)
        yield from (u * n).to(torch.int64).clamp(max=n - 1)


def percentile_interval(values: Sequence[float] | Tensor) -> tuple[float, float]:
    """The 2.5 % and the 97.5 % quantile of what resamples gave: the percentile bootstrap's 95 % interval."""
    found = torch.as_tensor(values, dtype=torch.float64)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): the true shares for which the found one is no rarer than 1 in 20.

    It has a width where every item is alike, too: nothing found among n says that the share is below about 3.84 / (n + 3.84).

    Args:
        successes: Items that count.
        n: All items, at least 1.

    Returns:
        The interval, inside 0 to 1; it holds successes / n.
    """
    z2, p = float(stats.norm.ppf(0.975)) ** 2, successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def mean_metric(
    items: Tensor,
    seed: int,
    step: int,
    settings: str = "",
    unit: str = "share",
    higher_is_better: bool | None = True,
    count: int | None = None,
) -> Metric:
    """The mean of per-item values with a percentile bootstrap interval.

    Items that are all alike resample to themselves, and the bootstrap would claim to be certain. Shares (``unit="share"``) of
    none or all items have Wilson's interval then, other means none.

    Args:
        items: One value per item, [n].
        seed: Of the resampling.
        step: A number that separates uses of one seed.
        settings: See :class:`Metric`.
        unit: See :class:`Metric`.
        higher_is_better: See :class:`Metric`.
        count: See :class:`Metric`.

    Returns:
        The metric with its 95 % interval over 200 resamples.
    """
    values = items.to(torch.float64)
    if bool((values == values[0]).all()):
        value, n = float(values[0]), len(values)
        certain = wilson_interval(value * n, n) if unit == "share" and value in (0.0, 1.0) else None
        return Metric(value, certain, higher_is_better, unit, settings, count)
    means = [values[rows].mean() for rows in resamples(values.shape[0], seed, step)]
    interval = percentile_interval(torch.stack(means))
    return Metric(float(values.mean()), interval, higher_is_better, unit, settings, count)


def jackknife_error(left_out: Sequence[float]) -> float:
    """Standard error from values that each leave out one of K equal blocks (Tukey 1958): sqrt((K-1)/K sum (v - mean)^2)."""
    k = len(left_out)
    centre = math.fsum(left_out) / k
    return math.sqrt((k - 1) / k * math.fsum((value - centre) ** 2 for value in left_out))


def jackknife_interval(value: float, left_out: Sequence[float], low: float = -math.inf) -> tuple[float, float]:
    """The value ± t s: s the jackknife's standard error, t Student's 97.5 % point with K - 1 degrees of freedom.

    Args:
        value: The value of everything.
        left_out: The values without each of the K blocks.
        low: The interval does not reach below it.

    Returns:
        The 95 % interval.
    """
    half = float(stats.t.ppf(0.975, len(left_out) - 1)) * jackknife_error(left_out)
    return max(low, value - half), value + half
