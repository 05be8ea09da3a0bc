"""A set of images in memory, and the few facts that follow from it."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from atonce.core.errors import DataError

_CHUNK = 1 << 24  # values handled at a time where a chunk is widened


class Moments(NamedTuple):
    """Mean and standard deviation of pixel values, in [-1, 1] units."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with or without labels, on the CPU.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], classes counted from 0, or None.
        label_names: A name for each class, or None.
        name: Short name.
        source: One line that says where the images came from.
    """

    images: Tensor
    labels: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    name: str = "images"
    source: str = "memory"

    def __post_init__(self) -> None:
        images, labels, names = self.images, self.labels, self.label_names
        if images.dtype != torch.uint8 or images.ndim != 4 or images.device.type != "cpu":
            found = f"{images.dtype} {list(images.shape)} on {images.device}"
            raise DataError(f"{self.name}: images must be uint8 [N, C, H, W] on the CPU, not {found}")
        if images.numel() == 0:
            raise DataError(f"{self.name}: there are no images (shape {list(images.shape)})")
        if labels is None:
            if names is not None:
                raise DataError(f"{self.name}: there are names of labels but no labels")
            return
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or labels.device.type != "cpu":
            found = f"{labels.dtype} {list(labels.shape)} on {labels.device}"
            raise DataError(f"{self.name}: labels must be int64 [{len(images)}] on the CPU, one for each image, not {found}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (names is not None and high >= len(names)):
            limit = "from 0" if names is None else f"between 0 and {len(names) - 1}, one for each name"
            raise DataError(f"{self.name}: labels must be {limit}, but they reach from {low} to {high}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes: that of the names, else the largest label + 1; 0 without labels."""
        if self.labels is None:
            return 0
        return int(self.labels.max()) + 1 if self.label_names is None else len(self.label_names)

    def digest(self) -> str:
        """Hex SHA-256 of shape, pixels and labels: equal for equal data, whatever its name and source. Computed once."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for chunk in self.chunks():
            digest.update(chunk.contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def chunks(self) -> Iterator[Tensor]:
        """The images in order, uint8 [n, C, H, W], some 16 million values at a time."""
        return iter(self.images.split(max(1, _CHUNK // math.prod(self.shape))))

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """The images at the given positions, in that order.

        Args:
            indices: Positions from 0, [n]; they may repeat.

        Returns:
            A new set of n images.

        Raises:
            DataError: A position is outside the set, or there are none.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= len(self):
            raise DataError(f"{self.name}: a subset needs positions between 0 and {len(self) - 1}")
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels, source=f"{self.source}; {len(index)} of {len(self)}")

    def without_labels(self) -> ImageData:
        """The same images, unlabelled."""
        return self if self.labels is None else replace(self, labels=None, label_names=None)

    def statistics(self) -> Moments:
        """Mean and standard deviation over all values of all images in [-1, 1] units; the latter is sigma_data."""
        return self._moments[0]

    def channel_statistics(self) -> list[Moments]:
        """:meth:`statistics` for each channel."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[Moments, list[Moments]]:
        # Sums of integers are exact in any order, so the result does not depend on chunks or threads.
        sums = [[0, 0] for _ in range(self.shape[0])]
        for chunk in self.chunks():
            wide = chunk.to(torch.int32)
            for channel, (first, second) in enumerate(zip(_sums(wide), _sums(wide * wide), strict=True)):
                sums[channel][0] += first
                sums[channel][1] += second
        count = self.images.numel() // self.shape[0]
        overall = _from_sums(count * len(sums), sum(s[0] for s in sums), sum(s[1] for s in sums))
        return overall, [_from_sums(count, *s) for s in sums]


def _sums(values: Tensor) -> list[int]:
    return [int(v) for v in values.sum(dim=(0, 2, 3), dtype=torch.int64)]


def _from_sums(count: int, first: int, second: int) -> Moments:
    variance = (count * second - first * first) / count**2
    return Moments(first / count / 127.5 - 1.0, math.sqrt(variance) / 127.5)


def join(parts: Sequence[ImageData]) -> ImageData:
    """Several sets one after the other; classes with names are matched by these.

    Args:
        parts: Sets of one shape of images, at least one. Labels are kept if all have them.

    Returns:
        One set with the name of the first; the classes are the sorted union where the names differ.

    Raises:
        DataError: The images differ in shape.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.shape != first.shape for part in parts):
        shapes = ", ".join(f"{part.shape} ({part.source})" for part in parts)
        raise DataError(f"the parts of {first.name} differ in shape: {shapes}; give one size (--size) and channels")
    names = first.label_names
    labels = [part.labels for part in parts if part.labels is not None]
    if any(part.label_names is None for part in parts):
        names = None
    elif any(part.label_names != names for part in parts):
        union = sorted({name for part in parts for name in part.label_names or ()})
        tables = [torch.tensor([union.index(name) for name in part.label_names or ()]) for part in parts]
        labels = [table[label] for table, label in zip(tables, labels, strict=True)]
        names = tuple(union)
    together = torch.cat(labels) if len(labels) == len(parts) else None
    images = torch.cat([part.images for part in parts])
    return ImageData(images, together, names, first.name, "; ".join(part.source for part in parts))


def require_labels(data: ImageData) -> Tensor:
    """The labels of data that must have at least two classes.

    Args:
        data: The images.

    Returns:
        int64 [N].

    Raises:
        DataError: There are no labels, or only one class; the message names it.
    """
    if data.labels is None:
        text = "has no labels: sort the pictures into one subfolder for each class, or train without labels"
        raise DataError(f"{data.name} {text}")
    classes = data.labels.unique()
    if len(classes) < 2:
        only = int(classes[0])
        named = f"{only}" if data.label_names is None else f"{data.label_names[only]!r}"
        raise DataError(f"{data.name} has the single class {named}: labels need at least two classes; train without labels")
    return data.labels
