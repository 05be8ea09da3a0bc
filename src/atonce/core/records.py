"""Records: a measured number together with everything needed to repeat it and to know what it may be compared with."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atonce.core.errors import DataError, InputError
from atonce.core.files import write_json

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
    """

    value: float
    interval: tuple[float, float] | None = None
    higher_is_better: bool | None = False
    unit: str = ""
    settings: str = ""

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
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The record that :meth:`as_dict` wrote.

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
            metrics = {name: _metric(entry) for name, entry in dict(values.pop("metrics")).items()}
            sources: dict[str, Any] = {name: Source(**values.pop(name)) for name in ("extractor", "reference", "data")}
            notes = tuple(values.pop("notes", ()))
            return cls(metrics=metrics, notes=notes, **sources, **values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the record is damaged ({error}): make it again with `atonce eval`") from error

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
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} holds no record (expected a JSON object)")
        return cls.from_dict(values)


def _metric(entry: Mapping[str, Any]) -> Metric:
    entry = dict(entry)
    interval = entry.pop("interval", None)
    return Metric(interval=None if interval is None else (float(interval[0]), float(interval[1])), **entry)


def comparable(a: Record, b: Record) -> str | None:
    """Why two records must not be compared, or None where they may.

    Steps, seed, device and recipe may differ: that is what one compares. What the numbers are measured with may not, and
    a distance also depends on how many samples it was estimated from (fewer samples, larger value).

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
    if a.rounding != b.rounding:
        return f"the images were rounded differently: {a.rounding} and {b.rounding}"
    shared = [name for name in a.metrics if name in b.metrics]
    if not shared:
        return f"they share no metric: {', '.join(a.metrics) or 'none'} and {', '.join(b.metrics) or 'none'}"
    for name in shared:
        one, other = a.metrics[name].settings, b.metrics[name].settings
        if one != other:
            return f"{name} has different settings: {one or 'none'} and {other or 'none'}"
    return None


def _both(a: str, digest_a: str, b: str, digest_b: str) -> str:
    if a == b:
        return f"{a} with digests {digest_a[:12]} and {digest_b[:12]}"
    return f"{a} and {b}"


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that runs, without paths of the machine.

    The program is given by its name; absolute paths among the arguments become relative to the working folder where
    they lie below it, and their last part elsewhere.

    Args:
        arguments: The words of the command; ``sys.argv`` by default.

    Returns:
        One line, quoted for a shell.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words or not words[0] or words[0] == "-c":
        return "python"
    program = Path(words[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else shlex.quote(program.name)
    return " ".join([name, *(shlex.quote(_without_machine(word)) for word in words[1:])])


def _without_machine(word: str) -> str:
    head, equals, tail = word.rpartition("=")
    path = Path(tail).expanduser() if tail.startswith("~") else Path(tail)
    if not path.is_absolute():
        return word
    here = Path.cwd()
    shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    return f"{head}{equals}{shown or '/'}"


def commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that the package is imported from.

    Args:
        package: Folder of the package; atonce's own by default.

    Returns:
        The full hash, with ``+changes`` where files of the package differ from it; None where the package is not a
        tracked part of a git checkout (an installed copy, even one inside somebody's repository) or git is absent.
    """
    folder = package if package is not None else Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if git("status", "--porcelain", "--", ".") else "")


def versions() -> dict[str, str]:
    """Versions of what computes the numbers; packages that are not installed as such are given as ``"source"``."""
    out = {"python": platform.python_version()}
    for package in ("atonce", "torch", "numpy"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = "source"
    return out


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
    )
