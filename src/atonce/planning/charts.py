"""Pictures of a plan and of a return: bars that can be compared, and money over days."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atonce.planning.estimate import bytes_text, duration_text, significant
from atonce.planning.plan import Plan
from atonce.planning.returns import Return

# Okabe and Ito (2008): told apart by people who see colours differently.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#595959"
_DPI = 170


def plan_figure(made: Plan) -> Figure:
    """Time and memory of each preset; lines are the limits.

    Args:
        made: The plan.

    Returns:
        The figure.
    """
    runs = made.predictions
    names = [f"{run.method}, {run.network}\n{run.images:,} images" for run in runs]
    figure = _figure(7.4, 1.2 + 0.55 * len(runs))
    left, right = figure.subplots(1, 2, sharey=True)
    advised = {(run.method, run.network) for run in made.advised.runs}
    colours = [_BLUE if (run.method, run.network) in advised else "#9BC4DE" for run in runs]
    hours = [run.time.value / 3600 for run in runs]
    scale, unit = (1.0, "h") if max(hours) >= 1.5 else (60.0, "min")
    ends = [
        [(v.value - v.low) / 3600 * scale for v in (run.time for run in runs)],
        [(run.time.high - run.time.value) / 3600 * scale for run in runs],
    ]
    left.barh(names, [h * scale for h in hours], color=colours, xerr=ends, error_kw={"ecolor": _GREY, "capsize": 3})
    for i, run in enumerate(runs):
        left.annotate(
            duration_text(run.time.value),
            (run.time.high / 3600 * scale, i),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    if made.wish.limit is not None:
        left.axvline(made.wish.limit / 3600 * scale, color=_ORANGE, linestyle="--")
        left.annotate(
            "limit", (made.wish.limit / 3600 * scale, -0.55), (3, 0), textcoords="offset points", color=_ORANGE, fontsize=9
        )
    left.set_xlabel(f"time ({unit})")
    left.set_xlim(0, 1.3 * max([run.time.high / 3600 * scale for run in runs] + [(made.wish.limit or 0) / 3600 * scale]))
    left.invert_yaxis()
    right.barh(names, [run.pressing.value / 2**20 for run in runs], color=colours)
    for i, run in enumerate(runs):
        right.annotate(
            bytes_text(run.pressing.value),
            (run.pressing.value / 2**20, i),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    right.set_xlabel("peak memory (MiB)")
    right.set_xlim(0, 1.3 * max(run.pressing.value / 2**20 for run in runs))
    for axes in (left, right):
        _tidy(axes)
    figure.suptitle(f"{made.data.name}: advised is {made.advised.name} (dark)", fontsize=11)
    return figure


def return_figure(found: Return) -> Figure:
    """Cost and energy of 1,000 images, and what has been paid after so many days.

    Args:
        found: The comparison.

    Returns:
        The figure.
    """
    figure = _figure(7.4, 6.2)
    axes = figure.subplot_mosaic([["money", "energy"], ["days", "days"]], height_ratios=[1, 1.6])
    terms, names = found.terms, [textwrap.fill(way.name, 18) for way in (found.before.way, found.after.way)]
    for name, values, label in (
        ("money", [found.before.per_1000, found.after.per_1000], f"{terms.currency} for 1,000 images"),
        ("energy", [found.before.kwh_per_1000, found.after.kwh_per_1000], "kWh for 1,000 images"),
    ):
        axes[name].barh(names, values, color=[_ORANGE, _BLUE])
        for i, value in enumerate(values):
            axes[name].annotate(
                f"{significant(value):g}", (value, i), (5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes[name].set_xlim(0, 1.3 * max(values) or 1)
        axes[name].set_xlabel(label)
        axes[name].invert_yaxis()
        _tidy(axes[name])
    axes["energy"].set_yticklabels([])
    _days(axes["days"], found)
    return figure


def _days(axes: Axes, found: Return) -> None:
    even = found.break_even_days
    end = min(3650.0, max(7.0, 2 * even)) if even is not None else 365.0
    for cost, once, colour in ((found.before, 0.0, _ORANGE), (found.after, found.terms.once, _BLUE)):
        axes.plot([0, end], [once, once + end * cost.per_day], color=colour, label=cost.way.name, linewidth=2)
    if even is not None and 0 < even <= end:
        paid = even * found.before.per_day
        axes.plot([even], [paid], marker="o", color=_GREY)
        axes.annotate(
            f"even after {duration_text(even * 86400)}", (even, paid), (8, -14), textcoords="offset points", fontsize=9.5
        )
    elif even is None:
        axes.annotate("it does not pay back", (0.5, 0.9), xycoords="axes fraction", ha="center", fontsize=9.5)
    axes.set_xlabel("days")
    axes.set_ylabel(f"paid so far ({found.terms.currency})")
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
