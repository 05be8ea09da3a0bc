"""Search for time points: where a sampler with restarts should restart, by any measure of its results (lower is better).

A search chooses from a grid of noise levels. The first point, where sampling starts, is fixed; the others are found. No
choice is measured twice, so a search that is given what an interrupted one had measured continues it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atonce.core.errors import InputError

Times = tuple[float, ...]
Metric = Callable[[Times], float]

_GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0  # the smaller part of a length that is cut by the golden section


@dataclass(frozen=True)
class Evaluation:
    """One choice of time points and what the metric said of it."""

    sigmas: Times
    value: float


@dataclass(frozen=True)
class Found:
    """What a search found and all that it saw on the way.

    Attributes:
        method: Name of the search.
        sigmas: The best time points that were measured, descending.
        value: Their value.
        curve: Every choice that was measured, in order; a greedy search measures shorter ones too.
    """

    method: str
    sigmas: Times
    value: float
    curve: tuple[Evaluation, ...]

    @property
    def evaluations(self) -> int:
        """How many choices were measured."""
        return len(self.curve)


class _Asked:
    """The metric with a memory."""

    def __init__(self, metric: Metric, known: Mapping[Times, float] | None, callback: Callable[[Evaluation], None] | None):
        self.metric, self.known, self.callback = metric, dict(known or {}), callback
        self.seen: dict[Times, float] = {}

    def __call__(self, sigmas: Times) -> float:
        if sigmas not in self.seen:
            value = float(self.known[sigmas] if sigmas in self.known else self.metric(sigmas))
            if not math.isfinite(value):
                shown = ", ".join(f"{sigma:g}" for sigma in sigmas)
                raise InputError(f"the metric of time points {shown} is {value}, must be a finite number: the search stops")
            self.seen[sigmas] = value
            if self.callback is not None:
                self.callback(Evaluation(sigmas, value))
        return self.seen[sigmas]

    def found(self, method: str, steps: int) -> Found:
        best = min((s for s in self.seen if len(s) == steps), key=self.seen.__getitem__)
        return Found(method, best, self.seen[best], tuple(Evaluation(s, v) for s, v in self.seen.items()))


def scan(
    metric: Metric,
    first: float,
    grid: Sequence[float],
    steps: int = 2,
    *,
    known: Mapping[Times, float] | None = None,
    callback: Callable[[Evaluation], None] | None = None,
) -> Found:
    """Measure every choice: m of them for two steps, m (m - 1) / 2 for three, with m points of the grid.

    Args:
        metric: Of descending time points; lower is better.
        first: The first time point.
        grid: Noise levels below ``first``, in any order.
        steps: Time points in all, at least 2.
        known: Values that need not be measured again.
        callback: Told of each choice when its value is there.

    Returns:
        The best.

    Raises:
        InputError: The grid, the steps or a value of the metric cannot be used.
    """
    levels, ask = _levels(first, grid, steps), _Asked(metric, known, callback)
    for rest in itertools.combinations(levels, steps - 1):
        ask((first, *rest))
    return ask.found("scan", steps)


def ternary(
    metric: Metric,
    first: float,
    grid: Sequence[float],
    steps: int = 2,
    *,
    known: Mapping[Times, float] | None = None,
    callback: Callable[[Evaluation], None] | None = None,
) -> Found:
    """The greedy search of Song et al. 2023 (section 3 and its code): one point after the other, by thirds of an index.

    Positions count from 0, the point before, over the grid in descending order to m + 1, the end of the trajectory. With
    [l, r] between two fixed positions, l + (r - l) / 3 and r - (r - l) / 3 (rounded down) are measured, and [l, m2] is kept
    where m1 is strictly better, else [m1, r], until r - l is below 3. Then the positions l to r that are not fixed ones
    are compared. It finds the best of the grid where the metric falls to it and rises after it, strictly.

    Each further point is looked for below the last one, with those before it held as they are. Arguments, result and errors
    as in :func:`scan`.
    """
    levels, ask = _levels(first, grid, steps), _Asked(metric, known, callback)
    chosen: Times = (first,)
    for count in range(2, steps + 1):
        low, end = _position(levels, chosen[-1]), len(levels) + 1 - (steps - count)
        value = _line(ask, levels, chosen)
        left, right = low, end
        while right - left >= 3:
            m1, m2 = int(left + (right - left) / 3), int(right - (right - left) / 3)
            if value(m1) < value(m2):
                right = m2
            else:
                left = m1
        survivors = range(max(left, low + 1), min(right, end - 1) + 1)
        chosen = (*chosen, levels[min(survivors, key=value) - 1])
    return ask.found("ternary", steps)


def golden(
    metric: Metric,
    first: float,
    grid: Sequence[float],
    steps: int = 2,
    *,
    start: Sequence[float] | None = None,
    coarse: int = 5,
    sweeps: int = 10,
    known: Mapping[Times, float] | None = None,
    callback: Callable[[Evaluation], None] | None = None,
) -> Found:
    """Greedy by golden section, then coordinate descent; the grid may be as fine as one likes.

    Each point is bracketed by a coarse scan of the levels below the last point, evenly spaced in the grid, so that a metric
    with several valleys or some noise does not lead astray at once. The golden section then cuts the bracket (Kiefer 1953),
    keeping the best point seen inside, until both its neighbours are worse; that costs about
    ``coarse`` + log(bracket) / log(1.618) values. With three points or more :func:`coordinate` goes on from there, or from
    ``start`` where that is better: what is best for two steps may be a bad place to go on from.

    Args:
        metric: Of descending time points; lower is better.
        first: The first time point.
        grid: Noise levels below ``first``, in any order; the search works by their index, so spread them evenly in ln sigma.
        steps: Time points in all, at least 2.
        start: Time points to compare with what the greedy part found, for three steps or more.
        coarse: Points of the coarse scan, at least 1.
        sweeps: Sweeps of coordinate descent at most.
        known: Values that need not be measured again.
        callback: Told of each choice when its value is there.

    Returns:
        The best.

    Raises:
        InputError: The grid, the steps or a value of the metric cannot be used.
    """
    levels, ask = _levels(first, grid, steps), _Asked(metric, known, callback)
    if coarse < 1:
        raise InputError(f"coarse is {coarse}, the coarse scan needs at least 1 point")
    chosen: Times = (first,)
    for count in range(2, steps + 1):
        low, end = _position(levels, chosen[-1]), len(levels) + 1 - (steps - count)
        value = _line(ask, levels, chosen)
        cells = min(coarse, end - low - 1)
        # The middles of equal parts, so that no value is spent on the ends, which are seldom good.
        places = [low + 1 + int((i + 0.5) * (end - low - 1) / cells) for i in range(cells)]
        best = min(range(cells), key=lambda i: value(places[i]))
        chosen = (*chosen, levels[_section(value, [low, *places, end][best : best + 3]) - 1])
    if start is not None and steps > 2:
        chosen = min(chosen, _snapped(levels, (first, *(float(s) for s in start[1:]))), key=ask)
    return _descend(ask, levels, chosen, sweeps, "golden")


def coordinate(
    metric: Metric,
    start: Sequence[float],
    grid: Sequence[float],
    *,
    sweeps: int = 10,
    known: Mapping[Times, float] | None = None,
    callback: Callable[[Evaluation], None] | None = None,
) -> Found:
    """Coordinate descent from given time points: each is moved between its neighbours, in turn, until no move helps.

    A point is bracketed by steps that double for as long as they improve, and the bracket is cut by the golden section.

    Args:
        metric: Of descending time points; lower is better.
        start: Where to begin, descending; the first stays as it is, the others take the nearest free places of the grid.
        grid: Noise levels below the first, in any order.
        sweeps: Sweeps at most.
        known: Values that need not be measured again.
        callback: Told of each choice when its value is there.

    Returns:
        The best.

    Raises:
        InputError: The grid, the start or a value of the metric cannot be used.
    """
    times = tuple(float(s) for s in start)
    levels = _levels(times[0] if times else 0.0, grid, len(times))
    return _descend(_Asked(metric, known, callback), levels, _snapped(levels, times), sweeps, "coordinate")


def _descend(ask: _Asked, levels: Times, chosen: Times, sweeps: int, method: str) -> Found:
    value = ask(chosen)
    for _ in range(sweeps if len(chosen) > 2 or method == "coordinate" else 0):
        before = value
        for j in range(1, len(chosen)):
            low = _position(levels, chosen[j - 1]) if j > 1 else 0
            end = _position(levels, chosen[j + 1]) if j + 1 < len(chosen) else len(levels) + 1
            at = _line(ask, levels, chosen[:j], chosen[j + 1 :])
            place = _section(at, _bracket(at, low, _position(levels, chosen[j]), end))
            chosen = (*chosen[:j], levels[place - 1], *chosen[j + 1 :])
        value = ask(chosen)
        if value >= before:
            break
    return ask.found(method, len(chosen))


def _line(ask: _Asked, levels: Times, before: Times, after: Times = ()) -> Callable[[int], float]:
    """The metric as a function of the position of one point, the others held."""
    return lambda position: ask((*before, levels[position - 1], *after))


def _snapped(levels: Times, times: Times) -> Times:
    """Time points moved to the nearest places of the grid that leave room for those after them."""
    if any(a <= b for a, b in itertools.pairwise(times)):
        raise InputError(f"the time points to start from are {times}: they must descend")
    chosen, last = times[:1], 0
    for i, sigma in enumerate(times[1:], 1):
        free = range(last + 1, len(levels) + 2 - (len(times) - i))
        last = min(free, key=lambda p: abs(math.log(levels[p - 1] / sigma)))
        chosen = (*chosen, levels[last - 1])
    return chosen


def _bracket(value: Callable[[int], float], low: int, here: int, end: int) -> list[int]:
    """A bracket around a place: on each side up to the first place that is no better, in steps that double."""
    for sign in (-1, 1):
        step, behind = 1, None
        while low < here + sign * step < end and value(here + sign * step) < value(here):
            behind, here, step = here, here + sign * step, 2 * step
        beyond = min(max(here + sign * step, low), end)
        if behind is not None:  # what was left behind closes the other side
            return sorted([behind, here, beyond])
        low, end = (beyond, end) if sign < 0 else (low, beyond)
    return [low, here, end]


def _section(value: Callable[[int], float], bracket: Sequence[int]) -> int:
    """Golden section over whole numbers: from a < b < c with b best of the three to a b whose two neighbours are no better.

    The values at a and c are never asked for, so they may stand for the ends.
    """
    a, b, c = bracket
    while c - a > 2:
        above = c - b >= b - a
        probe = b + max(1, round(_GOLDEN * (c - b))) if above else b - max(1, round(_GOLDEN * (b - a)))
        if value(probe) < value(b):
            a, b, c = (b, probe, c) if above else (a, probe, b)
        elif above:
            c = probe
        else:
            a = probe
    return b


def _position(levels: Times, sigma: float) -> int:
    """Position of a level in the descending grid, counted from 1; 0 for what lies above all of it."""
    return len(levels) - bisect.bisect_left(levels[::-1], sigma) if sigma <= levels[0] else 0


def _levels(first: float, grid: Sequence[float], steps: int) -> Times:
    """The grid, descending and checked."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
        raise InputError(f"steps is {steps!r}: a search needs at least 2, since the first time point is fixed")
    levels = tuple(sorted({float(s) for s in grid}, reverse=True))
    if not all(0 < s < first < math.inf for s in levels):
        shown = f"{levels[-1]:g} to {levels[0]:g}"
        raise InputError(f"the grid goes from {shown}: its noise levels must be above 0 and below the first point, {first:g}")
    if len(levels) < steps - 1:
        raise InputError(f"the grid has {len(levels)} noise levels: {steps} steps need at least {steps - 1} below the first")
    return levels
