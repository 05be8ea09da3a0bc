"""Distances to nearest neighbours: the ground of precision, recall and the question whether a model only remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.evaluation.resampling import percentile_interval, resamples

CHUNK_VALUES = 1 << 23
"""Entries of one block of the distance matrix (64 MB in float64)."""


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances of every row of ``x`` to every row of ``y``, a block of rows at a time.

    Both are centred on the mean of ``y`` first and computed in float64, so the expansion |x|^2 + |y|^2 - 2 x·y loses little.

    Args:
        x: [n, D].
        y: [m, D].

    Yields:
        The rows of ``x`` and their distances [rows, m], float64.

    Raises:
        InputError: The shapes do not fit or a set is empty.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[0] or not y.shape[0]:
        raise InputError(f"features must be [n, D] and [m, D] and not empty, got {list(x.shape)} and {list(y.shape)}")
    y = y.to(torch.float64)
    centre = y.mean(0)
    y = y - centre
    y_square = y.square().sum(1)
    rows = max(1, CHUNK_VALUES // y.shape[0])
    for start in range(0, x.shape[0], rows):
        block = x[start : start + rows].to(torch.float64) - centre
        square = block.square().sum(1)[:, None] + y_square[None, :] - 2.0 * (block @ y.T)
        yield slice(start, start + block.shape[0]), square.clamp(min=0).sqrt()


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of ``y`` for every row of ``x``.

    Args:
        x: [n, D].
        y: [m, D].

    Returns:
        Distances float64 [n] and indices int64 [n].
    """
    distances, indices = [], []
    for _, block in distance_blocks(x, y):
        low, index = block.min(1)
        distances.append(low)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row.

    Args:
        x: [n, D].
        k: At least 1 and below n.

    Returns:
        float64 [n].

    Raises:
        InputError: ``k`` does not fit.
    """
    if not 1 <= k < x.shape[0]:
        raise InputError(f"k must be between 1 and the number of samples minus one ({x.shape[0] - 1}), got {k}")
    out = []
    for rows, block in distance_blocks(x, x):
        # A row is no neighbour of itself; taken out by its index, since a copy elsewhere in the set does count.
        block[torch.arange(block.shape[0]), torch.arange(rows.start, rows.stop)] = torch.inf
        out.append(block.kthvalue(k, dim=1).values)
    return torch.cat(out)


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """Whether samples lie closer to the training images than unseen real images do.

    Attributes:
        samples: Median distance of the samples to their nearest training image.
        held_out: Median distance of held-out images to their nearest training image.
        ratio: samples / held_out; well below 1 means that training images are repeated.
    """

    samples: float
    held_out: float
    ratio: float


def memorisation(samples: Tensor, training: Tensor, held_out: Tensor) -> Memorisation:
    """Median nearest-neighbour distances to the training images.

    Args:
        samples: Features of the samples [n, D].
        training: Features of the training images [m, D].
        held_out: Features of real images that were not trained on [l, D].

    Returns:
        Both medians and their ratio.
    """
    return _compared(nearest(samples, training)[0], nearest(held_out, training)[0])


def memorisation_metric(samples: Tensor, training: Tensor, held_out: Tensor, *, seed: int = 0) -> Metric:
    """The ratio of :func:`memorisation` with an interval: percentile bootstrap over samples and held-out images alike.

    The training images are held fixed: they are what may have been remembered. Copies of a part of the samples show in the
    lower quantiles first; the median speaks of half of them.

    Args:
        samples: Features of the samples [n, D].
        training: Features of the training images [m, D].
        held_out: Features of real images that were not trained on [l, D].
        seed: Of the resampling.

    Returns:
        The metric; where half of a resample of held-out images are training images, it is left out.
    """
    ours, theirs = nearest(samples, training)[0], nearest(held_out, training)[0]
    found = _compared(ours, theirs)
    ratios = []
    for one, other in zip(resamples(len(ours), seed, 6), resamples(len(theirs), seed, 7), strict=True):
        below = float(theirs[other].median())
        if below > 0:
            ratios.append(float(ours[one].median()) / below)
    low, high = percentile_interval(ratios) if ratios else (found.ratio, found.ratio)
    interval = min(low, found.ratio), max(high, found.ratio)
    settings = f"median of {len(ours)} over {len(theirs)} held out, {len(training)} training images"
    return Metric(found.ratio, interval, higher_is_better=True, unit="ratio", settings=settings)


def _compared(ours: Tensor, theirs: Tensor) -> Memorisation:
    if float(theirs.median()) == 0.0:
        raise InputError("at least half of the held-out images are in the training set: memorisation cannot be judged by them")
    return Memorisation(float(ours.median()), float(theirs.median()), float(ours.median()) / float(theirs.median()))


def class_shares(predicted: Tensor, classes: int) -> tuple[float, ...]:
    """The share of each class among predictions.

    Args:
        predicted: Class numbers, int64 [n].
        classes: How many classes there are.

    Returns:
        ``classes`` shares that sum to 1.

    Raises:
        InputError: There is no prediction or one is out of range.
    """
    if not predicted.numel() or int(predicted.min()) < 0 or int(predicted.max()) >= classes:
        raise InputError(f"class numbers must lie in 0..{classes - 1} and there must be at least one")
    counts = torch.bincount(predicted.to(torch.int64), minlength=classes)
    return tuple((counts.to(torch.float64) / predicted.numel()).tolist())
