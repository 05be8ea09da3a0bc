"""Records: a measured number together with everything needed to repeat it and to know what it may be compared with."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atonce.core.errors import DataError, InputError
from atonce.core.files import write_json
from atonce.core.kinds import check_types, fits
from atonce.core.provenance import command_line as command_line
from atonce.core.provenance import commit as commit
from atonce.core.provenance import versions as versions

ROUNDING = "floor(clip(127.5 x + 128, 0, 255))"
"""How samples in [-1, 1] became 0..255 before anything was measured (``atonce.core.images.to_uint8``)."""

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Metric:
    """One measured value.

    Attributes:
        value: The number; finite.
        interval: Its 95 % interval (low, high), or None where none was computed.
        higher_is_better: True for precision, False for a distance, None where neither end is good (a share of classes).
        unit: What the number counts, for example ``"share"`` or ``"squared distance"``.
        settings: Choices that change the number, for example ``"k=3"``; part of what makes two values comparable.
        count: Number of items behind it, where that is not the record's number of samples (one class, a few probes).
    """

    value: float
    interval: tuple[float, float] | None = None
    higher_is_better: bool | None = False
    unit: str = ""
    settings: str = ""
    count: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, *(self.interval or ()))
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"a metric must be finite, got value {self.value} and interval {self.interval}")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise InputError(f"a metric's interval must be (low, high), got {self.interval}")

    def as_dict(self) -> dict[str, Any]:
        """The metric as JSON values."""
        out = dataclasses.asdict(self)
        out["interval"] = None if self.interval is None else list(self.interval)
        return out


@dataclasses.dataclass(frozen=True)
class Source:
    """What a number rests on: a data set, a set of reference statistics, or an extractor.

    Attributes:
        name: What people call it.
        digest: Hex SHA-256 of its content or definition; two sources are the same when their digests are equal.
        count: Number of images behind it, where it has one.
        seen_in_training: For an extractor: it took part in training the model, so its numbers may be shown, never ranked by.
    """

    name: str
    digest: str
    count: int | None = None
    seen_in_training: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """Metrics with their provenance.

    Attributes:
        metrics: The values by name.
        command: The command line without paths of the machine.
        recipe: Hash of the model's recipe, or None where the images come from elsewhere.
        commit: Commit of the package's checkout, with ``+changes`` where it had some; None outside a checkout.
        device: Where the samples were made.
        extractor: What turned images into features.
        reference: What the features were compared with.
        data: The data set the number speaks about.
        samples: Number of generated images.
        seed: Their seed; None where the images were given.
        steps: Intervals of the sampler; None where the images were given.
        calls: Network evaluations for each image; None where not known.
        rounding: How images became 0..255.
        created: UTC time, ISO 8601.
        versions: Versions of atonce, Python, torch and numpy.
        notes: What a reader must know beside the numbers.
        model: Name of the model and the start of a digest of the weights that made the samples.
        split: Part of the data that was compared with, where one was asked for.
        sigmas: Starting noise levels of the intervals, where they were given.
        guidance: Scale of guidance, where one was asked for or is fixed in the weights.
        sampler: The sampler, where one was asked for.
        ema: Name of the set of weights, where one was asked for.
        labels: Which classes were asked for, in words; None for an unconditional model and for images without labels.
        teacher: The denoiser that the samples were held against, for a distance to it.
        held_out: Real images that were not trained on, for nearest neighbours.
    """

    metrics: Mapping[str, Metric]
    command: str
    recipe: str | None
    commit: str | None
    device: str
    extractor: Source
    reference: Source
    data: Source
    samples: int
    seed: int | None
    steps: int | None
    calls: int | None
    rounding: str = ROUNDING
    created: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: str | None = None
    split: str | None = None
    sigmas: tuple[float, ...] | None = None
    guidance: float | None = None
    sampler: str | None = None
    ema: str | None = None
    labels: str | None = None
    teacher: Source | None = None
    held_out: Source | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values; :meth:`from_dict` gives it back."""
        out: dict[str, Any] = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Source):
                value = dataclasses.asdict(value)
            out[field.name] = value
        out["metrics"] = {name: metric.as_dict() for name, metric in self.metrics.items()}
        out["versions"] = dict(self.versions)
        out["notes"] = list(self.notes)
        out["sigmas"] = None if self.sigmas is None else list(self.sigmas)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The record that :meth:`as_dict` wrote; conditions that an older version did not note are None.

        Args:
            values: The JSON values.

        Returns:
            The record.

        Raises:
            DataError: A field is missing, unknown or of the wrong form.
        """
        values = dict(values)
        found = values.pop("format", None)
        if found != FORMAT:
            raise DataError(f"this is not a record of format {FORMAT} (found {found!r}): make it again with `atonce eval`")
        try:
            metrics = {str(name): _metric(entry) for name, entry in dict(values.pop("metrics")).items()}
            sources: dict[str, Any] = {name: _source(values.pop(name)) for name in ("extractor", "reference", "data")}
            for name in ("teacher", "held_out"):
                found = values.pop(name, None)
                sources[name] = None if found is None else _source(found)
            for name in ("notes", "sigmas"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            values = {**values, "metrics": metrics, **sources}
            check_types(cls, values)
            if values["samples"] < 1:
                raise DataError(f"samples is {values['samples']}")
            return cls(**values)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            said = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
            raise DataError(f"the record is damaged ({said}): make it again with `atonce eval`") from error

    def save(self, path: Path | str) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, self.as_dict())

    @classmethod
    def load(cls, path: Path | str) -> Record:
        """Read a record that :meth:`save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The record.

        Raises:
            DataError: The file is missing or holds no record.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read the record {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} holds no record (expected a JSON object)")
        try:
            return cls.from_dict(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _metric(entry: Any) -> Metric:
    values = dict(entry)
    interval = values.pop("interval", None)
    if interval is not None:
        if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(fits(each, float) for each in interval):
            raise TypeError(f"an interval must be two numbers, found {interval!r}")
        interval = float(interval[0]), float(interval[1])
    check_types(Metric, values)
    return Metric(interval=interval, **values)


def _source(entry: Any) -> Source:
    values = dict(entry)
    check_types(Source, values)
    return Source(**values)


def comparable(a: Record, b: Record) -> str | None:
    """Why two records must not be compared, or None where they may, with every metric that they share.

    Steps, seed, device, recipe, guidance and the like may differ: that is what one compares (:func:`conditions` shows them).
    What the numbers are measured with may not, and a distance also depends on how many samples it was estimated from (fewer
    samples, larger value). Samples of all classes cannot be compared with samples of some, nor with another choice of labels.

    Args:
        a: One record.
        b: Another.

    Returns:
        One sentence with the first reason found, or None. Where it is one of :func:`metric_differs`, other metrics may serve.
    """
    reasons = (metric_differs(name, a, b) for name in a.metrics if name in b.metrics)
    return measured_differently(a, b) or next(filter(None, reasons), None)


def measured_differently(a: Record, b: Record) -> str | None:
    """Why no metric of two records may be compared, or None; see :func:`comparable`.

    Args:
        a: One record.
        b: Another.

    Returns:
        One sentence with the first reason found, or None.
    """
    for record in (a, b):
        if record.extractor.seen_in_training:
            return f"extractor {record.extractor.name} was seen in training, so its numbers rank nothing"
    if a.extractor.digest != b.extractor.digest:
        return f"the extractors differ: {_both(a.extractor.name, a.extractor.digest, b.extractor.name, b.extractor.digest)}"
    if (a.reference.digest, a.reference.count) != (b.reference.digest, b.reference.count):
        one, other = f"{a.reference.name} ({a.reference.count} images)", f"{b.reference.name} ({b.reference.count} images)"
        return f"the references differ: {_both(one, a.reference.digest, other, b.reference.digest)}"
    if a.samples != b.samples:
        return f"the sample counts differ: {a.samples} and {b.samples}"
    if a.labels != b.labels and any(not _drawn_from_all(record.labels) for record in (a, b)):
        return f"the classes asked for differ: {a.labels or 'none'} and {b.labels or 'none'}"
    if a.rounding != b.rounding:
        return f"the images were rounded differently: {a.rounding} and {b.rounding}"
    if not any(name in b.metrics for name in a.metrics):
        return f"they share no metric: {', '.join(a.metrics) or 'none'} and {', '.join(b.metrics) or 'none'}"
    return None


_OF_DATA = ("consistency_gap", "neighbour_ratio", "class_", "classifier_score", "frechet_class")
"""How the names of metrics begin that rest on the data, not on the reference."""


def metric_differs(name: str, a: Record, b: Record) -> str | None:
    """Why one metric of two records must not be compared though others may, or None.

    Args:
        name: The metric, which both have.
        a: One record.
        b: Another.

    Returns:
        One sentence with the first reason found, or None.
    """
    one, other = a.metrics[name].settings, b.metrics[name].settings
    if one != other:
        return f"{name} has different settings: {one or 'none'} and {other or 'none'}"
    if name.startswith("teacher_") and _digest(a.teacher) != _digest(b.teacher):
        return f"the teachers differ: {_name(a.teacher)} and {_name(b.teacher)}"
    if name.startswith(_OF_DATA) and a.data.digest != b.data.digest:
        return f"the data differ: {_both(a.data.name, a.data.digest, b.data.name, b.data.digest)}"
    if name == "neighbour_ratio" and _digest(a.held_out) != _digest(b.held_out):
        one, other = (f"{_name(each)} {(_digest(each) or '')[:12]}".rstrip() for each in (a.held_out, b.held_out))
        return f"the held-out images differ: {one} and {other}"
    return None


CONDITIONS = (
    "model", "recipe", "data", "split", "samples", "seed", "steps", "calls", "sigmas", "guidance", "sampler", "ema", "labels",
    "teacher", "held_out", "device", "commit",
)  # fmt: skip
"""What is told of a record beside its numbers, in the order of importance for a reader."""

BALANCED, UNIFORM = "balanced", "drawn uniformly"
"""Words for labels that cover all classes alike."""


def conditions(record: Record) -> dict[str, str]:
    """How the numbers of a record came about, as words by name; what is not known is a dash."""
    out = {}
    for name in CONDITIONS:
        value = getattr(record, name)
        if isinstance(value, Source):
            value = value.name
        elif isinstance(value, tuple):
            value = ", ".join(f"{number:g}" for number in value)
        out[name] = "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return out


def _drawn_from_all(labels: str | None) -> bool:
    return labels in (None, BALANCED, UNIFORM)


def _digest(source: Source | None) -> str | None:
    return None if source is None else source.digest


def _name(source: Source | None) -> str:
    return "none" if source is None else source.name


def _both(a: str, digest_a: str, b: str, digest_b: str) -> str:
    if a == b:
        return f"{a} with digests {digest_a[:12]} and {digest_b[:12]}"
    return f"{a} and {b}"


def make_record(
    metrics: Mapping[str, Metric],
    *,
    device: str,
    extractor: Source,
    reference: Source,
    data: Source,
    samples: int,
    recipe: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    calls: int | None = None,
    notes: Sequence[str] = (),
    **further: Any,
) -> Record:
    """A record of numbers measured now: adds command, commit, time and versions.

    Args:
        metrics: The values by name.
        device: Where the samples were made.
        extractor: What turned images into features.
        reference: What the features were compared with.
        data: The data set the numbers speak about.
        samples: Number of generated images.
        recipe: Hash of the model's recipe.
        seed: Seed of the samples.
        steps: Intervals of the sampler.
        calls: Network evaluations for each image.
        notes: What a reader must know beside the numbers.
        further: More fields of the record by name (``model``, ``split``, ``sigmas``, ``guidance``, ...).

    Returns:
        The record.
    """
    return Record(
        metrics=dict(metrics),
        command=command_line(),
        recipe=recipe,
        commit=commit(),
        device=device,
        extractor=extractor,
        reference=reference,
        data=data,
        samples=samples,
        seed=seed,
        steps=steps,
        calls=calls,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        notes=tuple(notes),
        **further,
    )
