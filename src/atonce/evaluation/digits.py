"""The judge of digits: four questions to samples of scikit-learn's 8x8 digits, each with a limit they can fail.

Are they distributed like the digits (R), would a good classifier be sure of them (confidence), are all classes there
(shares), and are they more than copies of training images (neighbour ratio)?
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import permutation
from atonce.data.sources import open_data
from atonce.evaluation.confidence import Array, fit_classifier
from atonce.evaluation.extractors import pixels
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance
from atonce.evaluation.neighbours import Memorisation, class_shares, memorisation

COUNT = 1797
SHAPE = (1, 8, 8)
CONFIDENT = 0.9
"""A sample counts as recognised where the likeliest class has more than this probability."""
HALF_SPLIT_DISTANCE = 0.2932663485740427
"""What :func:`half_split_distance` gives for its 20 seeds; kept here because it takes a second to compute."""

Kind = Literal["demo", "gallery"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What samples must reach.

    Attributes:
        ratio: R at most.
        confidence: Confidence at least.
        share: Share of every class, (at least, at most).
        neighbours: Neighbour ratio at least.
    """

    ratio: float
    confidence: float
    share: tuple[float, float] = (0.05, 0.15)
    neighbours: float = 0.8


LIMITS: dict[Kind, Limits] = {"demo": Limits(ratio=2.0, confidence=0.85), "gallery": Limits(ratio=0.9, confidence=0.97)}


@dataclasses.dataclass(frozen=True)
class DigitsVerdict:
    """What the judge found.

    Attributes:
        ratio: R, the Fréchet distance of the samples to all digits over that between random halves of the digits; a
            perfect sampler is near 0.5.
        frechet: That distance itself, on pixels in [-1, 1].
        confidence: Share of samples the classifier is sure of over that share among held-out digits; 1 is as good as real.
            One sigmoid for each class against the rest (scikit-learn's ``CalibratedClassifierCV``); it is lenient, since it is
            sure of more than half of pure noise too.
        strict_confidence: The same with pairwise sigmoids and coupling, which is sure of no noise. No limit is set on it.
        class_shares: Share of each of the ten classes among the samples.
        neighbours: Median distances to the nearest training image, and their ratio.
        samples: Number of samples.
    """

    ratio: float
    frechet: float
    confidence: float
    strict_confidence: float
    class_shares: tuple[float, ...]
    neighbours: Memorisation
    samples: int

    @property
    def neighbour_ratio(self) -> float:
        """Median distance of samples to training images over that of held-out images."""
        return self.neighbours.ratio

    def shortfalls(self, kind: Kind = "demo") -> list[str]:
        """What does not reach the limits of ``"demo"`` or ``"gallery"``, one sentence each; empty where all does."""
        limits = LIMITS[kind]
        low, high = limits.share
        found = []
        if self.samples < COUNT:
            found.append(f"{self.samples} samples, the limits are for {COUNT}")
        if not self.ratio <= limits.ratio:
            found.append(f"R is {self.ratio:.3f}, at most {limits.ratio} is asked")
        if not self.confidence >= limits.confidence:
            found.append(f"confidence is {self.confidence:.3f}, at least {limits.confidence} is asked")
        for digit, share in enumerate(self.class_shares):
            if not low <= share <= high:
                found.append(f"{share:.1%} of the samples are a {digit}, {low:.0%} to {high:.0%} are asked")
        if not self.neighbour_ratio >= limits.neighbours:
            found.append(f"the neighbour ratio is {self.neighbour_ratio:.3f}, at least {limits.neighbours} is asked")
        return found

    def passes(self, kind: Kind = "demo") -> bool:
        """Whether all limits of ``"demo"`` or ``"gallery"`` are reached."""
        return not self.shortfalls(kind)


def half_split_distance(seeds: Iterable[int] = range(20)) -> float:
    """Mean pixel Fréchet distance between random halves of all digits: how far real digits are from real digits.

    In the order of the data set the halves were written by different people and lie much farther apart, so they are shuffled.

    Args:
        seeds: One permutation each; the first 898 digits against the other 899.

    Returns:
        The mean distance, about 0.29 in [-1, 1] pixel units.
    """
    features = _features(open_data("digits", split="all").images)
    distances = []
    for seed in seeds:
        one, other = permutation(seed, 0, COUNT).tensor_split([COUNT // 2])
        distances.append(frechet_distance(_statistics(features[one]), _statistics(features[other])))
    return math.fsum(distances) / len(distances)


class Judge(Protocol):
    """What both classifiers are here: inputs [n, D] to class probabilities [n, 10]."""

    def __call__(self, x: Array) -> Array:
        """Class probabilities."""


@functools.cache
def confidence_judge(strict: bool = False) -> Judge:
    """An RBF support vector machine with Platt calibration, trained on the fixed 80 % of the digits.

    Args:
        strict: Calibrate pairs of classes and couple them, instead of each class against the rest.

    Returns:
        The function from images to class probabilities.
    """
    train = open_data("digits", split="train")
    assert train.labels is not None  # digits always have labels
    x, y = _array(train.images), train.labels.numpy()
    if strict:
        return fit_classifier(x, y).probabilities
    fitted = CalibratedClassifierCV(SVC(kernel="rbf"), method="sigmoid", ensemble=False).fit(x, y)
    return lambda images: np.asarray(fitted.predict_proba(images), dtype=np.float64)


@functools.cache
def held_out_confidence(strict: bool = False) -> float:
    """Share of the held-out digits that the judge is sure of."""
    return _sure(confidence_judge(strict)(_array(open_data("digits", split="test").images)))


def _sure(probabilities: Array) -> float:
    return float((probabilities.max(1) > CONFIDENT).mean())


def judge_digits(samples: Tensor) -> DigitsVerdict:
    """Judge samples of the digits.

    Args:
        samples: uint8 [n, 1, 8, 8], quantised by ``to_uint8``. n should be 1,797: with fewer, R is larger for the same sampler.

    Returns:
        The verdict.

    Raises:
        InputError: The samples have another type or shape, or are fewer than two.
    """
    if samples.dtype != torch.uint8 or samples.ndim != 4 or tuple(samples.shape[1:]) != SHAPE or samples.shape[0] < 2:
        found = f"{samples.dtype} {list(samples.shape)}"
        raise InputError(f"the judge of digits takes at least 2 uint8 images [n, 1, 8, 8], got {found}")
    features = _features(samples)
    distance = frechet_distance(_statistics(features), _statistics(_features(open_data("digits", split="all").images)))
    probabilities, strict = (confidence_judge(kind)(_array(samples)) for kind in (False, True))
    training, held_out = (_features(open_data("digits", split=split).images) for split in ("train", "test"))
    return DigitsVerdict(
        ratio=distance / HALF_SPLIT_DISTANCE,
        frechet=distance,
        confidence=_sure(probabilities) / held_out_confidence(),
        strict_confidence=_sure(strict) / held_out_confidence(strict=True),
        class_shares=class_shares(torch.from_numpy(strict.argmax(1)), 10),
        neighbours=memorisation(features, training, held_out),
        samples=samples.shape[0],
    )


def _features(images: Tensor) -> Tensor:
    return pixels(SHAPE)(images)


def _array(images: Tensor) -> Array:
    return np.asarray(_features(images).numpy())


def _statistics(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics
