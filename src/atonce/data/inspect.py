"""What a data set is like: the numbers that a recipe should know, and the largest noise level that the data suggest."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from atonce.core.images import from_uint8
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData

USUAL_SIGMA_MAX = 80.0
_SAMPLE = 2000
_PRODUCTS = 2e10  # multiplications spent on the distances; larger images are sampled more thinly
_COLUMNS = 8192


@dataclass(frozen=True)
class DataReport:
    """What :func:`inspect_data` measured; pixel statistics are in [-1, 1] units.

    Attributes:
        name: Name of the data.
        source: Where they came from.
        digest: SHA-256 of the data.
        count: Number of images.
        shape: (C, H, W).
        bytes: Size of the pixels in memory.
        classes: Names of the classes (their numbers where they have no names); empty without labels.
        class_counts: Images of each class.
        mean: Over all values.
        sigma_data: Standard deviation over all values.
        channel_mean: ``mean`` of each channel.
        channel_std: Standard deviation of each channel.
        value_range: Smallest and largest pixel value, 0..255.
        duplicates: Images that repeat an earlier one exactly.
        largest_distance: Largest Euclidean distance between two images of the sample.
        distance_sample: Size of that sample.
        advice: A sentence on sigma_max.
    """

    name: str
    source: str
    digest: str
    count: int
    shape: tuple[int, int, int]
    bytes: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    mean: float
    sigma_data: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    value_range: tuple[int, int]
    duplicates: int
    largest_distance: float
    distance_sample: int
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def describe(self) -> list[str]:
        """The report as lines of text."""
        channels, height, width = self.shape
        kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return [
            f"data            {self.name}: {self.source}",
            f"images          {self.count:,} of {width}x{height}, {kind}; {self.bytes / 2**20:.1f} MiB as bytes",
            f"classes         {self._classes()}",
            f"mean            {self.mean:+.4f}{_channels(self.channel_mean, '+.4f')}",
            f"sigma_data      {self.sigma_data:.4f}{_channels(self.channel_std, '.4f')}",
            f"values          {self.value_range[0]} to {self.value_range[1]} of 0 to 255",
            f"duplicates      {self.duplicates:,} exact",
            f"distance        {self.largest_distance:.1f}, the largest between two of {self.distance_sample:,} images",
            f"sigma_max       {self.advice}",
            f"digest          {self.digest[:16]}",
        ]

    def _classes(self) -> str:
        if not self.classes:
            return "none (no labels)"
        shown = [f"{name} {count:,}" for name, count in zip(self.classes[:12], self.class_counts, strict=False)]
        more = len(self.classes) - len(shown)
        return f"{len(self.classes)}: {', '.join(shown)}" + (f" and {more} more" if more else "")


def _channels(values: tuple[float, ...], form: str) -> str:
    return f" ({', '.join(format(v, form) for v in values)} by channel)" if len(values) > 1 else ""


def inspect_data(data: ImageData, *, sample: int = _SAMPLE) -> DataReport:
    """Measure a data set.

    Args:
        data: The images.
        sample: At most so many images, a fixed random choice, enter the pairwise distances.

    Returns:
        The report.
    """
    overall, channels = data.statistics(), data.channel_statistics()
    chunks = [(int(chunk.min()), int(chunk.max())) for chunk in data.chunks()]
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    if data.labels is not None:
        classes = data.label_names or tuple(str(k) for k in range(data.num_classes))
        counts = tuple(torch.bincount(data.labels, minlength=len(classes)).tolist())
    size = min(len(data), sample, max(2, math.isqrt(int(_PRODUCTS / math.prod(data.shape)))))
    distance = largest_distance(data.images[permutation(0, 0, len(data))[:size]])
    return DataReport(
        name=data.name,
        source=data.source,
        digest=data.digest(),
        count=len(data),
        shape=data.shape,
        bytes=data.images.numel(),
        classes=classes,
        class_counts=counts,
        mean=overall.mean,
        sigma_data=overall.std,
        channel_mean=tuple(c.mean for c in channels),
        channel_std=tuple(c.std for c in channels),
        value_range=(min(low for low, _ in chunks), max(high for _, high in chunks)),
        duplicates=count_duplicates(data),
        largest_distance=distance,
        distance_sample=size,
        advice=advise(distance),
    )


def count_duplicates(data: ImageData) -> int:
    """How many images repeat an earlier one, byte for byte."""
    seen = {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in data.images.numpy()}
    return len(data) - len(seen)


def largest_distance(images: Tensor) -> float:
    """Largest Euclidean distance between two images in [-1, 1] units.

    Song & Ermon, "Improved techniques for training score-based generative models" (2020), technique 1: the largest noise
    level should be as large as this distance over all pairs of training data.

    Args:
        images: uint8 [n, C, H, W].

    Returns:
        The distance; 0 for a single image.
    """
    flat = images.flatten(1)
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for columns in flat.split(_COLUMNS, dim=1):
        part = from_uint8(columns)
        part -= part.mean(dim=0)  # smaller numbers, the same differences
        products += part @ part.T
    norms = products.diagonal()
    squares = norms[:, None] + norms[None, :] - 2.0 * products
    a, b = divmod(int(squares.argmax()), len(flat))
    return float((flat[a].double() - flat[b].double()).norm() / 127.5)


def advise(distance: float) -> str:
    """One sentence that sets the largest distance between images beside the usual sigma_max of 80.

    Through noise of deviation s the best guess between two images at distance d is right with probability Phi(d / 2s):
    0.84 for d = 2s, where we begin to advise against s.
    """
    usual = f"{USUAL_SIGMA_MAX:.0f}"
    rule = f"the rule of Song & Ermon (2020), sigma_max = largest distance, suggests {distance:.0f}"
    if distance > 2.0 * USUAL_SIGMA_MAX:
        found = f"images that far apart can still be told apart through noise of {usual}"
        return f"{rule}, far above the usual {usual}: {found}, so consider a larger sigma_max (papers kept {usual} up to 64x64)"
    if distance > USUAL_SIGMA_MAX:
        return f"{rule}, somewhat above the usual {usual}, with which CIFAR-10 is trained as well: {usual} is in order"
    return f"{rule}, below the usual {usual}: {usual} is safe, and a smaller sigma_max down to that value will do"
