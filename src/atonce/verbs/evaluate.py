"""The verb ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

import atonce
from atonce.core.errors import DataError, InputError, ModelFileError
from atonce.verbs.output import show

if TYPE_CHECKING:
    from atonce.core.records import Record
    from atonce.model import ConsistencyModel


def evaluate(
    model: Positional[str],
    data: str = "digits",
    steps: int = 1,
    n: Annotated[int, arg(aliases=("-n",))] = 2000,
    metrics: tuple[str, ...] = ("frechet", "kid", "precision_recall"),
    extractor: str = "auto",
    reference: str | None = None,
    split: Literal["train", "test", "all"] | None = None,
    held_out: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    labels: tuple[str, ...] = (),
    guidance: float | None = None,
    sigmas: tuple[float, ...] = (),
    sampler: Literal["auto", "restart", "heun", "euler"] = "auto",
    ema: str | None = None,
    teacher: str | None = None,
    teacher_steps: int = 64,
    probes: int = 256,
    device: str = "auto",
    out: Path | None = None,
    append: Annotated[bool, arg(name="append-to-model")] = False,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Measure a model, or a folder of images, against data.

    Under torchrun, which wants -n for --n, the processes share the work, and the record is that of one process:
    torchrun --standalone --nproc_per_node=2 -m atonce eval digits -n 2000 --out record.json

    Metrics: frechet, kid, precision_recall, density_coverage, neighbours; fid and is (with --extractor inception);
    class_balance, class_accuracy, classifier_score, frechet_per_class (of labelled data); consistency_gap, teacher_distance,
    step_gain (of a model); digits.

    Example: atonce eval digits --data digits --n 1000

    Args:
        model: Gallery name, run folder, model folder, hub id, or a folder of images (subfolders are classes).
        data: Name, or a folder, zip or file of images.
        steps: Intervals of the sampler.
        n: Number of samples.
        metrics: Names of metrics.
        extractor: What turns images into features: pixels, effnet-lite0, classifier, inception or dinov2; auto is effnet-lite0
            for RGB images of at least 32x32 where its package is installed, and pixels for everything else.
        reference: What to compare with instead of the data: other data, or an npz with mu and sigma.
        split: Part of the data to compare with; default: train (digits: all).
        held_out: Images that were not trained on, for the metric neighbours; default: the data's test split.
        seed: Seed of the samples.
        batch: Images taken in one go; changes no number.
        labels: Classes of the samples: names or numbers, one for all or one for each, or balanced.
        guidance: Scale of guidance, for models that know it.
        sigmas: Starting noise levels, instead of the model's own.
        sampler: restart for consistency models, heun or euler for denoisers.
        ema: Name of another set of weights in the model.
        teacher: Denoiser for the metric teacher_distance; default: the one that the model's card names.
        teacher_steps: Heun steps of the teacher's solution.
        probes: Images, at most, of the metrics consistency_gap, teacher_distance and the changes of step_gain.
        device: auto, cpu, cuda or cuda:N.
        out: File for the record (JSON).
        append: Keep the record in the model's folder, and build its card again from all its records.
        quiet: Show no progress.
        json: Print the record as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value or combination cannot be used.
    """
    from atonce.core.distribution import is_main, join_world
    from atonce.evaluation.keep import keep_record
    from atonce.evaluation.select import names_of
    from atonce.exchange.open import model_folder
    from atonce.training.options import pick_device

    names_of(metrics)
    if out is not None:
        check_target(out)
    world = join_world(pick_device(device))
    subject = _subject(model)
    made = not isinstance(subject, Path)
    folder = model_folder(model) if append else None
    if append and (folder is None or not made):
        raise InputError(f"{model} is no model folder that a record could be kept in: leave out --append-to-model, use --out")
    if made:
        subject = subject.to(world.device)
    given: Any = _teacher(teacher, subject, metrics)
    record = atonce.evaluate(
        subject,
        data,
        steps=steps,
        n=n,
        metrics=metrics,
        extractor=extractor,
        reference=reference,
        split=split,
        held_out=held_out,
        seed=seed,
        batch=batch,
        labels=_labels(labels, subject),
        guidance=guidance,
        sigmas=list(sigmas) or None,
        sampler=sampler,
        ema=ema,
        teacher=None if given is None else given.to(world.device),
        teacher_steps=teacher_steps,
        probes=probes,
        sharded=world.size > 1,
        quiet=quiet,
    )
    if not is_main():
        return 0
    if out is not None:
        record.save(out)
    lines = _lines(record)
    if folder is not None:
        lines.append(f"kept in {folder}, with {keep_record(record, folder) - 1} other records")
    show(record.as_dict(), "\n".join(lines), json)
    return 0


def check_target(out: Path) -> None:
    """Refuse a file that a record must not replace.

    Args:
        out: Where a record is to be written.

    Raises:
        InputError: It is a folder, or a file that is no record.
    """
    from atonce.core.records import Record

    if out.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file for the record")
    if out.exists():
        try:
            Record.load(out)
        except DataError as problem:
            raise InputError(f"{out} exists and is no record: choose another name, nothing was changed") from problem


def _subject(model: str) -> Any:
    """The model of a name, or the folder of images that it is."""
    try:
        return atonce.load(model)
    except ModelFileError:
        if not Path(model).is_dir() or (Path(model) / "config.json").exists():
            raise
        return Path(model)


def _teacher(named: str | None, subject: Any, metrics: tuple[str, ...]) -> ConsistencyModel | None:
    """The teacher that was named, or the one of the model's card, opened; None where no metric needs it."""
    from atonce.evaluation.teacher import named_teacher

    if "teacher_distance" not in metrics:
        if named is not None:
            raise InputError("--teacher is for the metric teacher_distance: add it to --metrics, or leave the teacher out")
        return None
    if named is not None:
        return atonce.load(named)
    found = named_teacher(getattr(subject, "card", None))
    try:
        return atonce.load(found)
    except ModelFileError as problem:
        raise InputError(f"the card names the teacher {found!r}, which is not here: give --teacher ({problem})") from problem


def _labels(words: tuple[str, ...], subject: Any) -> Any:
    """Labels as numbers: one, or one for each sample; or the word for all classes equally often."""
    from atonce.core.choices import class_numbers
    from atonce.core.records import BALANCED

    if words == (BALANCED,):
        return BALANCED
    found = class_numbers(words, getattr(subject, "labels", None))
    return found[0] if found is not None and len(found) == 1 else found


def _lines(record: Record) -> list[str]:
    """The record for people."""
    lines = []
    for name, metric in record.metrics.items():
        interval = f"  ({metric.interval[0]:.5g} to {metric.interval[1]:.5g})" if metric.interval else ""
        count = f"  n={metric.count}" if metric.count is not None else ""
        lines.append(f"{name}: {metric.value:.5g}{interval}{count}")
    return [*lines, *record.notes]
