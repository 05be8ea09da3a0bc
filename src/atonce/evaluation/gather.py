"""Features of many images in a stream, by one process or by several that share the work.

Networks in float32 round differently for batches of different sizes. Here the extractor therefore always sees the same images
together, numbers c·k to c·k + c - 1 for a chunk size c of its own, whatever the batches they are made in and however many
processes share them. What is left is the order of sums in float64: distances agree to 1e-9 or better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from atonce.core.distribution import all_sum
from atonce.core.errors import InputError
from atonce.core.streams import Stream, bits
from atonce.data.limits import check_memory
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import FeatureStatistics

CHUNK = 32
"""Images that an extractor sees together where it names no number of its own."""

_BLOCK_STEP = 0xB10C  # tells these random bits from others of their purpose

Make = Callable[[int, int], Tensor]
"""Gives the uint8 images [count, C, H, W] with the numbers first ... first + count - 1."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was kept of the images.

    Attributes:
        blocks: Statistics in blocks (see :func:`block_of`); empty where they were not asked for.
        features: All features [n, D], float32 or float64, or None.
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
    device: torch.device | str | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Gathered:
    """Make images batch by batch and keep of them only what is asked for.

    Args:
        make: Makes the images of a range of numbers.
        n: How many images there are.
        extractor: Turns them into features.
        batch: Images made in one go; how many the extractor sees together is its own affair.
        blocks: Blocks of statistics, 0 for none.
        keep_features: Keep all features (once).
        keep_images: Keep all images.
        sharded: All processes of the group call this together: each makes its part, all get the whole. The parts are whole
            chunks, so of few images some processes may get none.
        device: Where the extractor works; None: where the images are.
        callback: Told (done, total) of this process after each batch.

    Returns:
        What was kept, the same on every process.

    Raises:
        InputError: ``n`` or the batch is below 1, ``make`` gives something else than it is asked for, or what is to be kept
            would not fit into the memory.
    """
    if n < 1 or batch < 1:
        raise InputError(f"the number of images and the batch must be at least 1, got {n} and {batch}")
    dimension = extractor.dimension
    check_memory(
        8 * dimension**2 * (blocks + 2) if blocks else 0,
        f"statistics of {dimension:,} features ({extractor.name}) in {blocks} blocks",
        "use an extractor with fewer features, such as effnet-lite0",
    )
    if keep_features:
        # Pixels are float64, and every comparison of features takes them so.
        check_memory(8 * dimension * n, f"{dimension:,} features ({extractor.name}) of {n:,} images", "make fewer images")
    rank, size = place(sharded)
    chunk = extractor.batch or CHUNK
    begin, end = share(n, chunk, rank, size)
    parts = [FeatureStatistics(dimension) for _ in range(blocks)]
    features: Tensor | None = None
    images: Tensor | None = None
    waiting: list[Tensor] = []
    ahead: Tensor | None = None  # images that do not fill a chunk yet
    at = begin  # the number of the first image without features
    for first, made in _batches(make, begin, end, batch):
        stop = first + made.shape[0]
        if keep_images:
            if images is None:
                check_memory(made[0].numel() * n, f"{n:,} images {list(made.shape[1:])}", "make fewer images")
            images = torch.zeros((n, *made.shape[1:]), dtype=torch.uint8) if images is None else images
            images[first:stop] = made.cpu()
        if blocks or keep_features:
            ahead = made if ahead is None else torch.cat([ahead, made])
            while len(ahead) >= chunk or (stop == end and len(ahead)):
                found = _features(extractor, ahead[:chunk], device)
                ahead = ahead[chunk:]
                if keep_features:
                    features = torch.zeros((n, dimension), dtype=found.dtype) if features is None else features
                    features[at : at + len(found)] = found
                at += len(found)
                if blocks:
                    waiting.append(found)
                    held = sum(map(len, waiting))
                    # Joining costs D^2 for each block, so it is done rarely and for many rows together.
                    if held >= max(4096, 4 * dimension) or at == end:
                        _spread(torch.cat(waiting), at - held, parts)
                        waiting = []
        if callback is not None:
            callback(stop - begin, end - begin)
    if size > 1:
        parts = [part.across_processes() for part in parts]
        features, images = _shared(features, images, n, dimension, keep_features, keep_images)
    return Gathered(tuple(parts), features, images)


def place(sharded: bool) -> tuple[int, int]:
    """Rank and number of the processes that share the work: (0, 1) where it is not shared."""
    if sharded and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(n: int, chunk: int, rank: int, size: int) -> tuple[int, int]:
    """The images of a process: whole chunks, as evenly as they go; the first process has the first chunk.

    Args:
        n: Images in all.
        chunk: Images that stay together.
        rank: The process.
        size: How many there are.

    Returns:
        Its first image, and the first one of the next process.
    """
    chunks = -(-n // chunk)
    begin, end = (min(n, -(-r * chunks // size) * chunk) for r in (rank, rank + 1))
    return begin, end


def block_of(index: Tensor, blocks: int) -> Tensor:
    """The block of each image for the jackknife: of any ``blocks`` images in a row, one goes to each block, in random order.

    A fixed pseudo-random function of the image's number, so the same over batches and processes. Blocks by ``index mod blocks``
    would not do: labels in a regular order (0, 1, ..., 9, 0, 1, ...) would give blocks of a few classes each.

    Args:
        index: Numbers of images, int64 [n].
        blocks: How many blocks there are.

    Returns:
        int64 [n], each from 0 to blocks - 1.
    """
    rounds, inverse = torch.unique(index // blocks, return_inverse=True)
    order = bits(0, rounds, blocks, Stream.EVALUATE, _BLOCK_STEP).argsort(dim=1, stable=True)
    return order[inverse, index % blocks]


def _batches(make: Make, begin: int, end: int, batch: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(begin, end, batch):
        count = min(batch, end - first)
        made = make(first, count)
        if made.dtype != torch.uint8 or made.ndim != 4 or made.shape[0] != count:
            raise InputError(f"expected {count} uint8 images [B, C, H, W], got {made.dtype} {list(made.shape)}")
        yield first, made


def _features(extractor: Extractor, images: Tensor, device: torch.device | str | None) -> Tensor:
    found = extractor(images if device is None else images.to(device)).detach().cpu()
    return found if found.dtype == torch.float64 else found.to(torch.float32)


def _spread(features: Tensor, first: int, parts: list[FeatureStatistics]) -> None:
    """Give the features of images first, first + 1, ... to their blocks."""
    blocks = block_of(torch.arange(first, first + len(features)), len(parts))
    for k, part in enumerate(parts):
        part.update(features[blocks == k])


def _shared(
    features: Tensor | None, images: Tensor | None, n: int, dimension: int, keep_features: bool, keep_images: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of all processes; each has zeros where another has its part, and adding zero changes no number."""
    # A process without images does not know their form; the first always has some.
    form = torch.zeros(4, dtype=torch.int64)
    if dist.get_rank() == 0:
        form[0] = features is not None and features.dtype == torch.float64
        form[1:] = torch.tensor(images.shape[1:] if images is not None else (0, 0, 0))
    double, *shape = all_sum(form).tolist()
    if keep_features and features is None:
        features = torch.zeros((n, dimension), dtype=torch.float64 if double else torch.float32)
    if keep_images and images is None:
        images = torch.zeros((n, *shape), dtype=torch.uint8)
    for rows in (features, images):
        for part in rows.split(4096) if rows is not None else ():
            part.copy_(all_sum(part))
    return features, images
