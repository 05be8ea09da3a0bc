"""A few numbers of each of many images, computed in batches, by one process or by several that share the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from atonce.core.distribution import all_sum
from atonce.data.limits import check_memory
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.gather import CHUNK, place, share


def every_row(n: int, width: int, compute: Callable[[int, int], Tensor], *, batch: int, sharded: bool = False) -> Tensor:
    """Compute the rows of a table in batches.

    Args:
        n: Number of rows.
        width: Numbers in a row.
        compute: Of (first, count) gives the rows first ... first + count - 1, [count, width].
        batch: Rows at once. Up to ``gather.CHUNK`` of them, the same rows stay together also where processes share the work.
        sharded: All processes of the group call this together: each computes its part, all get the whole.

    Returns:
        float64 [n, width] on the CPU, the same on every process.
    """
    check_memory(8 * n * width, f"a table of {n:,} rows of {width:,} numbers", "give fewer images")
    rank, size = place(sharded)
    begin, end = share(n, min(batch, CHUNK), rank, size)
    out = torch.zeros(n, width, dtype=torch.float64)
    for first in range(begin, end, batch):
        count = min(batch, end - first)
        out[first : first + count] = compute(first, count).detach().to("cpu", torch.float64)
    return all_sum(out) if size > 1 else out  # adding the zeros of the others changes no bit


class Watch:
    """Looks at images on their way through an extractor and keeps a few numbers of each, such as class probabilities.

    So it sees the same images together as the extractor does, whatever the batches and the number of processes.

    Args:
        n: How many images there will be.
        function: uint8 images [B, C, H, W] and their features [B, D] to [B, K].
        sharded: The processes of the group share the images.
    """

    def __init__(self, n: int, function: Callable[[Tensor, Tensor], Tensor], sharded: bool = False) -> None:
        self._n, self._function, self._sharded = n, function, sharded
        self._kept: Tensor | None = None

    def inside(self, extractor: Extractor) -> Extractor:
        """The same extractor, watched; for one run of :func:`~atonce.evaluation.gather.gather` alone.

        That calls its extractor on consecutive chunks of this process's images, so what is kept needs no numbers.
        """
        rank, size = place(self._sharded)
        at, _ = share(self._n, extractor.batch or CHUNK, rank, size)

        def function(images: Tensor) -> Tensor:
            nonlocal at
            features = extractor.function(images)
            self._keep(at, self._function(images, features))
            at += len(images)
            return features

        return dataclasses.replace(extractor, function=function)

    def values(self) -> Tensor:
        """What was kept of all images, float64 [n, K], on every process; those that share the images call this together."""
        if place(self._sharded)[1] > 1:
            # A process without images does not know K; the first always has some, and others may.
            width = torch.tensor([0 if self._kept is None else self._kept.shape[1], int(self._kept is not None)])
            total, holders = all_sum(width).tolist()
            kept = self._kept if self._kept is not None else torch.zeros(self._n, total // holders, dtype=torch.float64)
            return all_sum(kept)
        assert self._kept is not None  # at least one image was made
        return self._kept

    def _keep(self, first: int, found: Tensor) -> None:
        if self._kept is None:
            width = found.shape[1]
            needed = (8 * width + 256) * self._n  # the table, and a few numbers of each image while it is read
            check_memory(needed, f"a table of {self._n:,} images and {width:,} classes", "make fewer images")
            self._kept = torch.zeros(self._n, found.shape[1], dtype=torch.float64)
        self._kept[first : first + len(found)] = found.detach().to("cpu", torch.float64)
