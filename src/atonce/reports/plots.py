"""Plots of a run from the lines of its log: what was learnt, how well, on which noise levels.

Figures are made through matplotlib's objects, never through pyplot, so nothing global is touched. Colours are those of Okabe
and Ito (2008) and the viridis map, which people who see colours differently can tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from atonce.noise.draws import lognormal_interval_pmf, uniform_interval_pmf
from atonce.noise.karras import karras_grid
from atonce.training.recipe import Recipe
from atonce.training.schedule import stage_at

Lines = Sequence[Mapping[str, Any]]
Array = NDArray[np.float64]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
_WIDTH = 5.8  # inches; narrow, so that letters stay readable where a phone shows the whole width
_DPI = 170
_IMAGES = "images seen (thousands)"


def losses(log: Lines, recipe: Recipe) -> Figure:
    """Loss and pair distance against images seen, with the moments at which N doubles.

    Args:
        log: Lines of the run's log.
        recipe: Its resolved recipe.

    Returns:
        The figure.
    """
    figure, (top, bottom) = _figure(2, 5.2)
    lines = _training(log)
    x = _thousands(lines)
    for axes, name, label, colour in ((top, "loss", "loss", BLUE), (bottom, "distance", "pair distance", ORANGE)):
        axes.plot(x, _column(lines, name), color=colour, linewidth=1.3, marker="." if len(x) < 3 else "")
        _log_axis(axes)
        axes.set_ylabel(label)
        _mark_stages(axes, recipe, words=axes is top)
    top.tick_params(labelbottom=False)
    bottom.set_xlabel(_IMAGES)
    return figure


def quality(log: Lines, reference: float, final: tuple[float, float] | None = None, limit: float | None = None) -> Figure:
    """The monitored Fréchet distance against images seen, beside that between halves of the data.

    Args:
        log: Lines of the run's log.
        reference: Distance between random halves of the data.
        final: Images seen (thousands) and distance of the samples that were judged at the end.
        limit: Largest distance that is asked of those.

    Returns:
        The figure.
    """
    figure, (axes,) = _figure(1, 3.6)
    lines = evaluations(log)
    x, y = _thousands(lines), np.array([distance_of(line) for line in lines])
    axes.plot(x, y, color=BLUE, marker="o", markersize=4.5, linewidth=1.3, label="during training, 1,000 samples")
    if final is not None:
        axes.plot(*final, color=ORANGE, marker="*", markersize=13, linestyle="", label="at the end, 1,797 samples")
    if limit is not None:
        axes.axhline(limit, color=GREY, linestyle=":", linewidth=1.3, label=f"limit of the demo ({limit:.2f})")
    axes.axhline(
        reference, color=GREEN, linestyle="--", linewidth=1.6, label=f"two halves of the real digits ({reference:.2f})"
    )
    _log_axis(axes)
    axes.set_xlabel(_IMAGES)
    axes.set_ylabel("Fréchet distance of pixels")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def curriculum(recipe: Recipe) -> Figure:
    """How many points the grid of noise levels has over the run, and which levels are trained how often.

    Args:
        recipe: A resolved recipe with a grid.

    Returns:
        The figure.
    """
    figure, (top, bottom) = _figure(2, 5.8, share=False)
    stages = grid_stages(recipe)
    starts = [start / 1000 for start, _ in stages]
    points = [n for _, n in stages]
    top.step([*starts, recipe.images / 1000], [*points, points[-1]], where="post", color=BLUE, linewidth=2)
    for start, n in zip(starts, points, strict=True):
        top.annotate(str(n), (start, n), (5, 4), textcoords="offset points", fontsize=9.5)
    top.set_yscale("log", base=2)
    top.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    top.set_ylim(points[0] / 1.3, points[-1] * 1.6)
    top.set_xlabel(_IMAGES)
    top.set_ylabel("grid points N")
    chosen = sorted({0, len(stages) // 2, len(stages) - 1})
    for colour, width, i in zip((ORANGE, GREEN, BLUE), (2.2, 1.8, 1.4), chosen, strict=False):
        grid = karras_grid(points[i], recipe.sigma_min, recipe.sigma_max, recipe.rho)
        by_interval = recipe.pairs == "lognormal-intervals"
        pmf = lognormal_interval_pmf(grid, recipe.P_mean, recipe.P_std) if by_interval else uniform_interval_pmf(points[i])
        # Per unit of ln(sigma), so that grids of different fineness can be laid over each other.
        density = (pmf / torch.diff(torch.log(grid))).numpy()
        bottom.stairs(density, grid.numpy(), color=colour, linewidth=width, label=f"N = {points[i]}", baseline=None)
    bottom.set_xscale("log")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("noise level σ")
    bottom.set_ylabel("share of training\nper unit of ln σ")
    bottom.legend(frameon=False, fontsize=9.5)
    return figure


def by_sigma(log: Lines, recipe: Recipe) -> Figure:
    """Pair distance and loss by noise level over the run, and the norm of the gradient by noise level.

    Args:
        log: Lines of the run's log.
        recipe: Its resolved recipe.

    Returns:
        The figure.
    """
    figure, (first, second, third) = _figure(3, 9.0, share=False)
    lines = _training(log)
    edges = _sigma_edges(recipe, len(lines[0]["count_by_sigma"]))
    counts = np.array([line["count_by_sigma"] for line in lines], float)
    times = np.array([0.0, *_thousands(lines)])
    for axes, name, label in ((first, "distance_by_sigma", "pair distance"), (second, "loss_by_sigma", "loss")):
        values = np.where(counts > 0, np.array([line[name] for line in lines], float), np.nan)
        shown = values[np.isfinite(values) & (values > 0)]
        low, high = (shown.min(), shown.max()) if shown.size else (0.1, 1.0)
        norm = LogNorm(low, max(high, low * 1.01))
        image = axes.pcolormesh(times, edges, np.ma.masked_invalid(values).T, norm=norm, cmap="viridis", rasterized=True)
        axes.set_facecolor("#d9d9d9")  # where no image fell
        axes.set_yscale("log")
        axes.set_ylabel("noise level σ")
        axes.set_xlabel(_IMAGES)
        figure.colorbar(image, ax=axes, label=label, pad=0.02)
    third.set_xscale("log")
    third.set_yscale("log")
    centres = np.sqrt(edges[1:] * edges[:-1])
    measured = [line for line in evaluations(log) if "grad_norm_by_sigma" in line]
    colours = colormaps["viridis"](np.linspace(0, 0.92, max(len(measured), 2)))
    for i, line in enumerate(measured):
        norms = np.array([math.nan if v is None else v for v in line["grad_norm_by_sigma"]], float)
        seen = np.isfinite(norms)  # a bin without images is bridged
        named = f"{line['images'] / 1000:,.4g} thousand images" if i in (0, len(measured) - 1) else None
        third.plot(centres[seen], norms[seen], color=colours[i], marker="o", markersize=3, linewidth=1.4, label=named)
    third.set_xlim(edges[0], edges[-1])
    third.set_xlabel("noise level σ")
    third.set_ylabel("norm of the gradient")
    third.grid(alpha=0.25, linewidth=0.6)
    if measured:
        third.legend(frameon=False, fontsize=9.5)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": "atonce"})
    return content.getvalue()


def evaluations(log: Lines) -> list[Mapping[str, Any]]:
    """The lines of a log that hold a monitored distance."""
    return [line for line in log if _distance_name(line) is not None]


def distance_of(line: Mapping[str, Any]) -> float:
    """The monitored Fréchet distance of one line of :func:`evaluations`."""
    return float(line[str(_distance_name(line))])


def grid_stages(recipe: Recipe) -> list[tuple[int, int]]:
    """(images seen at its start, grid points) of each stage of the curriculum that the run comes to."""
    stages: list[tuple[int, int]] = []
    for step in range(recipe.steps):
        points = stage_at(recipe, step * recipe.batch).points
        if not stages or points != stages[-1][1]:
            stages.append((step * recipe.batch, points))
    return stages


def _distance_name(line: Mapping[str, Any]) -> str | None:
    return next((name for name in line if name.startswith("frechet-")), None)


def _training(log: Lines) -> list[Mapping[str, Any]]:
    return [line for line in log if "loss" in line]


def _thousands(lines: Lines) -> Array:
    return np.array([line["images"] for line in lines], float) / 1000


def _column(lines: Lines, name: str) -> Array:
    return np.array([line[name] for line in lines], float)


def _sigma_edges(recipe: Recipe, bins: int) -> Array:
    """Edges of the noise bins of the log: equal steps of ln(sigma)."""
    return np.exp(np.linspace(math.log(recipe.sigma_min), math.log(recipe.sigma_max), bins + 1))


def _figure(rows: int, height: float, share: bool = True) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    made = np.atleast_1d(figure.subplots(rows, 1, sharex=share and rows > 1))
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=10)
        axes.xaxis.label.set_fontsize(10.5)
        axes.yaxis.label.set_fontsize(10.5)
    return figure, list(made)


def _log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, also where it spans less than a power of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def _mark_stages(axes: Axes, recipe: Recipe, words: bool) -> None:
    for start, points in grid_stages(recipe):
        if start:
            axes.axvline(start / 1000, color=GREY, linestyle=":", linewidth=1)
        if words:
            place = axes.get_xaxis_transform()  # x in data, y in parts of the axes
            axes.text(start / 1000, 1.01, f" N={points}", transform=place, fontsize=9, color=GREY, va="bottom")
