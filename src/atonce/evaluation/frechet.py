"""The Fréchet distance between Gaussians fitted to features, from statistics gathered in a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from atonce.core.distribution import all_sum
from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.evaluation.resampling import jackknife_interval

BLOCKS = 25
"""Blocks of samples for the jackknife interval; each sample has its own, whatever the batches (``gather.block_of``)."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of features, float64, on the CPU; ``count`` is how many they were estimated from."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        d = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (d, d):
            found = f"{list(self.mean.shape)} and {list(self.covariance.shape)}"
            raise InputError(f"moments need a mean [D] and a covariance [D, D], got {found}")


class FeatureStatistics:
    """Count, mean and scatter matrix of features that arrive in batches, in float64.

    The scatter is kept about the mean, so nothing cancels when the mean is large against the spread. Batches and shards
    are joined by the pairwise formula of Chan, Golub and LeVeque (1979): the result is that of one pass over everything,
    in any order, up to rounding.
    """

    __slots__ = ("_mean", "_scatter", "count")

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    @property
    def dimension(self) -> int:
        """Number of features D."""
        return self._mean.shape[0]

    def update(self, features: Tensor) -> None:
        """Take in a batch.

        Args:
            features: [B, D], any floating type and device.

        Raises:
            InputError: The shape does not fit or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise InputError(f"features must be [B, {self.dimension}], got {list(features.shape)}")
        if not features.shape[0]:
            return
        x = features.detach().to("cpu", torch.float64)
        mean = x.mean(0)
        if not bool(torch.isfinite(mean).all()):
            raise InputError("features hold values that are not finite: the samples or the extractor are broken")
        centred = x - mean
        self._join(x.shape[0], mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together.

        Args:
            other: Statistics of other samples of the same dimension.

        Returns:
            New statistics; both arguments stay as they are.

        Raises:
            InputError: The dimensions differ.
        """
        if other.dimension != self.dimension:
            raise InputError(f"cannot merge statistics of {self.dimension} and {other.dimension} features")
        joined = FeatureStatistics(self.dimension)
        for part in (self, other):
            if part.count:
                joined._join(part.count, part._mean, part._scatter)
        return joined

    def without(self, part: FeatureStatistics) -> FeatureStatistics:
        """The statistics of what remains when a part is taken out; the inverse of :meth:`merge`, sound for a small part."""
        rest = FeatureStatistics(self.dimension)
        rest.count = self.count - part.count
        if rest.count > 0:
            rest._mean = self._mean + (self._mean - part._mean) * (part.count / rest.count)
            delta = part._mean - rest._mean
            rest._scatter = self._scatter - part._scatter - torch.outer(delta, delta) * (rest.count * part.count / self.count)
        return rest

    def across_processes(self) -> FeatureStatistics:
        """The statistics of all processes together, the same on each; every process of the group must call it."""
        counts = all_sum(torch.tensor([self.count], dtype=torch.int64))
        joined = FeatureStatistics(self.dimension)
        joined.count = int(counts)
        if joined.count:
            joined._mean = all_sum(self._mean * self.count) / joined.count
            delta = self._mean - joined._mean
            joined._scatter = all_sum(self._scatter + self.count * torch.outer(delta, delta))
        return joined

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self.count = total

    def mean(self) -> Tensor:
        """Mean [D], float64."""
        return self._mean.clone()

    def covariance(self) -> Tensor:
        """Covariance with divisor n - 1.

        Returns:
            float64 [D, D].

        Raises:
            InputError: Fewer than two samples came in.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 samples, got {self.count}")
        return self._scatter / (self.count - 1)

    def moments(self) -> Moments:
        """Mean and covariance together."""
        return Moments(self.mean(), self.covariance(), self.count)


def frechet_distance(a: Moments | FeatureStatistics, b: Moments | FeatureStatistics) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^{1/2} S2 S1^{1/2})^{1/2}. With factors S = A A^T from symmetric
    eigendecompositions, the last trace is the sum of the singular values of A1^T A2, which neither squares small eigenvalues
    nor leaves the real numbers. Directions without variance (below D times the rounding unit of the largest) are left out, so
    singular covariances are no special case.

    Args:
        a: Moments or statistics of one set.
        b: Of the other, same dimension.

    Returns:
        The distance, at least 0.

    Raises:
        InputError: The dimensions differ, a value is not finite, or a set has fewer than two samples.
    """
    m1, m2 = _moments(a), _moments(b)
    if m1.mean.shape != m2.mean.shape:
        raise InputError(f"the sets have {m1.mean.shape[0]} and {m2.mean.shape[0]} features: use one extractor for both")
    overlap = torch.linalg.svdvals(_factor(m1.covariance).T @ _factor(m2.covariance)).sum()
    return max(0.0, _without_overlap(m1, m2) - 2.0 * float(overlap))


def frechet_metric(
    blocks: Sequence[FeatureStatistics], reference: Moments, count: int | None = None, settings: str = ""
) -> Metric:
    """Fréchet distance of samples to a reference, with an interval for the draw of the samples.

    The interval is value ± t · s, s from the delete-one-block jackknife over the samples, t Student's 97.5 % point with
    (blocks - 1) degrees of freedom. It says how far another draw of as many samples may lie; the bias of the
    distance at this sample count is in the value and in the interval alike. (Bootstrapping the samples will not do: repeated
    samples shift the distance up by about its bias, often beyond the interval.)

    Args:
        blocks: Statistics of the samples in blocks that are alike (as ``gather.block_of`` gives them: of any K samples in a row
            one to each block, in random order).
        reference: Moments of the reference.
        count: See :class:`Metric`.
        settings: See :class:`Metric`.

    Returns:
        The metric; without an interval where fewer than 20 blocks have two samples or more.

    Raises:
        InputError: The dimensions differ, or there are fewer than two samples.
    """
    value, left_out = _left_out(blocks, reference)
    interval = jackknife_interval(value, left_out, 0.0) if left_out else None
    return Metric(value, interval, higher_is_better=False, unit="squared distance", settings=settings, count=count)


def frechet_gain(
    before: Sequence[FeatureStatistics], after: Sequence[FeatureStatistics], reference: Moments, settings: str = ""
) -> Metric:
    """By how much ``after`` is nearer to the reference than ``before``: the difference of their Fréchet distances.

    The interval is that of :func:`frechet_metric`, of the difference itself: each block is left out on both sides together. So
    samples that were made from the same noise, block by block, share what is due to the draw, and it cancels.

    Args:
        before: Statistics of one set of samples in blocks.
        after: Of the other, block k of the same sample numbers.
        reference: Moments of the reference.
        settings: See :class:`Metric`.

    Returns:
        The metric; above 0 where ``after`` is better.
    """
    (first, without), (second, without_too) = _left_out(before, reference), _left_out(after, reference)
    interval = None
    if without and len(without) == len(without_too):
        interval = jackknife_interval(first - second, [a - b for a, b in zip(without, without_too, strict=True)])
    return Metric(first - second, interval, higher_is_better=True, unit="squared distance", settings=settings)


def _left_out(blocks: Sequence[FeatureStatistics], reference: Moments) -> tuple[float, list[float]]:
    """The distance of all blocks together, and without each of them; the latter empty where they are too few or too small."""
    total = joined(blocks)
    value = frechet_distance(total, reference)
    used = [block for block in blocks if block.count]
    if len(used) < 20 or min(block.count for block in used) < 2:
        return value, []
    factor = _factor(reference.covariance)
    left_out = []
    for block in used:
        moments = total.without(block).moments()
        inner = torch.linalg.eigvalsh(factor.T @ moments.covariance @ factor)
        left_out.append(_without_overlap(moments, reference) - 2.0 * float(inner.clamp(min=0).sqrt().sum()))
    return value, left_out


def joined(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all parts together; at least one part is needed."""
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def _moments(a: Moments | FeatureStatistics) -> Moments:
    moments = a.moments() if isinstance(a, FeatureStatistics) else a
    if not bool(torch.isfinite(moments.mean).all() and torch.isfinite(moments.covariance).all()):
        raise InputError(
            "the statistics hold values that are not finite: the samples, the extractor or the reference are broken"
        )
    return moments


def _without_overlap(a: Moments, b: Moments) -> float:
    return float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace())


def _factor(covariance: Tensor) -> Tensor:
    """A [D, r] with A A^T = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1].clamp(min=0) * values.shape[0] * torch.finfo(torch.float64).eps
    kept = values > floor
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
