"""Batches for training: small data live on the device, large data are gathered one batch ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.data.augment import flip
from atonce.data.dataset import ImageData
from atonce.data.order import positions

RESIDENT_BYTES = 4 << 30


class DeviceData:
    """Training batches as a function of (seed, global sample indices).

    Data of up to ``limit`` bytes stay on the device as uint8, and a batch is one gather there. Larger data stay in the memory
    of the host; a thread gathers the batch that comes next, and only that moves, from pinned memory without making the device
    wait. Both give the same values. Not to be shared between threads.

    Args:
        data: The images.
        seed: The run's seed: it decides the order of the epochs and the flips.
        device: Where batches are made.
        flip: Whether images are mirrored by a fair coin of their global index.
        limit: Bytes up to which the images are kept on the device.
        prefetch: Whether a thread gathers the next batch of larger data.

    Attributes:
        data: The images.
        device: Where batches are.
        resident: Whether the images are on the device.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        flip: bool = False,
        limit: int = RESIDENT_BYTES,
        prefetch: bool = True,
    ) -> None:
        self.data = data
        self.device = torch.device(device)
        self.resident = data.images.numel() <= limit
        self._seed, self._flip = seed, flip
        self._images = data.images.to(self.device) if self.resident else data.images
        self._labels = None if data.labels is None else data.labels.to(self.device)
        self._pinned = self.device.type == "cuda"
        self._pool = ThreadPoolExecutor(1, "atonce-prefetch") if prefetch and not self.resident else None
        self._ahead: tuple[Tensor, Future[tuple[Tensor, Tensor]]] | None = None
        self._previous: Tensor | None = None

    def batch(self, first: int | Tensor, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The samples of given global indices.

        Args:
            first: First global sample index, or all of them, int64 [B] (as a process of several needs it),
                best on the CPU.
            count: How many follow from ``first``; None where indices are given.

        Returns:
            Images float32 [B, C, H, W] in [-1, 1], mirrored where the coin of the index says so, and labels int64 [B] or
            None, both on the device.

        Raises:
            InputError: Both or neither of indices and ``count`` are given, or one of them is negative.
        """
        if isinstance(first, Tensor):
            if count is not None:
                raise InputError("a batch is asked for by (first, count) or by a tensor of indices, not by both")
            index = first.cpu()
        elif count is None or count < 0:
            raise InputError(f"a batch from {first} on needs the number of images, not {count}")
        else:
            index = torch.arange(first, first + count)
        if self.resident:
            place = self._to_device(positions(self._seed, index, len(self.data)))
            pixels = self._images[place]
        else:
            place, pixels = map(self._to_device, self._gathered(index))
        if self._flip:
            pixels = flip(pixels, self._seed, self._to_device(index))
        return from_uint8(pixels), None if self._labels is None else self._labels[place]

    def close(self) -> None:
        """End the prefetching thread; batches can still be asked for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._ahead = None, None

    def _to_device(self, tensor: Tensor) -> Tensor:
        if not self._pinned:
            return tensor.to(self.device)
        # The allocator of pinned memory does not hand a block out again before the copies from it are done.
        return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(self.device, non_blocking=True)

    def _gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        place = positions(self._seed, index, len(self.data))
        out = torch.empty((len(place), *self.data.shape), dtype=torch.uint8, pin_memory=self._pinned)
        return place, torch.index_select(self._images, 0, place, out=out)

    def _gathered(self, index: Tensor) -> tuple[Tensor, Tensor]:
        ahead, self._ahead = self._ahead, None
        hit = ahead is not None and torch.equal(ahead[0], index)
        result = ahead[1].result() if ahead is not None and hit else self._gather(index)
        shift = self._shift(index)
        self._previous = index
        if self._pool is not None and shift > 0:
            following = index + shift
            self._ahead = following, self._pool.submit(self._gather, following)
        return result

    def _shift(self, index: Tensor) -> int:
        """By how much the next indices probably exceed these: as last time, else as an even stripe goes on."""
        if index.numel() == 0:
            return 0
        if self._previous is not None and self._previous.shape == index.shape:
            shift = index - self._previous
            if bool((shift == shift[0]).all()):
                return int(shift[0])
        return int(index[1] - index[0]) * len(index) if len(index) > 1 else 1
