"""Which metrics are wanted, what they need, and why some cannot be had: said before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.data.dataset import ImageData
from atonce.evaluation.extractors import INCEPTION, Extractor
from atonce.evaluation.measures import MEASURES
from atonce.evaluation.reference import Reference, usable_moments
from atonce.evaluation.samples import Samples

PROBING = ("consistency_gap", "teacher_distance", "step_gain")
"""Metrics that look at the model itself, not at its samples."""

_FEATURES = ("kid", "precision_recall", "density_coverage")
_CLASSES = ("classifier_score", "class_balance", "class_accuracy", "frechet_per_class")
_INCEPTION = ("fid", "is")
_FEWEST = {"kid": 4, "precision_recall": 4, "density_coverage": 6}


def names_of(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """The names of metrics, once each.

    Args:
        metrics: One name or several.

    Returns:
        The names, in their order.

    Raises:
        InputError: There is none, or one that is not known.
    """
    given = [metrics] if isinstance(metrics, str) else list(metrics) if isinstance(metrics, Iterable) else [metrics]
    if wrong := [name for name in given if not isinstance(name, str)]:
        raise InputError(f"metrics must be names, got {wrong[0]!r}: choose from {', '.join(MEASURES)}")
    names = tuple(dict.fromkeys(given))
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        raise InputError(f"unknown metric {', '.join(unknown) or '(none given)'}: choose from {', '.join(MEASURES)}")
    return names


def check_kinds(*, data: Any, extractor: Any, reference: Any, held_out: Any, split: Any) -> None:
    """Refuse what is neither a name nor the thing itself.

    Args:
        data: The data set.
        extractor: What turns images into features.
        reference: What to compare with, or None.
        held_out: Images that were not trained on, or None.
        split: Part of the data, or None.

    Raises:
        InputError: One is of another kind.
    """
    sources = {"data": data, "reference": reference, "held_out": held_out}
    for name, value in sources.items():
        if not isinstance(value, str | Path | ImageData) and (name == "data" or value is not None):
            raise InputError(f"{name} must be a name, a path or an ImageData, got {type(value).__name__}")
    if not isinstance(extractor, str | Extractor):
        raise InputError(f"extractor must be a name or an Extractor, got {type(extractor).__name__}: 'auto' chooses one")
    if split is not None and not isinstance(split, str):
        raise InputError(f"split must be train, test or all, got {split!r}")


def check_extractor(wanted: Sequence[str], extractor: str | Extractor) -> None:
    """Refuse the metrics that mean Inception's weights on anything else.

    Args:
        wanted: Names of metrics.
        extractor: The name that was asked for, or the extractor.

    Raises:
        InputError: ``fid`` or ``is`` is wanted and the extractor is another one.
    """
    name = extractor if isinstance(extractor, str) else extractor.name
    right = name.partition(":")[0] == "inception" if isinstance(extractor, str) else name == INCEPTION
    instead = {"fid": "frechet, the same distance on another extractor", "is": "classifier_score, of the data's own classes"}
    for metric in _INCEPTION:
        if metric in wanted and not right:
            raise InputError(
                f"metric {metric} means the Inception weights, the extractor is {name}: give extractor='inception' (it needs "
                f"the extra: pip install 'atonce[fid]'), or ask for {instead[metric]}"
            )
    if "is" in wanted and isinstance(extractor, Extractor) and extractor.head is None:
        raise InputError(f"metric is needs class probabilities, and extractor {name} offers none: use extractor='inception'")


def check_reference(wanted: Sequence[str], against: Reference, extractor: Extractor, shape: tuple[int, int, int]) -> None:
    """Refuse a reference that cannot serve the metrics.

    Args:
        wanted: Names of metrics.
        against: The reference.
        extractor: The extractor.
        shape: (C, H, W) of the data.

    Raises:
        InputError: It has moments only where images are needed, or other features or images.
    """
    if against.images is not None and tuple(against.images.shape[1:]) != shape:
        raise InputError(f"the reference has images {list(against.images.shape[1:])}, the data {list(shape)}: they must agree")
    if against.images is None and (more := [name for name in wanted if name in _FEATURES]):
        raise InputError(
            f"{against.source.name} holds a mean and a covariance, enough for frechet only: leave out {', '.join(more)}"
        )
    if needs_moments(wanted) or "step_gain" in wanted:
        usable_moments(against, extractor)


def check_samples(wanted: Sequence[str], source: Samples, real: ImageData, against: Reference) -> None:
    """Refuse metrics for which there are too few samples, no classes, or no model.

    Args:
        wanted: Names of metrics.
        source: The samples.
        real: The data.
        against: The reference.

    Raises:
        InputError: A metric cannot be measured; said before any sample is made.
    """
    fewest = source.count if against.images is None else min(source.count, len(against.images))
    for name in wanted:
        if name in _FEATURES and fewest < _FEWEST[name]:
            raise InputError(f"metric {name} needs at least {_FEWEST[name]} samples and reference images, got {fewest}")
        if name in ("is", "classifier_score") and source.count < 20:
            raise InputError(f"metric {name} needs at least 20 samples, got {source.count}")
        if name in _CLASSES and real.labels is None:
            raise InputError(
                f"metric {name} needs data with labels, {real.name} has none: sort its pictures into a folder each"
            )
        if name == "class_accuracy" and source.others is not None:
            raise InputError(f"metric {name} needs samples of known classes of {real.name}: {source.others}")
        if name == "class_accuracy" and source.labels is None:
            raise InputError(
                f"metric {name} needs samples of known classes of {real.name}: "
                "give a class-conditional model of these classes, or labels="
            )
        if name in PROBING and source.model is None:
            raise InputError(f"metric {name} looks at a model, images were given: leave it out")


def judged(wanted: Sequence[str], source: Samples) -> bool:
    """Whether the data's classifier must look at the samples."""
    return any(name in wanted for name in _CLASSES[:3]) or ("frechet_per_class" in wanted and source.labels is None)


def keeps_features(wanted: Sequence[str]) -> bool:
    """Whether the features of all samples are needed together."""
    return any(name in wanted for name in (*_FEATURES, "neighbours", "frechet_per_class"))


def needs_moments(wanted: Sequence[str]) -> bool:
    """Whether statistics of the samples' features in blocks are needed."""
    return "frechet" in wanted or "fid" in wanted


def makes_samples(wanted: Sequence[str]) -> bool:
    """Whether all samples must be made: some metrics look at the model alone."""
    return any(name not in PROBING for name in wanted)
