"""Tables and pictures of what cells measured: means over seeds with their intervals, "not run" where there is nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cell, results, summary, text_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
NAMES = {"digits": "digits, 8x8", "fashion-14": "Fashion-MNIST, 14x14", "fashion-28": "Fashion-MNIST, 28x28"}
Value = tuple[float, tuple[float, float] | None]


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with ``columns`` axes side by side, without pyplot's global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def measured(table: str, data: str, cell: Cell, sampling: str, metric: str = "frechet") -> Value | None:
    """Mean and interval of a cell, or None where it is not measured."""
    return summary(results(table, data, cell.name), sampling, metric)


def seeds_text(table: str, data: str, cells: Sequence[Cell]) -> str:
    """How many seeds stand behind a table."""
    counts = sorted({len(results(table, data, cell.name)) for cell in cells} - {0})
    return "nothing is measured yet" if not counts else f"{' to '.join(map(str, counts))} seed{'s' if counts != [1] else ''}"


def bars(axes: Any, names: Sequence[str], values: Sequence[Value | None], title: str, base: float | None = None) -> None:
    """Horizontal dots with intervals, one line for each name, on a logarithmic axis; ``base`` is drawn as a line."""
    for row, value in enumerate(values):
        if value is None:
            axes.text(
                0.99, row, "not run", transform=axes.get_yaxis_transform(), va="center", ha="right", color=GREY, fontsize=8
            )
            continue
        mean, interval = value
        if interval is not None:
            low = max(interval[0], mean / 20)
            axes.plot([low, interval[1]], [row, row], color=BLUE, linewidth=1.6, solid_capstyle="butt")
        axes.plot([mean], [row], "o", color=BLUE, markersize=5)
    if base is not None:
        axes.axvline(base, color=ORANGE, linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    if any(v is not None for v in values):
        plain_log(axes.xaxis, axes.set_xscale)
    axes.tick_params(axis="x", labelsize=8, which="both")
    axes.set_title(title, fontsize=9)


def plain_log(axis: Any, set_scale: Any) -> None:
    """A logarithmic axis with numbers people read: 1, 2, 5, 10."""
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def power_law(n: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The law y = a n^-b by least squares in logarithms.

    Returns:
        a, b and the root-mean-square of the residuals of ln y.
    """
    x, z = [math.log(v) for v in n], [math.log(v) for v in y]
    mx, mz = sum(x) / len(x), sum(z) / len(z)
    slope = sum((p - mx) * (q - mz) for p, q in zip(x, z, strict=True)) / sum((p - mx) ** 2 for p in x)
    a = math.exp(mz - slope * mx)
    rest = [q - math.log(a) - slope * p for p, q in zip(x, z, strict=True)]
    return a, -slope, math.sqrt(sum(r * r for r in rest) / len(rest))


def cell_text(value: Value | None) -> str:
    """As in a table."""
    return text_of(value)
