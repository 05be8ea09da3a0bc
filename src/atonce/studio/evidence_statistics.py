"""What several runs say together: a mean with its interval over seeds, and the power law through points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

from atonce.core.errors import InputError

Interval = tuple[float, float]


def mean_interval(values: Sequence[float], alone: Interval | None = None) -> tuple[float, Interval | None]:
    """The mean over seeds and its 95 % interval by Student's t.

    Args:
        values: One for each seed, at least one.
        alone: The interval of a single seed's value by resampling, which stands where there is one seed.

    Returns:
        The mean, and its interval where it is known.

    Raises:
        InputError: There is no value.
    """
    if not values:
        raise InputError("a mean needs at least one value, there is none")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, alone
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def power_law(n: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The law y = a n^-b by least squares in logarithms.

    Args:
        n: Where it was measured, positive, at least two different ones.
        y: What was measured there, positive.

    Returns:
        a, b, and the root mean square of what is left of ln y.

    Raises:
        InputError: The points are fewer, not positive, or all at one place.
    """
    if len(n) != len(y) or len(set(n)) < 2 or min(*n, *y) <= 0:
        raise InputError(f"a power law needs two points or more at different positive places, got {list(zip(n, y))}")
    x, z = [math.log(v) for v in n], [math.log(v) for v in y]
    found = statistics.linear_regression(x, z)
    rest = [v - found.intercept - found.slope * u for u, v in zip(x, z, strict=True)]
    return math.exp(found.intercept), -found.slope, math.sqrt(statistics.fmean(r * r for r in rest))


def falling(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points up to the lowest one, where more still helps: those that a power law is fitted to.

    Args:
        points: Places and values.

    Returns:
        Some of them, by place.
    """
    ordered = sorted(points)
    if not ordered:
        return []
    return ordered[: 1 + min(range(len(ordered)), key=lambda i: ordered[i][1])]
