"""From a model or a set of images to a record: the one place where numbers for publication are made."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.core.images import to_uint8
from atonce.core.records import Metric, Record, make_record
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation import digits
from atonce.evaluation.extractors import Extractor, mark_seen, open_extractor, seen_digests
from atonce.evaluation.frechet import BLOCKS, Moments, frechet_metric, joined
from atonce.evaluation.gather import Gathered, gather
from atonce.evaluation.kernel import kernel_metric
from atonce.evaluation.manifold import density_coverage, precision_recall
from atonce.evaluation.neighbours import memorisation
from atonce.evaluation.reference import Reference, data_source, open_images, open_reference

METRICS = ("frechet", "kid", "precision_recall", "density_coverage", "neighbours", "digits")
FEWEST = {"kid": 4, "precision_recall": 4, "density_coverage": 6}
DEFAULT = ("frechet", "kid", "precision_recall")


def evaluate(
    model_or_images: Any,
    data: str | Path | ImageData = "digits",
    *,
    steps: int = 1,
    n: int = 10_000,
    metrics: Sequence[str] = DEFAULT,
    extractor: str | Extractor = "auto",
    reference: str | Path | ImageData | None = None,
    seed: int = 0,
    batch: int | None = None,
    labels: Any = None,
    split: str | None = None,
    sharded: bool = False,
    callback: Callable[[int, int], None] | None = None,
) -> Record:
    """Measure samples against data, and keep with the numbers everything needed to repeat them.

    Images are quantised to 0..255 before any feature is computed; statistics are float64 and gathered in a stream.

    Args:
        model_or_images: A model with ``sample(n, steps=, seed=, first=, batch=)``, a tensor [n, C, H, W] (uint8, or float
            in [-1, 1]), or a folder of images.
        data: The data set the samples are to be like: a name, a path or data in memory.
        steps: Intervals of the sampler.
        n: Samples to make; of given images the first n are used.
        metrics: Any of ``frechet``, ``kid``, ``precision_recall``, ``density_coverage``, ``neighbours`` (nearest training
            images, for data with a test split) and ``digits`` (the judge of digits).
        extractor: Name of the extractor, or one; ``"auto"`` takes pixels, ``"classifier"`` a classifier of
            the data's own classes, ``"effnet-lite0"`` ImageNet features that need no download.
        reference: What to compare with instead of ``data``: other data, or an ``.npz`` with ``mu`` and ``sigma`` of the same
            extractor (for ``frechet`` alone).
        seed: Of the samples and of the resampling.
        batch: Images in one go; changes speed only.
        labels: Given to the model: one label, or one for each sample.
        split: Part of the data to compare with; None is its training set (of the digits: all).
        sharded: All processes of the running group call this together: each makes its part of the samples.
        callback: Told (done, total) samples of this process.

    Returns:
        The record; ``record.metrics["frechet"].value`` and ``.interval``.

    Raises:
        InputError: A metric, the extractor, n, the batch or the images cannot be used; said before any sample is made.
    """
    wanted = _wanted(metrics)
    if n < 2:
        raise InputError(f"n must be at least 2 samples, got {n}")
    if batch is not None and batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    real = open_images(data, split)
    shape = real.shape
    against = Reference(data_source(real), real.images) if reference is None else open_reference(reference, split)
    seen = seen_digests(getattr(model_or_images, "card", None))
    features_of = mark_seen(open_extractor(extractor, shape, real), seen)
    needs_images = [name for name in wanted if name in ("kid", "precision_recall", "density_coverage")]
    _check_reference(against, features_of, shape, needs_images)
    training, held_out = _halves(data, real) if "neighbours" in wanted else (real, real)
    if "digits" in wanted and (real.name, shape) != ("digits", digits.SHAPE):
        raise InputError(f"metric digits judges the 8x8 digits, the data are {real.name} {list(shape)}: leave it out")

    source = _Samples(model_or_images, n, shape, steps, seed, batch, labels)
    for name in needs_images:
        fewest = min(source.count, len(against.images) if against.images is not None else 0)
        if fewest < FEWEST[name]:
            raise InputError(f"metric {name} needs at least {FEWEST[name]} samples and reference images, got {fewest}")
    size = batch or max(1, min(1024, (1 << 22) // max(1, real.images[0].numel())))
    samples = gather(
        source.make,
        source.count,
        features_of,
        batch=size,
        blocks=BLOCKS if "frechet" in wanted else 0,
        keep_features=bool(needs_images) or "neighbours" in wanted,
        keep_images="digits" in wanted,
        sharded=sharded,
        callback=callback,
    )
    notes = list(source.notes)
    if features_of.seen_in_training:
        notes.append(f"training has seen the extractor {features_of.name}: the numbers may be shown, not ranked by")
    out: dict[str, Metric] = {}
    if "frechet" in wanted:
        moments = against.moments or _moments(against, features_of, size, sharded)
        out["frechet"] = frechet_metric(samples.blocks, moments)
        if source.count < features_of.dimension + 1:
            notes.append(
                f"the covariance of {source.count} samples in {features_of.dimension} dimensions is singular: "
                f"take more than {features_of.dimension}"
            )
    if needs_images:
        theirs = _features(against.images, features_of, size, sharded)
        out |= _feature_metrics(wanted, samples, theirs, seed)
    if "neighbours" in wanted:
        assert samples.features is not None
        near = memorisation(
            samples.features,
            _features(training.images, features_of, size, sharded),
            _features(held_out.images, features_of, size, sharded),
        )
        out["neighbour_ratio"] = Metric(near.ratio, None, higher_is_better=True, unit="ratio")
    if "digits" in wanted:
        assert samples.images is not None
        out |= digits_metrics(digits.judge_digits(samples.images))
    return make_record(
        out,
        device=source.device,
        extractor=features_of.source(),
        reference=against.source,
        data=data_source(real),
        samples=source.count,
        recipe=source.recipe,
        seed=source.seed,
        steps=source.steps,
        calls=source.calls,
        notes=notes,
    )


def digits_metrics(verdict: digits.DigitsVerdict) -> dict[str, Metric]:
    """The judge's findings as metrics; the shares are given by their smallest and largest."""
    return {
        "digits_ratio": Metric(verdict.ratio, None, higher_is_better=False, unit="ratio"),
        "digits_confidence": Metric(verdict.confidence, None, higher_is_better=True, unit="ratio", settings="one against rest"),
        "digits_confidence_strict": Metric(
            verdict.strict_confidence, None, higher_is_better=True, unit="ratio", settings="pairs, coupled"
        ),
        "digits_smallest_class": Metric(min(verdict.class_shares), None, higher_is_better=None, unit="share"),
        "digits_largest_class": Metric(max(verdict.class_shares), None, higher_is_better=None, unit="share"),
        "digits_neighbour_ratio": Metric(verdict.neighbour_ratio, None, higher_is_better=True, unit="ratio"),
    }


class _Samples:
    """Where the samples come from: ``make(first, count)`` gives them as uint8, the rest goes into the record."""

    def __init__(
        self, given: Any, n: int, shape: tuple[int, int, int], steps: int, seed: int, batch: int | None, labels: Any
    ) -> None:
        self.shape = shape
        self.count = n
        self.notes: list[str] = []
        self.device = "given images"
        self.recipe: str | None = None
        self.seed: int | None = None
        self.steps: int | None = None
        self.calls: int | None = None
        if isinstance(given, (str, Path)):
            opened = open_data(given, split="all", labels=False)
            given = opened.images
        if isinstance(given, Tensor):
            if labels is not None:
                raise InputError("labels are for a model that makes samples: leave them out for given images")
            images = _as_uint8(given)
            self._check(images)
            if len(images) < 2:
                raise InputError(f"at least 2 images are needed, got {len(images)}")
            self.count = min(n, len(images))
            self.make: Callable[[int, int], Tensor] = lambda first, count: images[first : first + count]
            return
        if not callable(getattr(given, "sample", None)):
            raise InputError(f"expected a model with sample(), an image tensor or a folder, got {type(given).__name__}")
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        self.device = _device_name(getattr(given, "device", "cpu"))
        self.recipe = _recipe_hash(given)
        self.seed, self.steps = seed, steps
        arguments: dict[str, Any] = {"steps": steps, "seed": seed, "batch": batch}
        if _takes_callback(given.sample):
            arguments["callback"] = self._count_calls
        per_sample = _labels(labels, n)

        def make(first: int, count: int) -> Tensor:
            if per_sample is not None:
                arguments["labels"] = per_sample[first : first + count]
            made = given.sample(count, first=first, **arguments)
            if not bool(torch.isfinite(made).all()):
                raise InputError(f"the model gave values that are not finite among the samples {first} to {first + count - 1}")
            quantised = to_uint8(made)
            self._check(quantised)
            return quantised

        self.make = make

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise InputError(f"the images are {list(images.shape[1:])}, the data {list(self.shape)}: they must agree")

    def _count_calls(self, state: Any) -> None:
        """A step of the sampler: its running number of calls for the batch; every batch counts from one."""
        calls = state.get("calls") if isinstance(state, dict) else None
        if calls is not None:
            self.calls = max(self.calls or 0, int(calls))


def _wanted(metrics: Sequence[str]) -> tuple[str, ...]:
    names = (metrics,) if isinstance(metrics, str) else tuple(dict.fromkeys(metrics))
    if "fid" in names:
        raise InputError(
            "metric fid means the Inception weights, which are not here: install the extra (pip install 'atonce[fid]') and "
            "give their file, or ask for frechet, the same distance on another extractor"
        )
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise InputError(f"unknown metric {', '.join(unknown) or '(none given)'}: choose from {', '.join(METRICS)}")
    return names


def _check_reference(against: Reference, extractor: Extractor, shape: tuple[int, int, int], needs_images: list[str]) -> None:
    if against.moments is not None:
        if needs_images:
            raise InputError(
                f"{against.source.name} holds a mean and a covariance, enough for frechet only: "
                f"leave out {', '.join(needs_images)}"
            )
        if against.moments.mean.shape[0] != extractor.dimension:
            raise InputError(
                f"{against.source.name} has {against.moments.mean.shape[0]} features, extractor {extractor.name} gives "
                f"{extractor.dimension}: use the extractor it was made with"
            )
    elif against.images is not None and tuple(against.images.shape[1:]) != shape:
        raise InputError(f"the reference has images {list(against.images.shape[1:])}, the data {list(shape)}: they must agree")


def _halves(data: str | Path | ImageData, real: ImageData) -> tuple[ImageData, ImageData]:
    if isinstance(data, ImageData):
        raise InputError("metric neighbours needs data with a training and a test split: give the data by name or path")
    return open_data(data, split="train"), open_data(data, split="test")


def _moments(against: Reference, extractor: Extractor, batch: int, sharded: bool) -> Moments:
    images = against.images
    assert images is not None
    make = lambda first, count: images[first : first + count]
    return joined(gather(make, len(images), extractor, batch=batch, blocks=1, sharded=sharded).blocks).moments()


def _features(images: Tensor | None, extractor: Extractor, batch: int, sharded: bool) -> Tensor:
    assert images is not None
    make = lambda first, count: images[first : first + count]
    found = gather(make, len(images), extractor, batch=batch, keep_features=True, sharded=sharded).features
    assert found is not None
    return found


def _feature_metrics(wanted: Sequence[str], samples: Gathered, theirs: Tensor, seed: int) -> dict[str, Metric]:
    ours = samples.features
    assert ours is not None
    out: dict[str, Metric] = {}
    if "kid" in wanted:
        out["kid"] = kernel_metric(ours, theirs, seed=seed)
    # The manifolds are compared at equal counts, since both measures depend on them: a fixed random part of the reference.
    even = theirs if len(theirs) <= len(ours) else theirs[permutation(0, 0, len(theirs))[: len(ours)]]
    if "precision_recall" in wanted:
        out |= precision_recall(ours, even, seed=seed)
    if "density_coverage" in wanted:
        out |= density_coverage(ours, even, seed=seed)
    return out


def _as_uint8(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"images must be uint8 or float in [-1, 1], got {images.dtype}")
    low, high = (float(v) for v in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):
        raise InputError(f"float images must lie in [-1, 1], got {low:.4g} to {high:.4g}: scale or clamp them first")
    return to_uint8(images)


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(labels, dtype=torch.int64)
    if found.ndim == 0:
        return found.expand(n)
    if found.shape != (n,):
        raise InputError(f"labels must be one label or one for each of {n} samples, got {list(found.shape)}")
    return found


def _takes_callback(sample: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(sample).parameters
    except (TypeError, ValueError):
        return False
    return "callback" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _device_name(device: Any) -> str:
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _recipe_hash(model: Any) -> str | None:
    """Of the card's recipe as JSON: its hash where the card gives one, else computed as the recipe computes its own."""
    card = getattr(model, "card", None)
    if not isinstance(card, Mapping):
        return None
    found, recipe = card.get("recipe_hash"), card.get("recipe")
    if isinstance(found, str):
        return found
    return sha256_json(recipe) if isinstance(recipe, Mapping) else None
