"""What is known of the methods: our own runs at small scale, and what the papers report. Neither is a promise."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Start = Literal["data", "teacher"]
_NEAR = 1.5  # a run speaks for images of up to so many times its side


@dataclass(frozen=True)
class Known:
    """A run whose result is known.

    Attributes:
        method: ``ict``, ``ct``, ``ect``, ``cd``, ``progressive``, ``diffusion``, or one that atonce has not.
        start: Whether it began from data alone or from a trained diffusion model.
        data: What was learnt.
        size: Height and width of the images.
        images: Images seen, without those of the teacher.
        result: What came out, in words.
        compute: What it took, in words; empty where nobody says.
        source: ``"measured"`` where it is ours, ``"published"`` where it is not.
        reference: Where it can be read.
    """

    method: str
    start: Start
    data: str
    size: int
    images: int
    result: str
    compute: str
    source: Literal["measured", "published"]
    reference: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return dict(self.__dict__)

    @property
    def sentence(self) -> str:
        """It in one line."""
        whose = "measured by us" if self.source == "measured" else "published"
        compute = f", {self.compute}" if self.compute else ""
        return f"{self.method} on {self.data}: {self.result} after {self.images:,} images{compute} ({whose}: {self.reference})"


def _cifar(method: str, start: Start, images: int, result: str, compute: str, reference: str) -> Known:
    return Known(method, start, "CIFAR-10", 32, images, result, compute, "published", reference)


PUBLISHED: tuple[Known, ...] = (
    _cifar("diffusion", "data", 200_000_000, "FID 1.97 in 35 calls", "8 V100 for about 2 days", "EDM, arXiv 2206.00364"),
    _cifar("cd", "teacher", 409_600_000, "FID 3.55 in one step", "8 A100", "arXiv 2303.01469"),
    _cifar("ct", "data", 409_600_000, "FID 8.70 in one step", "8 A100", "arXiv 2303.01469"),
    _cifar("ict", "data", 409_600_000, "FID 2.83 in one step", "", "arXiv 2310.14189, as later papers quote it"),
    _cifar("ect", "teacher", 1_024_000, "FID 2.73 in two steps", "one A100 for an hour", "arXiv 2406.14548"),
    _cifar("ect", "teacher", 12_800_000, "FID 4.54 in one step, 2.20 in two", "", "the code of arXiv 2406.14548"),
    _cifar("ect", "teacher", 51_200_000, "FID 3.60 in one step, 2.11 in two", "", "the code of arXiv 2406.14548"),
    _cifar("ict", "teacher", 12_800_000, "FID 4.18 in one step, 2.58 in two", "", "the ADCM paper's comparison"),
    Known("diffusion", "data", "ImageNet", 64, 2_500_000_000, "FID 1.36 (stochastic sampler)", "32 A100 for about 13 days",
          "published", "EDM, arXiv 2206.00364 and its code"),
    Known("ect", "teacher", "ImageNet", 64, 12_800_000, "FID 5.51 in one step (smallest network)", "", "published",
          "the code of arXiv 2406.14548"),
    Known("cd", "teacher", "ImageNet", 64, 1_228_800_000, "FID 6.20 in one step", "64 A100", "published", "arXiv 2303.01469"),
)  # fmt: skip
"""Reports of others. What they needed is not what is needed: their runs were made to be the best, not the shortest."""


@dataclass(frozen=True)
class Line:
    """A line of our table of methods.

    Attributes:
        data: What was learnt.
        size: Height and width of the images.
        cell: Name of the line.
        method: Its preset.
        images: Images seen, without those of the teacher.
        teacher: Whether a teacher of as many images stood before it.
        seconds: Median time of the training, on one CPU thread, beside other work.
        seeds: How many runs.
        one: Mean Fréchet distance (features of a classifier of the same data) in one step, and half its 95 % interval.
        two: The same in two steps.
        settings: Recipe fields that are not those of the preset.
    """

    data: str
    size: int
    cell: str
    method: str
    images: int
    teacher: bool
    seconds: float
    seeds: int
    one: tuple[float, float] | None
    two: tuple[float, float] | None
    settings: dict[str, Any]

    @property
    def known(self) -> Known:
        """The line as a known run."""
        steps = [
            f"{v:.3g} ± {h:.2g} in {word}"
            for word, found in (("one step", self.one), ("two", self.two))
            if found
            for v, h in (found,)
        ]
        result = f"Fréchet distance {', '.join(steps)}" if steps else "trained"
        return Known(
            self.method,
            "teacher" if self.teacher else "data",
            f"{self.data} ({self.size}x{self.size})",
            self.size,
            self.images,
            result,
            f"{self.seeds} run{'s' if self.seeds > 1 else ''}",
            "measured",
            "docs/comparison.md",
        )


@functools.cache
def table() -> tuple[Line, ...]:
    """Our table of methods, as ``python benchmarks/plan.py table`` has gathered it."""
    lines = []
    for values in _file()["lines"]:
        fixed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        fixed["settings"] = {name: tuple(v) if isinstance(v, list) else v for name, v in values["settings"].items()}
        lines.append(Line(**fixed))
    return tuple(lines)


@functools.cache
def known_runs() -> tuple[Known, ...]:
    """All runs that are known: of our table, of the gallery, published."""
    gallery = [Known(**values) for values in _file()["gallery"]]
    return (*(line.known for line in table()), *gallery, *PUBLISHED)


def speaking_for(method: str, start: Start, size: int) -> list[Known]:
    """Known runs of a method with images of about this size or larger: the nearest size first, and of one size the cheapest.

    Args:
        method: The preset.
        start: Where it begins.
        size: Height and width of the images in question.

    Returns:
        The runs; none where nothing is known.
    """
    found = [run for run in known_runs() if (run.method, run.start) == (method, start) and run.size * _NEAR >= size]
    return sorted(found, key=lambda run: (abs(math.log(run.size / size)), run.images))


def best_line(methods: Sequence[str], size: int) -> Line | None:
    """The best line of our table for some methods, of the data whose size is nearest.

    Args:
        methods: The presets.
        size: Height and width of the images in question.

    Returns:
        The line with the least distance in one step; ``None`` where there is none.
    """
    found = [line for line in table() if line.method in methods and line.one is not None]
    if not found:
        return None
    nearest = min({line.size for line in found}, key=lambda side: abs(side - size))
    return min((line for line in found if line.size == nearest), key=lambda line: line.one[0] if line.one else 0.0)


def _file() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(
        importlib.resources.files("atonce.planning").joinpath("methods.json").read_text("utf-8")
    )
    return values
