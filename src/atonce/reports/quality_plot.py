"""The picture of a comparison of quality: distance against network calls, and against seconds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atonce.reports.plots import BLUE, GREEN, GREY, ORANGE
from atonce.reports.quality import QualityPoint
from atonce.reports.search_plot import plain_log

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)  # Okabe and Ito (2008), and grey
_MARKERS = {"restart": "o", "heun": "s", "euler": "^"}


def quality_figure(points: Sequence[QualityPoint]) -> Figure:
    """Two panels: the distance against calls and against seconds for each image, one line for each model and sampler.

    Args:
        points: What was measured, at least one.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(9.6, 4.6), dpi=150, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    lines: dict[tuple[str, str], list[QualityPoint]] = {}
    for point in points:
        lines.setdefault((point.model, point.way.sampler), []).append(point)
    for i, ((model, sampler), line) in enumerate(lines.items()):
        colour, label = _COLOURS[i % len(_COLOURS)], f"{model}, {sampler}"
        _draw(left, [float(point.calls) for point in line], line, colour, label)
        _draw(right, [1000 * point.seconds for point in line], line, colour, label)
    positive = all(point.record.metrics["frechet"].value > 0 for point in points)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        plain_log(axes, "x")
        if positive:
            plain_log(axes, "y")
        axes.grid(alpha=0.25, linewidth=0.6)
    left.set_xlabel("network calls for each image")
    right.set_xlabel("milliseconds for each image")
    record = points[0].record
    left.set_ylabel(f"Fréchet distance, {record.extractor.name}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), frameon=False, fontsize=9)
    note = f"{record.samples:,} samples a point, 95 % intervals; {points[0].settings['machine']}"
    figure.supxlabel(note, fontsize=8.5, color=GREY)
    return figure


def _draw(axes: Axes, x: Sequence[float], line: Sequence[QualityPoint], colour: str, label: str) -> None:
    order = sorted(range(len(x)), key=lambda i: x[i])
    metrics = [line[i].record.metrics["frechet"] for i in order]
    marker = _MARKERS.get(line[0].way.sampler, "o")
    axes.plot([x[i] for i in order], [m.value for m in metrics], marker, ls="-", color=colour, ms=5, lw=1.3, label=label)
    for i, metric in zip(order, metrics, strict=True):
        if metric.interval is not None:
            # On a logarithmic axis an interval that reaches 0 would end nowhere.
            low = max(metric.interval[0], metric.value / 20) if metric.value > 0 else metric.interval[0]
            axes.plot([x[i], x[i]], [low, metric.interval[1]], color=colour, linewidth=1.6, solid_capstyle="butt")
