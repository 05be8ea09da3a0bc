"""Metrics of classes: are all there as often as in the data, is the class that was asked for found, how good is each?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, frechet_metric
from atonce.evaluation.gather import block_of
from atonce.evaluation.resampling import jackknife_interval, mean_metric, wilson_interval

LISTED = 20
"""Classes up to which the share of each is a metric of its own."""


def class_balance(predicted: Tensor, shares: Tensor, names: Sequence[str], settings: str = "") -> dict[str, Metric]:
    """How far the classes of samples are from the shares of the data.

    ``class_total_variation`` is half the sum of |p_k - q_k| over the classes, p the samples' shares and q the data's: the part
    of the samples that would have to change class. ``class_largest_deviation`` is the largest |p_k - q_k|. Both are positive
    for a perfect sampler too (:func:`chance_variation`). Their intervals are value ± t s from the delete-one-block
    jackknife over 25 blocks of samples, as a bootstrap would add its own chance to both. ``class_share:NAME``, for up to 20
    classes, has the percentile bootstrap's interval; a resample's count of a class is binomial, so nothing need be drawn.

    Where all samples are of one class neither says anything: a class that was not found among n may still have a share up to
    w = :func:`~atonce.evaluation.resampling.wilson_interval` of 0 in n. Shares of 0 and 1 have that interval, and a deviation
    whose blocks are all alike the value ± w, as far as a deviation can go at all (1 - the smallest q_k).

    Args:
        predicted: Class of each sample, int64 [n], from 0 to K - 1.
        shares: Share of each class in the data [K].
        names: Names of the classes.
        settings: What found the classes, for the metrics' settings.

    Returns:
        The metrics by name.

    Raises:
        InputError: There are no samples, or shares, names and classes do not fit together.
    """
    k, n = len(names), predicted.shape[0]
    if shares.shape != (k,) or not n or int(predicted.min()) < 0 or int(predicted.max()) >= k:
        raise InputError(f"{n} predictions, {k} names and shares {list(shares.shape)} must fit: classes from 0 to {k - 1}")
    q = shares.to(torch.float64)
    blocks = torch.zeros(BLOCKS, k, dtype=torch.float64)
    blocks.index_put_((block_of(torch.arange(n), BLOCKS), predicted), torch.ones(n, dtype=torch.float64), accumulate=True)
    total = blocks.sum(0)

    def both(counts: Tensor) -> tuple[float, float]:
        off = (counts / counts.sum() - q).abs()
        return float(off.max()), float(off.sum()) / 2

    values = both(total)
    left_out = [both(total - block) for block in blocks] if n >= 2 * BLOCKS else []
    out = {}
    for place, name in enumerate(("class_largest_deviation", "class_total_variation")):
        interval = _deviation_interval(values[place], [v[place] for v in left_out], n, 1 - float(q.min())) if left_out else None
        out[name] = Metric(values[place], interval, higher_is_better=False, unit="share", settings=settings)
    if k <= LISTED:
        for i, name in enumerate(names):
            share = float(total[i]) / n
            found = wilson_interval(float(total[i]), n)
            if 0 < share < 1:
                low, high = (float(count) / n for count in stats.binom.ppf([0.025, 0.975], n, share))
                found = (low, high) if low < high else found
            out[f"class_share:{name}"] = Metric(share, found, None, "share", settings)
    return out


def _deviation_interval(value: float, left_out: Sequence[float], n: int, most: float) -> tuple[float, float]:
    low, high = jackknife_interval(value, left_out, 0.0)
    if high - low > 1e-12:
        return low, high
    slack = wilson_interval(0, n)[1]
    return max(0.0, value - slack), max(value, min(most, value + slack))


def chance_variation(shares: Tensor, n: int) -> float:
    """About the total variation that n perfect samples show by chance: half the sum of sqrt(2 q (1 - q) / (pi n)).

    It is the mean of |p - q| of a normal p with the binomial's variance, summed over the classes.

    Args:
        shares: Share of each class in the data [K].
        n: Number of samples.

    Returns:
        The expected total variation.
    """
    q = shares.to(torch.float64)
    return 0.5 * float((2 * q * (1 - q) / (math.pi * n)).sqrt().sum())


def class_accuracy(predicted: Tensor, asked: Tensor, *, seed: int = 0, settings: str = "") -> Metric:
    """Share of samples in which the class that was asked for is found; interval: see :func:`mean_metric`.

    Args:
        predicted: Class that the classifier finds, int64 [n].
        asked: Class that was asked for, int64 [n].
        seed: Of the resampling.
        settings: What found the classes.

    Returns:
        The metric. A perfect generator reaches the classifier's own accuracy, not 1.

    Raises:
        InputError: The counts differ or are zero.
    """
    if predicted.shape != asked.shape or not len(asked):
        raise InputError(f"{len(predicted)} predictions are compared with {len(asked)} labels: give one for each sample")
    return mean_metric(predicted == asked, seed, 9, settings)


def frechet_per_class(
    features: Tensor, classes: Tensor, reference: Tensor, reference_classes: Tensor, names: Sequence[str], settings: str = ""
) -> tuple[dict[str, Metric], list[str]]:
    """The Fréchet distance of each class to the same class of the data.

    Each ``frechet_class:NAME`` has the interval of :func:`~atonce.evaluation.frechet.frechet_metric` over 25 blocks of the
    class's samples, and the count of its samples. ``frechet_class_mean`` is the mean over the classes; its interval takes
    the classes as independent (s^2 = sum of s_k^2 / K^2). ``frechet_class_worst`` is the largest, with that class's interval.
    Distances of few samples are larger: compare at equal counts.

    Args:
        features: Of the samples [n, D].
        classes: Their classes int64 [n].
        reference: Features of the data [m, D].
        reference_classes: Its classes int64 [m].
        names: Names of the classes.
        settings: Where the samples' classes come from.

    Returns:
        The metrics by name, and a sentence for each class that has fewer than two samples on a side.

    Raises:
        InputError: No class has two samples on each side.
    """
    out: dict[str, Metric] = {}
    notes, found = [], []
    for i, name in enumerate(names):
        ours, theirs = features[classes == i], reference[reference_classes == i]
        if min(len(ours), len(theirs)) < 2:
            notes.append(f"no distance of class {name}: {len(ours)} samples and {len(theirs)} images of the data, 2 are needed")
            continue
        places = block_of(torch.arange(len(ours)), BLOCKS)
        blocks = [_statistics(ours[places == k]) for k in range(BLOCKS)]
        metric = frechet_metric(blocks, _statistics(theirs).moments(), len(ours), settings)
        out[f"frechet_class:{name}"] = metric
        found.append((metric, name))
    if not found:
        raise InputError("no class has 2 samples and 2 images of the data: make more samples")
    fewest = min(metric.count or 0 for metric, _ in found)
    if fewest < features.shape[1] + 1:
        notes.append(
            f"the covariance of a class of {fewest} samples in {features.shape[1]} dimensions is singular: "
            f"take more than {features.shape[1]} of each class"
        )
    mean = math.fsum(metric.value for metric, _ in found) / len(found)
    halves = [metric.interval[1] - metric.value for metric, _ in found if metric.interval is not None]
    interval = None
    if len(halves) == len(found):
        half = math.sqrt(math.fsum(half**2 for half in halves)) / len(found)
        interval = (max(0.0, mean - half), mean + half)
    words = ", ".join(part for part in (f"{len(found)} classes", settings) if part)
    worst, name = max(found, key=lambda pair: pair[0].value)
    notes.append(f"the class with the largest distance is {name}")
    out["frechet_class_mean"] = Metric(mean, interval, False, "squared distance", words)
    out["frechet_class_worst"] = Metric(worst.value, worst.interval, False, "squared distance", words, worst.count)
    return out, notes


def _statistics(features: Tensor) -> FeatureStatistics:
    found = FeatureStatistics(features.shape[1])
    found.update(features)
    return found
