"""Plots of an inspection: curves over sigma, distances to nearest training images, and pictures of what noise decides."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from atonce.core.images import tile
from atonce.reports.inspection_measures import Curve, Curves, Neighbours, Sensitivity
from atonce.reports.inspection_paths import TeacherPath
from atonce.reports.plots import BLUE, GREY, ORANGE

_SIGMA = "noise level σ"


def gap(curves: Curves, kind: str) -> Figure:
    """The consistency gap over sigma with standard errors, beside the exact one of a Gaussian.

    Args:
        curves: What was measured.
        kind: Of the model.

    Returns:
        The figure.
    """
    figure, axes = _axes()
    exact = "denoiser" if kind == "denoiser" else "consistency function"
    _curve(axes, curves.gap, BLUE, "this model")
    _curve(axes, curves.gap_exact, GREY, f"exact {exact} of a fitted Gaussian", "--")
    axes.set_ylabel("change of the answer (rms per pixel)")
    return _finished(figure, axes)


def error(curves: Curves) -> Figure:
    """How far the answer is from the image under the noise, beside the best linear estimate.

    Args:
        curves: What was measured.

    Returns:
        The figure.
    """
    figure, axes = _axes()
    _curve(axes, curves.error, BLUE, "this model")
    _curve(axes, curves.error_linear, ORANGE, "best linear estimate of the mean (Wiener)", "--")
    if curves.error_exact is not None:
        _curve(axes, curves.error_exact, GREY, "exact consistency function of a fitted Gaussian", ":")
    axes.set_ylabel("distance to the image (rms per pixel)")
    return _finished(figure, axes)


def teacher(path: TeacherPath) -> Figure:
    """How far the student's answers along the teacher's trajectories are from their ends.

    Args:
        path: The trajectories.

    Returns:
        The figure.
    """
    figure, axes = _axes()
    _curve(axes, Curve(path.sigmas, path.distances, path.errors), BLUE, "this model")
    # At the last level the solver's step to 0 is the estimate itself: no distance, and no place on a logarithmic axis.
    seen = [(s, d) for s, d in zip(path.sigmas, path.estimates, strict=True) if d > 1e-9]
    axes.plot(*zip(*seen, strict=True), color=ORANGE, linestyle="--", linewidth=1.5, label="the teacher in one call")
    axes.set_ylabel("distance to the end (rms per pixel)")
    return _finished(figure, axes)


def distances(found: Neighbours) -> Figure:
    """Distributions of the distance to the nearest training image.

    Args:
        found: The distances.

    Returns:
        The figure.
    """
    figure, axes = _axes(3.1)
    ours, theirs = found.all_samples.numpy(), found.real.numpy()
    high = max(ours.max(), theirs.max())
    bins = np.linspace(0.0, high * 1.02 if high > 0 else 1.0, 31)
    real = "held-out real images" if found.unseen else "training images, among the others"
    for values, colour, label in ((theirs, GREY, real), (ours, BLUE, "samples")):
        shares = np.full(len(values), 1.0 / len(values))
        axes.hist(values, bins.tolist(), weights=shares, color=colour, alpha=0.5, label=f"{label} ({len(values):,})")
        axes.axvline(float(np.median(values)), ymax=0.77, color=colour, linewidth=1.6, linestyle="--")
    axes.set_xlabel("distance to the nearest training image (rms per pixel)")
    axes.set_ylabel("share")
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9.5)
    return figure


def noise_map(found: Sensitivity, side: int = 48) -> Tensor:
    """A picture for each region of the noise: where the image changes, brighter for more; the region is framed.

    Args:
        found: The changes.
        side: Pixels of each picture, about.

    Returns:
        uint8 [H', W', 3].
    """
    regions, height, width = found.maps.shape
    scale = max(1, round(side / max(height, width)))
    top = float(found.maps.max()) or 1.0
    coloured = colormaps["inferno"]((found.maps / top).numpy())[..., :3]
    pictures = torch.from_numpy((coloured * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    pictures = pictures.repeat_interleave(scale, 2).repeat_interleave(scale, 3).clone()
    frame = torch.tensor([0, 200, 255], dtype=torch.uint8).reshape(3, 1, 1)
    for picture, (up, down, left, right) in zip(pictures, found.regions, strict=True):
        rows, columns = slice(up * scale, down * scale), slice(left * scale, right * scale)
        picture[:, [up * scale, down * scale - 1], columns] = frame
        picture[:, rows, [left * scale, right * scale - 1]] = frame
    return tile(pictures, round(regions**0.5), gap=3)


def _axes(height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, height), dpi=190, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)  # the figure is narrow, so that letters stay readable on a phone
    return figure, axes


def _curve(axes: Axes, curve: Curve, colour: str, label: str, line: str = "-") -> None:
    """A curve with a band of two standard errors; for the model itself with its points."""
    values, spread = np.array(curve.values), 2 * np.array(curve.errors)
    marker = "o" if line == "-" else ""
    axes.plot(
        curve.sigmas, values, color=colour, linestyle=line, linewidth=1.6, marker=marker, markersize=3.5, label=label, zorder=3
    )
    if line == "-":
        axes.fill_between(
            curve.sigmas, np.maximum(values - spread, values / 10), values + spread, color=colour, alpha=0.2, linewidth=0
        )


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlabel(_SIGMA)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9.5)
    return figure
