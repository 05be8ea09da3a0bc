"""The picture of a search for time points: every choice that was measured, what was found, and what was used before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from atonce.evaluation.time_points import Point, TimeSearch
from atonce.reports.plots import BLUE, GREEN, GREY, ORANGE

_WORDS = {"frechet": "Fréchet distance", "kid": "kernel distance"}


def search_figure(result: TimeSearch) -> Figure:
    """Quality against each of the time points that were searched.

    Args:
        result: The search.

    Returns:
        A figure with one panel for each time point after the first.
    """
    panels = result.steps - 1
    figure = Figure(figsize=(5.8 * min(panels, 3), 3.9), dpi=170, layout="constrained", facecolor="white")
    made: Sequence[Axes] = np.atleast_1d(figure.subplots(1, panels, sharey=True)).ravel().tolist()
    full = [point for point in result.curve if len(point.sigmas) == result.steps]
    for j, axes in enumerate(made, 1):
        axes.spines[["top", "right"]].set_visible(False)
        _choices(axes, full, j, joined=panels == 1)
        for point, colour, marker, size, label in (
            (result.before, ORANGE, "D", 7, "before"),
            (result.found, GREEN, "*", 14, "found"),
        ):
            value = point.metric.value
            _interval(axes, point, j, colour, 2.0)
            shown = f"{label}: σ = {point.sigmas[j]:.3g}, {value:.3g}"
            axes.plot([point.sigmas[j]], [value], marker, color=colour, markersize=size, linestyle="", label=shown, zorder=4)
        axes.set_xlabel(f"noise level σ of step {j + 1}")
        axes.legend(frameon=False, fontsize=9)
        plain_log(axes, "x")
        if all(point.metric.value > 0 for point in (*full, result.before)):
            plain_log(axes, "y")
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    record = result.record
    made[0].set_ylabel(f"{_WORDS.get(result.name, result.name)}, {record.extractor.name}")
    words = f"{len(result.curve)} choices, {record.samples:,} samples, 95 % intervals"
    if result.gain is not None and not result.sure:
        words += f"\n{result.verdict}, with other noise"
    figure.suptitle(f"{result.method} search of {result.steps} steps: {words}", fontsize=10.5)
    return figure


def plain_log(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers, also where it spans less than a power of ten.

    Args:
        axes: Where.
        which: ``"x"`` or ``"y"``.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _choices(axes: Axes, points: Sequence[Point], j: int, joined: bool) -> None:
    """All choices; where only one point varies they are joined, with the band of their intervals."""
    ordered = sorted(points, key=lambda point: point.sigmas[j])
    x, y = [point.sigmas[j] for point in ordered], [point.metric.value for point in ordered]
    axes.plot(x, y, "o", color=BLUE, markersize=4, linestyle="-" if joined else "", linewidth=1.0, zorder=3)
    intervals = [point.metric.interval for point in ordered]
    if joined and all(interval is not None for interval in intervals):
        low, high = zip(*(interval for interval in intervals if interval is not None), strict=True)
        axes.fill_between(x, low, high, color=GREY, alpha=0.15, linewidth=0)


def _interval(axes: Axes, point: Point, j: int, colour: str, width: float) -> None:
    if point.metric.interval is not None:
        axes.plot([point.sigmas[j]] * 2, point.metric.interval, color=colour, linewidth=width, solid_capstyle="butt", zorder=3)
