"""The Inception Score and its like on another classifier: are samples recognisable each, and varied together?"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.records import Metric
from atonce.core.streams import permutation

SPLITS = 10
FEWEST = 2 * SPLITS
_ORDER = (1 << 24) - 2  # an epoch that no training reaches, for the order of the samples in the splits


def split_scores(probabilities: Tensor, splits: int = SPLITS) -> list[float]:
    """The exponential of the mean divergence KL(p(y|x) || p(y)), on each split (Salimans et al. 2016, section 4).

    Split i holds the rows from i n // splits to (i + 1) n // splits, as in the published code and in torch-fidelity.

    Args:
        probabilities: Class probabilities [n, K]; rows sum to 1.
        splits: Number of splits, each of one row at least.

    Returns:
        One score for each split, from 1 to K.

    Raises:
        InputError: There are fewer rows than splits, or the rows are no probabilities.
    """
    if probabilities.ndim != 2 or splits < 1 or probabilities.shape[0] < splits:
        raise InputError(f"probabilities must be [n, K] with n at least {splits} splits, got {list(probabilities.shape)}")
    p = probabilities.to(torch.float64)
    if not bool((p >= 0).all()) or not bool((p.sum(1) - 1).abs().max() < 1e-3):
        raise InputError("rows of probabilities must be at least 0 and sum to 1: apply a softmax to logits first")
    n, scores = p.shape[0], []
    for i in range(splits):
        part = p[i * n // splits : (i + 1) * n // splits]
        divergence = torch.xlogy(part, part) - torch.xlogy(part, part.mean(0, keepdim=True))
        scores.append(math.exp(float(divergence.sum(1).mean())))
    return scores


def score_metric(probabilities: Tensor, *, splits: int = SPLITS, seed: int = 0, settings: str = "") -> Metric:
    """The score as a metric: the mean over random splits of equal size.

    The interval is the value ± t · s / sqrt(splits), s the standard deviation over the splits (they are independent samples)
    and t Student's 97.5 % point. A split of few rows scores lower, so values compare at equal n and splits only.

    Args:
        probabilities: Class probabilities [n, K].
        splits: Number of splits, at least 2, each of at least two rows.
        seed: Of the order in which the rows are split.
        settings: More for the metric's settings, such as the classifier.

    Returns:
        The metric.

    Raises:
        InputError: There are too few rows or splits.
    """
    n = probabilities.shape[0]
    if splits < 2 or n < 2 * splits:
        raise InputError(f"the score needs at least 2 splits of 2 samples each, got {n} samples in {splits} splits")
    scores = split_scores(probabilities[permutation(seed, _ORDER, n)], splits)
    value = math.fsum(scores) / splits
    spread = math.fsum((score - value) ** 2 for score in scores) / (splits - 1)
    half = float(stats.t.ppf(0.975, splits - 1)) * math.sqrt(spread / splits)
    words = ", ".join(part for part in (f"{splits} splits of {n // splits}", settings) if part)
    return Metric(value, (max(1.0, value - half), value + half), higher_is_better=True, unit="classes", settings=words)
