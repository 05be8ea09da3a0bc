"""Time points: which sigmas a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from atonce.core.checks import numbers, whole
from atonce.core.errors import InputError
from atonce.noise.karras import karras_grid

# The published second time point of iCT on CIFAR-10 is 0.821 at sigma_data = 0.5 (facts also used by ECT and TCM).
_SECOND = 0.821 / 0.5
_LAST = 0.3 / 0.5  # restarts below this change little: the image is already decided


def restart_times(steps: int, sigma_max: float, sigma_data: float) -> list[float]:
    """Default starting points of a consistency model's intervals, descending from ``sigma_max``.

    One step starts at ``sigma_max``; the second of two at 0.821 (for sigma_data = 0.5, scaled with it), as published for iCT.
    For more, the restarts are spread evenly in ln sigma between about 5 sigma_data and 0.6 sigma_data.

    Args:
        steps: Number of intervals, 1 or more.
        sigma_max: Largest noise level of the model.
        sigma_data: Standard deviation of the data.

    Returns:
        ``steps`` noise levels.

    Raises:
        InputError: ``steps`` is below 1.
    """
    check_steps(steps)
    if steps == 1:
        return [sigma_max]
    if steps == 2:
        return [sigma_max, min(_SECOND * sigma_data, sigma_max / 2)]
    high, low = math.log(min(5.0 * sigma_data, sigma_max / 2)), math.log(min(_LAST * sigma_data, sigma_max / 4))
    return [sigma_max] + [math.exp(high + (low - high) * i / (steps - 2)) for i in range(steps - 1)]


def jump_times(steps: int, sigma_max: float) -> list[float]:
    """Default starting points of a flow map's jumps: even in flow time sigma / (1 + sigma), descending from ``sigma_max``.

    Args:
        steps: Number of jumps, 1 or more.
        sigma_max: Largest noise level of the model.

    Returns:
        ``steps`` noise levels.

    Raises:
        InputError: ``steps`` is below 1.
    """
    check_steps(steps)
    first = sigma_max / (1 + sigma_max)
    times = [first * (1 - i / steps) for i in range(steps)]
    return [sigma_max, *(t / (1 - t) for t in times[1:])]


def denoiser_times(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """End points of a denoiser's intervals: the Karras grid of ``steps`` points, descending, then 0 (EDM, equation 5).

    Args:
        steps: Number of intervals, 1 or more.
        sigma_min: Smallest noise level above 0.
        sigma_max: Largest noise level.
        rho: Warp of the grid.

    Returns:
        ``steps`` + 1 noise levels, the last one 0.

    Raises:
        InputError: ``steps`` is below 1.
    """
    check_steps(steps)
    if steps == 1:
        return [sigma_max, 0.0]
    return [float(s) for s in karras_grid(steps, sigma_min, sigma_max, rho).flip(0)] + [0.0]


def check_steps(steps: int) -> None:
    """Refuse a number of steps below 1.

    Args:
        steps: Number of intervals.

    Raises:
        InputError: ``steps`` is not a whole number of at least 1.
    """
    whole(steps, "steps", 1)


def check_times(sigmas: Sequence[float] | Tensor, sigma_end: float, sigma_max: float) -> list[float]:
    """The starting points of the intervals that a user gave, checked.

    Args:
        sigmas: Descending noise levels; a closing ``sigma_end`` or 0 is accepted and dropped.
        sigma_end: Where the model's trajectories end.
        sigma_max: The largest noise level the model knows.

    Returns:
        The starting points as floats.

    Raises:
        InputError: There are none, they do not descend, or one is outside (sigma_end, sigma_max].
    """
    times = numbers(sigmas, "sigmas")
    if len(times) > 1 and times[-1] in (0.0, sigma_end):
        times = times[:-1]
    if not times:
        raise InputError("sigmas is empty: give at least one noise level")
    if any(not sigma_end < s <= sigma_max * (1 + 1e-6) for s in times):
        raise InputError(f"sigmas is {times}: each must be above {sigma_end:g} and at most {sigma_max:g}")
    if any(a <= b for a, b in zip(times, times[1:], strict=False)):
        raise InputError(f"sigmas is {times}: they must descend")
    return times
