"""Features of many images in a stream, by one process or by several that share the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from atonce.core.distribution import all_sum
from atonce.core.errors import InputError
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import FeatureStatistics

Make = Callable[[int, int], Tensor]
"""Gives the uint8 images [count, C, H, W] with the numbers first ... first + count - 1."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was kept of the images.

    Attributes:
        blocks: Statistics in blocks (image i in block i mod K); empty where they were not asked for.
        features: All features [n, D], or None.
        images: All images uint8 [n, C, H, W], or None.
    """

    blocks: tuple[FeatureStatistics, ...]
    features: Tensor | None
    images: Tensor | None


def gather(
    make: Make,
    n: int,
    extractor: Extractor,
    *,
    batch: int,
    blocks: int = 0,
    keep_features: bool = False,
    keep_images: bool = False,
    sharded: bool = False,
    callback: Callable[[int, int], None] | None = None,
) -> Gathered:
    """Make images batch by batch and keep of them only what is asked for.

    Args:
        make: Makes the images of a range of numbers.
        n: How many images there are.
        extractor: Turns them into features.
        batch: Images in one go.
        blocks: Blocks of statistics, 0 for none.
        keep_features: Keep all features (once).
        keep_images: Keep all images.
        sharded: All processes of the group call this together: each makes its part, all get the whole.
        callback: Told (done, total) of this process after each batch.

    Returns:
        What was kept, the same on every process.

    Raises:
        InputError: There are fewer images than processes, or ``make`` gives something else than it is asked for.
    """
    rank, size = (
        (dist.get_rank(), dist.get_world_size()) if sharded and dist.is_available() and dist.is_initialized() else (0, 1)
    )
    if n < size:
        raise InputError(f"{n} images cannot be shared by {size} processes: start fewer processes")
    begin, end = rank * n // size, (rank + 1) * n // size
    parts = [FeatureStatistics(extractor.dimension) for _ in range(blocks)]
    features: Tensor | None = None
    images: Tensor | None = None
    waiting: list[Tensor] = []
    held = 0
    for first, made in _batches(make, begin, end, batch):
        rows = slice(first, first + made.shape[0])
        if keep_images:
            images = torch.zeros((n, *made.shape[1:]), dtype=torch.uint8) if images is None else images
            images[rows] = made.cpu()
        if blocks or keep_features:
            found = extractor(made).detach().cpu()
            if keep_features:
                features = torch.zeros((n, extractor.dimension), dtype=found.dtype) if features is None else features
                features[rows] = found
            if blocks:
                waiting.append(found)
                held += found.shape[0]
                # Joining costs D^2 for each block, so it is done rarely and for many rows together.
                if held >= max(4096, 4 * extractor.dimension) or rows.stop == end:
                    _spread(torch.cat(waiting), rows.stop - held, parts)
                    waiting, held = [], 0
        if callback is not None:
            callback(rows.stop - begin, end - begin)
    if size > 1:
        parts = [part.across_processes() for part in parts]
        features, images = _shared(features), _shared(images)
    return Gathered(tuple(parts), features, images)


def _batches(make: Make, begin: int, end: int, batch: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(begin, end, batch):
        count = min(batch, end - first)
        made = make(first, count)
        if made.dtype != torch.uint8 or made.ndim != 4 or made.shape[0] != count:
            raise InputError(f"expected {count} uint8 images [B, C, H, W], got {made.dtype} {list(made.shape)}")
        yield first, made


def _spread(features: Tensor, first: int, parts: list[FeatureStatistics]) -> None:
    """Give the features of images first, first + 1, ... to their blocks."""
    for k in range(len(parts)):
        parts[(first + k) % len(parts)].update(features[k :: len(parts)])


def _shared(rows: Tensor | None) -> Tensor | None:
    """Rows of all processes; each has zeros where another has its part, and adding zero changes no bit."""
    if rows is not None:
        for part in rows.split(4096):
            part.copy_(all_sum(part))
    return rows
