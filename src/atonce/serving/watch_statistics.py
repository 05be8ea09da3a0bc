"""Whether a served model still makes what it made when it was approved: statistics of one round, and what chance does to them.

A *pool* of images is made once from the approved weights. Its first half is the reference R, its second half the calibration C:
what the same model shows from round to round is seen in C, in many draws of as many images as a round has. A round is then held
against that: beyond the quantile of the stated false-alarm rate, and by more than a practical minimum, it exceeds its limit.

Features are those of an offline extractor, in the :data:`COMPONENTS` directions in which the reference varies most, and the
length of the rest as one more number. So a few hundred images are enough for a covariance, and what appears outside those
directions (noise, say) still shows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import torch
from scipy import stats
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, Moments, frechet_distance
from atonce.evaluation.gather import block_of
from atonce.evaluation.kernel import polynomial_kernel
from atonce.evaluation.neighbours import nearest, radii
from atonce.evaluation.resampling import jackknife_interval

COMPONENTS = 64
NEAR = 0.002
"""Share of the reference's images whose nearest neighbour, among as many as a round has, counts as a duplicate."""
ROUNDS = 8
"""The reference, and the calibration, are of so many rounds' images each."""
USUAL = 0.005
"""Probability that a round of an unchanged model exceeds any of its limits."""
RARE = 1e-5
"""The same for the far limits, beyond which one round is enough."""


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What is asked of a round.

    Attributes:
        sides: ``high`` where only large values are bad, ``low``, or ``both``.
        least: The practical minimum: how far from its usual value a round must be, whatever the statistics say.
        relative: Whether ``least`` is a share of the usual value.
        text: For people.
    """

    sides: str
    least: float
    text: str
    relative: bool = False


STATISTICS: Mapping[str, Statistic] = {
    "frechet": Statistic("high", 0.01, "Fréchet distance to the reference, as a share of its variance"),
    "kernel": Statistic("high", 0.002, "kernel distance to the reference, as a share of its mean kernel"),
    "brightness": Statistic("both", 0.01, "mean of the pixels, 0 to 1"),
    "contrast": Statistic("both", 0.01, "mean spread of an image's pixels, 0 to 1"),
    "saturation": Statistic("both", 0.01, "share of pixels at either end"),
    "sharpness": Statistic("both", 0.03, "mean step between neighbouring pixels", relative=True),
    "outside": Statistic("both", 0.03, "mean length of the features outside the main directions", relative=True),
    "duplicates": Statistic("high", 0.02, "share of images that nearly repeat another one"),
    "groups": Statistic("high", 0.03, "half the sum of the differences of the groups' shares (total variation)"),
    "labels": Statistic("low", 0.03, "share of images in which the label that was asked for is found"),
}
"""The statistics of a round; ``labels`` for conditional models, ``outside`` where there are more features than directions."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is kept of images: one row each, no pixels.

    Attributes:
        features: In the reference's directions [n, D].
        pixels: Brightness, contrast, saturation and sharpness [n, 4].
        labels: The class that was asked for [n], or None.
        across: Mean kernel of each with the reference's images [n]; empty until :meth:`Reference.beside`.
    """

    features: Tensor
    pixels: Tensor
    labels: Tensor | None
    across: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Rows:
        across = self.across[index] if len(self.across) else self.across
        return Rows(self.features[index], self.pixels[index], None if self.labels is None else self.labels[index], across)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One statistic of a round.

    Attributes:
        value: Its value.
        interval: Its 95 % interval, by the jackknife over 25 blocks of the round's images.
        lower: Limit below which it is exceeded, or None.
        upper: Limit above which it is exceeded, or None.
        exceeded: It is.
        far: It is beyond the far limit, where one round is enough.
    """

    value: float
    interval: tuple[float, float]
    lower: float | None
    upper: float | None
    exceeded: bool
    far: bool


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference of one version, and what chance does to a round.

    Attributes:
        size: Images of a round.
        centre: Mean of the features [D].
        directions: Main directions [D, k].
        moments: Of the reference's rows (k + 1 features).
        variance: The trace of their covariance.
        kernel: Rows of the reference for the kernel distance [m, k + 1].
        kernel_scale: What kernel distances are divided by.
        groups: Centres of the groups [G, k + 1].
        shares: Their shares in the reference [G].
        near: Distance below which two images nearly repeat each other.
        weights: Linear classifier of the labels [k + 2, K]; None for an unconditional model.
        usual: For each statistic: mean, standard deviation and skewness of a round of the unchanged model.
    """

    size: int
    centre: Tensor
    directions: Tensor
    moments: Moments
    variance: float
    kernel: Tensor
    kernel_scale: float
    groups: Tensor
    shares: Tensor
    near: float
    weights: Tensor | None
    usual: Mapping[str, tuple[float, float, float]]

    def rows(self, images: Tensor, labels: Tensor | None, extractor: Extractor) -> Rows:
        """What is kept of images.

        Args:
            images: uint8 [n, C, H, W].
            labels: int64 [n], or None.
            extractor: The one the reference was made with.

        Returns:
            The rows.
        """
        return self.beside(rows_of(raw_features(images, extractor), pixel_facts(images), labels, self.centre, self.directions))

    def beside(self, rows: Rows) -> Rows:
        """The rows with their kernels to the reference, which every part of them shares."""
        parts = [polynomial_kernel(part, self.kernel).mean(1) for part in rows.features.split(256)]
        return dataclasses.replace(rows, across=torch.cat(parts))

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics of this model."""
        there = {"labels": self.weights is not None, "outside": self.directions.shape[0] > self.directions.shape[1]}
        return tuple(name for name in STATISTICS if there.get(name, True))

    def limits(self, name: str, level: float) -> tuple[float | None, float | None]:
        """Limits of a statistic that a round of the unchanged model exceeds with the probability ``level`` in all.

        Pearson's type III distribution through mean, standard deviation and skewness of the draws; the level is shared among
        the statistics and their sides (Bonferroni), and the practical minimum is the least distance.

        Args:
            name: The statistic.
            level: The probability that any of the statistics exceeds its limits.

        Returns:
            The lower and the upper limit; None on a side where nothing is bad.
        """
        sides, least, relative = STATISTICS[name].sides, STATISTICS[name].least, STATISTICS[name].relative
        mean, deviation, skew = self.usual[name]
        level /= len(self.statistics) * (2 if sides == "both" else 1)
        least *= abs(mean) if relative else 1.0
        # The normal quantile is the least that is asked: a short tail in the draws may be chance.
        up, down = (max(float(stats.pearson3.isf(level, s)), float(stats.norm.isf(level))) for s in (skew, -skew))
        if name == "duplicates":  # a few pairs, so their number is rather Poisson's
            pairs = float(stats.poisson.isf(level, max(mean, NEAR) * self.size / 2))
            least = max(least, 2 * (pairs + 0.5) / self.size - mean)
        lower = None if sides == "high" else mean - max(least, down * deviation)
        upper = None if sides == "low" else mean + max(least, up * deviation)
        return lower, upper

    def read(self, rows: Rows) -> dict[str, Reading]:
        """Hold a round against the reference.

        Args:
            rows: Of the round's images, as many as :attr:`size`.

        Returns:
            The readings by statistic.

        Raises:
            InputError: The round has another size than the limits are for.
        """
        if len(rows) != self.size:
            raise InputError(f"this reference is for rounds of {self.size} images, got {len(rows)}")
        values = self.measure(rows)
        blocks = block_of(torch.arange(len(rows)), BLOCKS)
        left_out = [self.measure(rows[blocks != k]) for k in range(BLOCKS)]
        out = {}
        for name, value in values.items():
            lowest = -math.inf if name == "kernel" else 0.0
            low, high = jackknife_interval(value, [each[name] for each in left_out], lowest)
            beyond = []
            for level in (USUAL, RARE):
                lower, upper = self.limits(name, level)
                beyond.append((lower is not None and value < lower) or (upper is not None and value > upper))
            lower, upper = self.limits(name, USUAL)
            out[name] = Reading(value, (min(low, value), max(high, value)), lower, upper, beyond[0], beyond[1])
        return out

    def measure(self, rows: Rows) -> dict[str, float]:
        """The statistics of some rows, without intervals: see :data:`STATISTICS`."""
        n = len(rows)
        gathered = FeatureStatistics(rows.features.shape[1])
        gathered.update(rows.features)
        within = polynomial_kernel(rows.features, rows.features)
        distance = (within.sum() - within.trace()) / (n * (n - 1)) + self._kernel_within - 2 * rows.across.mean()
        found = {"frechet": frechet_distance(gathered, self.moments) / self.variance}
        found["kernel"] = float(distance) / self.kernel_scale
        found |= dict(zip(("brightness", "contrast", "saturation", "sharpness"), rows.pixels.mean(0).tolist(), strict=True))
        if self.directions.shape[0] > self.directions.shape[1]:
            found["outside"] = float(rows.features[:, -1].mean())
        found["duplicates"] = float((radii(rows.features, 1) < self.near).double().mean())
        groups = nearest(rows.features, self.groups)[1]
        shares = torch.bincount(groups, minlength=len(self.shares)).double() / n
        found["groups"] = float((shares - self.shares).abs().sum() / 2)
        if self.weights is not None and rows.labels is not None:
            found["labels"] = float((_scores(rows.features, self.weights).argmax(1) == rows.labels).double().mean())
        return found

    @functools.cached_property
    def _kernel_within(self) -> float:
        k = polynomial_kernel(self.kernel, self.kernel)
        m = len(self.kernel)
        return float((k.sum() - k.trace()) / (m * (m - 1)))


def raw_features(images: Tensor, extractor: Extractor) -> Tensor:
    """Features float64 [n, D], in chunks of the extractor's own size."""
    return torch.cat([extractor(part).detach().cpu().double() for part in images.split(extractor.batch or 256)])


def pixel_facts(images: Tensor) -> Tensor:
    """Brightness, contrast, saturation and sharpness of each image: uint8 [n, C, H, W] to float64 [n, 4]."""
    out = []
    for part in images.split(256):
        x = part.double() / 255
        ends = ((part <= 2) | (part >= 253)).double()
        steps = [x.diff(dim=d).abs().flatten(1).mean(1) for d in (2, 3) if x.shape[d] > 1]
        sharpness = torch.stack(steps).mean(0) if steps else torch.zeros(len(part), dtype=torch.float64)
        flat = x.flatten(1)
        out.append(torch.stack([flat.mean(1), flat.std(1, unbiased=False), ends.flatten(1).mean(1), sharpness], 1))
    return torch.cat(out)


def rows_of(raw: Tensor, pixels: Tensor, labels: Tensor | None, centre: Tensor, directions: Tensor) -> Rows:
    """What is kept of images: their features in the main directions, and the length of the rest."""
    centred = raw - centre
    inside = centred @ directions
    outside = (centred.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
    return Rows(torch.cat([inside, outside[:, None]], 1), pixels, labels, torch.zeros(0))


def _scores(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]
