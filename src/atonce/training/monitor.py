"""A cheap look at quality while a run goes on: samples from fixed noise, and a Frechet distance in pooled pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.images import from_uint8, tile, to_uint8
from atonce.data.dataset import ImageData
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance

_DIMENSION = 256  # features at most; larger images are averaged down, so that a thousand samples give a covariance
SEED = 1 << 40  # of the noise; far from the seeds people choose, so nobody tunes on it by accident


@dataclass
class Monitor:
    """Measures one-step samples against the training data.

    The distance ranks moments of one run. It is not a published metric: its features are pixels, averaged down to at most 256.

    Attributes:
        pool: Side of the squares that are averaged into one feature.
        reference: Statistics of the data.
        samples: Number of samples.
    """

    pool: int
    reference: FeatureStatistics
    samples: int

    @staticmethod
    def of(data: ImageData, samples: int) -> Monitor:
        """The monitor of a data set (up to 20,000 of its images, evenly spaced)."""
        c, h, _ = data.shape
        pool = 1
        while c * (h // pool) ** 2 > _DIMENSION and h // pool > 2:
            pool += 1
            while h % pool:
                pool += 1
        reference = FeatureStatistics(c * (h // pool) ** 2)
        index = torch.linspace(0, len(data) - 1, min(len(data), 20_000)).long()
        for part in index.split(1000):
            reference.update(_features(data.images[part], pool))
        return Monitor(pool, reference, samples)

    @property
    def name(self) -> str:
        """What the distance is called in logs."""
        return f"frechet-pixels-{self.pool}"

    def measure(self, sample: Callable[[int, int], Tensor], grid: int = 64) -> tuple[float, Tensor]:
        """The distance, and a picture of the first samples.

        Args:
            sample: (first, n) -> images in [-1, 1] [n, C, H, W], from the monitor's fixed seed.
            grid: Samples in the picture.

        Returns:
            The Frechet distance and a uint8 picture [H, W, 3].
        """
        statistics = FeatureStatistics(self.reference.dimension)
        picture = None
        for first in range(0, self.samples, 256):
            images = to_uint8(sample(first, min(256, self.samples - first))).cpu()
            if picture is None:
                picture = tile(images[:grid], scale=max(1, 32 // images.shape[-1]))
            statistics.update(_features(images, self.pool))
        assert picture is not None
        return frechet_distance(statistics, self.reference), picture


def _features(images: Tensor, pool: int) -> Tensor:
    x = from_uint8(images)
    return (F.avg_pool2d(x, pool) if pool > 1 else x).flatten(1).double()
