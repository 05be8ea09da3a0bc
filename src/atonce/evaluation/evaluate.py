"""From a model or a set of images to a record: the one place where numbers for publication are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from atonce.core.checks import whole
from atonce.core.distribution import is_main
from atonce.core.errors import DataError, InputError
from atonce.core.records import Metric, Record, make_record
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation import digits
from atonce.evaluation.classifier import classifier
from atonce.evaluation.extractors import Extractor, mark_seen, open_extractor, seen_digests
from atonce.evaluation.frechet import BLOCKS
from atonce.evaluation.gather import gather
from atonce.evaluation.measures import MEASURES, Work, shown
from atonce.evaluation.measures import digits_metrics as digits_metrics
from atonce.evaluation.probes import open_probes
from atonce.evaluation.reference import Reference, data_source, open_images, open_reference
from atonce.evaluation.rows import Watch
from atonce.evaluation.samples import Sampling, open_samples
from atonce.evaluation.select import (
    check_extractor,
    check_kinds,
    check_reference,
    check_samples,
    judged,
    keeps_features,
    makes_samples,
    names_of,
    needs_moments,
)
from atonce.evaluation.teacher import STEPS

METRICS = tuple(MEASURES)
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
    guidance: float | None = None,
    sigmas: Sequence[float] | None = None,
    sampler: str = "auto",
    ema: str | None = None,
    held_out: str | Path | ImageData | None = None,
    teacher: Any = None,
    teacher_steps: int = STEPS,
    probes: int = 256,
    quiet: bool = True,
) -> Record:
    """Measure samples against data, and keep with the numbers everything needed to repeat them.

    Images are quantised to 0..255 before any feature is computed; statistics are float64 and gathered in a stream.

    The metrics, each with a 95 % interval where resampling gives one:

    - ``frechet``, ``kid``, ``precision_recall``, ``density_coverage`` on the extractor's features; ``fid`` and ``is`` are the
      Fréchet distance and the score on Inception's weights and need ``extractor="inception"``.
    - ``neighbours``: nearest training images of samples against those of held-out images.
    - by a classifier of the data's own classes: ``class_balance`` (shares of the classes), ``class_accuracy`` (is the class
      found that was asked for), ``classifier_score`` (the Inception Score's like), ``frechet_per_class`` (on the extractor's
      features, of the classes asked for, or found where none were).
    - of the model itself: ``consistency_gap`` (over sigma, on real images), ``teacher_distance`` (to the end of the teacher's
      ODE from the same noise), ``step_gain`` (what each further step changes and improves).
    - ``digits``: the judge of the 8x8 digits.

    Args:
        model_or_images: A model with ``sample(n, steps=, seed=, first=, batch=)``, a tensor [n, C, H, W] (uint8, or float
            in [-1, 1]), an ``ImageData``, or a folder of images, whose subfolders are classes.
        data: The data set the samples are to be like: a name, a path or data in memory.
        steps: Intervals of the sampler.
        n: Samples to make; of given images the first n are used.
        metrics: Names of metrics.
        extractor: Name of the extractor, or one; ``"pixels"`` are the values themselves, ``"effnet-lite0"`` ImageNet features
            that need no download, ``"classifier"`` those of a classifier of the data's own classes. ``"auto"`` is
            ``"effnet-lite0"`` for RGB images of at least 32 x 32 pixels where its package is installed, and ``"pixels"`` for
            everything else (:func:`~atonce.evaluation.extractors.automatic`); the record names the one that was used.
        reference: What to compare with instead of ``data``: other data, or an ``.npz`` with ``mu`` and ``sigma`` of the same
            extractor (for ``frechet`` alone).
        seed: Of the samples and of the resampling.
        batch: Images taken in one go; changes no number. A model makes them 64 together in any case, since float32 rounds
            differently in batches of other sizes, and the metrics of the model itself look at 32 together.
        labels: One label, one for each sample, or ``"balanced"``. A conditional model draws them where none are given.
        split: Part of the data to compare with; None is its training set (of the digits: all).
        sharded: All processes of the running group call this together: each makes its part of the samples.
        callback: Told (done, total) samples of this process.
        guidance: Scale of guidance, for models that know it.
        sigmas: Starting noise levels of the intervals, instead of the model's own for ``steps``.
        sampler: The sampler, as ``model.sample`` takes it.
        ema: Name of another set of weights in the model.
        held_out: For ``neighbours``: real images that were not trained on, instead of the data's test split.
        teacher: For ``teacher_distance``: the denoiser, a model or a function D(x, sigma).
        teacher_steps: Heun steps of the teacher's solution.
        probes: Images, at most, of the metrics that look at the model itself.
        quiet: False shows progress on stderr.

    Returns:
        The record; ``record.metrics["frechet"].value`` and ``.interval``.

    Raises:
        InputError: A metric, the extractor, n, the batch or the images cannot be used; said before any sample is made.
    """
    wanted = names_of(metrics)
    check_kinds(data=data, extractor=extractor, reference=reference, held_out=held_out, split=split)
    check_extractor(wanted, extractor)
    n, steps, seed = whole(n, "n"), whole(steps, "steps"), whole(seed, "seed")
    if n < 2:
        raise InputError(f"n must be at least 2 samples, got {n}")
    if batch is not None and (batch := whole(batch, "batch")) < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    if reference is not None and "frechet_per_class" in wanted:
        raise InputError("metric frechet_per_class compares with the classes of the data: leave out the reference")
    real = open_images(data, split)
    if "digits" in wanted and (real.name, real.shape) != ("digits", digits.SHAPE):
        raise InputError(f"metric digits judges the 8x8 digits, the data are {real.name} {list(real.shape)}: leave it out")
    against = Reference(data_source(real), real.images) if reference is None else open_reference(reference, split)
    halves = _halves(data, real, held_out) if "neighbours" in wanted else None
    source = open_samples(model_or_images, n, real, Sampling(steps, seed, batch, labels, guidance, sigmas, sampler, ema))
    check_samples(wanted, source, real, against)
    looks = open_probes(wanted, source, real, probes, teacher, teacher_steps)
    features_of = mark_seen(open_extractor(extractor, real.shape, real), seen_digests(getattr(model_or_images, "card", None)))
    check_extractor(wanted, features_of)
    check_reference(wanted, against, features_of, real.shape)

    silent = quiet or not is_main()
    judge = classifier(real, quiet=silent) if judged(wanted, source) else None
    size = batch or max(1, min(1024, (1 << 22) // max(1, real.images[0].numel())))
    where = getattr(source.model, "device", None) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = Work(source, real, against, features_of, judge, halves, looks, size, seed, sharded, silent, where)
    if source.others is not None and "frechet_per_class" in wanted:
        work.notes.append(f"{source.others}: the classes of the samples are those that the classifier finds")
    if makes_samples(wanted):
        _gather(work, wanted, callback)
    elif looks is not None and "step_gain" not in wanted:
        source.count = looks.count
    if features_of.seen_in_training:
        work.notes.append(f"training has seen the extractor {features_of.name}: the numbers may be shown, not ranked by")
    out: dict[str, Metric] = {}
    for name in wanted:
        out |= MEASURES[name](work)
    return make_record(
        out,
        device=source.device,
        extractor=features_of.source(),
        reference=against.source,
        data=data_source(real),
        samples=source.count,
        notes=work.notes,
        split=split,
        teacher=looks.teacher_source if looks is not None and "teacher_distance" in wanted else None,
        held_out=None if halves is None else data_source(halves[1]),
        **source.conditions(),
    )


def _gather(work: Work, wanted: Sequence[str], callback: Callable[[int, int], None] | None) -> None:
    """Make the samples, and keep of them what the metrics need."""
    source, judge, extractor = work.source, work.judge, work.extractor
    keeps, blocks = keeps_features(wanted), BLOCKS if needs_moments(wanted) else 0
    watches: dict[str, Watch] = {}
    if "is" in wanted and (head := extractor.head) is not None:
        watches["is"] = Watch(source.count, lambda _, features: head(features).softmax(1), work.sharded)
    elif judge is not None and not (keeps or blocks):
        # Nobody asks for features: the classifier is enough.
        extractor = Extractor(judge.name, judge.digest, judge.classes, judge.probabilities)
    if judge is not None:
        watches["judge"] = Watch(source.count, lambda images, _: judge.probabilities(images), work.sharded)
    for watch in watches.values():
        extractor = watch.inside(extractor)
    with shown("sampling", work.quiet, at_once=True) as step:

        def told(done: int, total: int) -> None:
            step(done, total)
            if callback is not None:
                callback(done, total)

        work.gathered = gather(
            source.make,
            source.count,
            extractor,
            batch=work.batch,
            blocks=blocks or int(bool(watches) and not keeps),  # without either nothing would be extracted
            device=work.device,
            keep_features=keeps,
            keep_images="digits" in wanted,
            sharded=work.sharded,
            callback=told,
        )
    work.probabilities = {name: watch.values() for name, watch in watches.items()}


def _halves(data: Any, real: ImageData, held_out: str | Path | ImageData | None) -> tuple[ImageData, ImageData]:
    """Training images and images that were not trained on."""
    if held_out is not None:
        other = held_out if isinstance(held_out, ImageData) else open_data(held_out, split="all")
        if other.shape != real.shape:
            raise InputError(f"the held-out images are {list(other.shape)}, the data {list(real.shape)}: they must agree")
        return real, other
    if isinstance(data, ImageData):
        raise InputError(
            "metric neighbours needs data with a training and a test split: give the data by name or path, or held_out="
        )
    try:
        return open_data(data, split="train"), open_data(data, split="test")
    except DataError as problem:
        raise InputError(f"metric neighbours needs images that were not trained on: give held_out= ({problem})") from problem
