"""How consistent a model is with itself: what it answers at neighbouring noise levels of one and the same noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal


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
    grid = tuple(float(sigma) for sigma in sigmas)
    if len(grid) < 2 or not all(0 < low < high for low, high in itertools.pairwise(grid)):
        raise InputError(f"sigmas must be at least two positive ascending values, got {list(grid)[:8]}")
    if data.ndim != 4 or data.shape[0] < 2 or not data.is_floating_point():
        raise InputError(f"data must be at least 2 float images [n, C, H, W] in [-1, 1], got {data.dtype} {list(data.shape)}")
    norms = []
    with torch.no_grad():
        for start in range(0, data.shape[0], batch):
            y = data[start : start + batch]
            index = torch.arange(first + start, first + start + y.shape[0])
            z = normal(seed, index, tuple(y.shape[1:]), Stream.EVALUATE).to(y)
            rows, before = [], f(y + grid[0] * z, grid[0])
            for sigma in grid[1:]:
                after = f(y + sigma * z, sigma)
                rows.append((after - before).to(torch.float64).flatten(1).norm(dim=1).cpu())
                before = after
            norms.append(torch.stack(rows, 1))
    gaps = torch.cat(norms)
    errors = gaps.std(0) / gaps.shape[0] ** 0.5
    return ConsistencyGap(grid, tuple(gaps.mean(0).tolist()), tuple(errors.tolist()), gaps.shape[0])
