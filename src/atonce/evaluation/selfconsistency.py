"""How consistent a model is with itself: what it answers at neighbouring noise levels of one and the same noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.core.streams import Stream, normal
from atonce.evaluation.resampling import mean_metric


@dataclasses.dataclass(frozen=True)
class ConsistencyGap:
    """The gap of each interval of a grid of σ.

    Attributes:
        sigmas: The grid, ascending, N values.
        gaps: Mean over the data of |f(y + σ_{i+1} z, σ_{i+1}) - f(y + σ_i z, σ_i)| (Euclidean, whole image), N - 1 values.
        errors: Standard error of each mean over the data.
        samples: Number of images.
    """

    sigmas: tuple[float, ...]
    gaps: tuple[float, ...]
    errors: tuple[float, ...]
    samples: int


def consistency_gap(
    f: Callable[[Tensor, float], Tensor],
    data: Tensor,
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    first: int = 0,
    batch: int = 256,
) -> ConsistencyGap:
    """The self-consistency gap over σ: the pair of consistency training (Song et al. 2023, equation 10) without a weight.

    A pair shares its noise, so it does not lie on one trajectory of the probability-flow ODE: an exact consistency function
    has a gap too, which vanishes with the interval. Compare curves on one grid.

    Args:
        f: The model, images [B, C, H, W] and σ to images of the same shape.
        data: Images y in [-1, 1], float [n, C, H, W], n at least 2.
        sigmas: The grid, ascending, positive, at least two values.
        seed: Of the noise z; image i gets the noise of index first + i at every σ.
        first: Index of the first image.
        batch: Images in one call.

    Returns:
        The curve.

    Raises:
        InputError: The grid is not ascending and positive, or there are fewer than two images.
    """
    if data.ndim != 4 or data.shape[0] < 2:
        raise InputError(f"data must be at least 2 float images [n, C, H, W] in [-1, 1], got {data.dtype} {list(data.shape)}")
    starts = range(0, data.shape[0], batch)
    gaps = torch.cat([gap_norms(f, data[at : at + batch], sigmas, seed=seed, first=first + at) for at in starts])
    errors = gaps.std(0) / gaps.shape[0] ** 0.5
    return ConsistencyGap(_grid(sigmas), tuple(gaps.mean(0).tolist()), tuple(errors.tolist()), gaps.shape[0])


@torch.no_grad()
def gap_norms(
    f: Callable[[Tensor, float], Tensor], data: Tensor, sigmas: Sequence[float], *, seed: int = 0, first: int = 0
) -> Tensor:
    """|f(y + σ_{i+1} z, σ_{i+1}) - f(y + σ_i z, σ_i)| of each image and interval; arguments as in :func:`consistency_gap`.

    Args:
        f: The model.
        data: One batch of images [B, C, H, W].
        sigmas: The grid.
        seed: Of the noise.
        first: Index of the first image.

    Returns:
        float64 [B, N - 1], on the CPU.

    Raises:
        InputError: The grid is not ascending and positive, or the images are not float.
    """
    grid = _grid(sigmas)
    if data.ndim != 4 or not data.is_floating_point():
        raise InputError(f"data must be float images [n, C, H, W] in [-1, 1], got {data.dtype} {list(data.shape)}")
    index = torch.arange(first, first + data.shape[0])
    z = normal(seed, index, tuple(data.shape[1:]), Stream.EVALUATE).to(data)
    rows, before = [], f(data + grid[0] * z, grid[0])
    for sigma in grid[1:]:
        after = f(data + sigma * z, sigma)
        rows.append((after - before).to(torch.float64).flatten(1).norm(dim=1).cpu())
        before = after
    return torch.stack(rows, 1)


def gap_metrics(norms: Tensor, values: int, sigmas: Sequence[float], *, seed: int = 0) -> tuple[dict[str, Metric], str]:
    """The gap as two numbers, per pixel (root mean square): its mean over the intervals, and that of the widest interval.

    Intervals: percentile bootstrap over the images, the grid held fixed.

    Args:
        norms: Of :func:`gap_norms` [n, N - 1].
        values: Values of one image, C·H·W.
        sigmas: The grid.
        seed: Of the resampling.

    Returns:
        ``consistency_gap`` and ``consistency_gap_largest``, and a sentence that says where the latter is.
    """
    pixel = norms / math.sqrt(values)
    widest = int(pixel.mean(0).argmax())
    grid, n = _grid(sigmas), norms.shape[0]
    words = f"{len(grid) - 1} intervals from {grid[0]:.4g} to {grid[-1]:.4g}"
    found = {
        "consistency_gap": mean_metric(pixel.mean(1), seed, 10, words, "rms per pixel", False, n),
        "consistency_gap_largest": mean_metric(pixel[:, widest], seed, 11, words, "rms per pixel", False, n),
    }
    return found, f"the consistency gap is largest between sigma {grid[widest]:.3g} and {grid[widest + 1]:.3g}"


def _grid(sigmas: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(float(sigma) for sigma in sigmas)
    if len(grid) < 2 or not all(0 < low < high for low, high in itertools.pairwise(grid)):
        raise InputError(f"sigmas must be at least two positive ascending values, got {list(grid)[:8]}")
    return grid
