"""Quality against cost: one-step models and the solvers of denoisers, measured in one way, by network calls and by seconds."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from atonce.core.errors import DataError, InputError
from atonce.core.files import write_json
from atonce.core.records import Record
from atonce.data.dataset import ImageData
from atonce.evaluation.evaluate import evaluate
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.reference import open_images
from atonce.evaluation.search import search_extractor
from atonce.model import ConsistencyModel
from atonce.model_files import weights_digest
from atonce.planning.machine import machine

FORMAT = 1
FEWEST = 50  # samples for a Fréchet distance with its interval
BATCHES = 5  # of which the least time is taken


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to sample a model.

    Attributes:
        sampler: ``"restart"``, ``"heun"`` or ``"euler"``.
        steps: Its intervals.
    """

    sampler: str
    steps: int


@dataclasses.dataclass(frozen=True)
class QualityPoint:
    """One way to sample one model: how good and how dear.

    Attributes:
        model: Name of the model.
        way: How it was sampled.
        seconds: Wall time of sampling for each image, without measuring (:func:`sampling_seconds`).
        settings: What the values depend on; a point with the same settings is not measured again.
        record: The Fréchet distance with its provenance; its ``calls`` are the network calls for each image.
    """

    model: str
    way: Way
    seconds: float
    settings: dict[str, Any]
    record: Record

    @property
    def calls(self) -> int:
        """Network calls for each image."""
        return self.record.calls or 0

    def as_dict(self) -> dict[str, Any]:
        """The point as JSON values."""
        return {
            "model": self.model,
            "sampler": self.way.sampler,
            "steps": self.way.steps,
            "seconds": self.seconds,
            "settings": self.settings,
            "record": self.record.as_dict(),
        }


def ways(model: ConsistencyModel, steps: Sequence[int], solver_steps: Sequence[int]) -> list[Way]:
    """How a model is sampled for the comparison: restarts where it can, else both solvers.

    Args:
        model: The model.
        steps: Intervals for models that restart.
        solver_steps: Intervals for denoisers.

    Returns:
        The ways, each once.

    Raises:
        InputError: There is none, or a number of steps is below 1.
    """
    wanted = solver_steps if model.kind == "denoiser" else steps
    if not wanted or any(not isinstance(k, int) or k < 1 for k in wanted):
        name = "solver_steps" if model.kind == "denoiser" else "steps"
        raise InputError(f"{name} is {list(wanted)}: give whole numbers of at least 1")
    samplers = ("heun", "euler") if model.kind == "denoiser" else ("restart",)
    return [Way(sampler, k) for sampler in samplers for k in dict.fromkeys(wanted)]


def compare_quality(
    models: Sequence[tuple[str, ConsistencyModel]],
    data: str | Path | ImageData = "digits",
    *,
    steps: Sequence[int] = (1, 2, 4),
    solver_steps: Sequence[int] = (5, 9, 18),
    n: int = 2000,
    extractor: str | Extractor = "auto",
    seed: int = 0,
    batch: int = 64,
    out: Path | None = None,
    callback: Callable[[QualityPoint, int, int, bool], None] | None = None,
) -> list[QualityPoint]:
    """Measure each way to sample each model.

    Seconds are of sampling alone, the least of five batches after one that is not counted, on the device of the models and
    with the threads that PyTorch has here; both are among the settings. Each model itself is evaluated, with its sampler and
    time points named, so that its record says which model it was and how it was asked.

    Args:
        models: Names and models; consistency models are sampled by restarts, denoisers by Heun and by Euler.
        data: What the samples are to be like.
        steps: Intervals of restarts.
        solver_steps: Intervals of the solvers; Heun makes 2 k - 1 calls, Euler k.
        n: Samples of each point.
        extractor: As for :func:`atonce.evaluation.search.search_extractor`; one for all models.
        seed: Of the samples.
        batch: Images at once where seconds are measured.
        out: File of the points; those that are there with the same settings are taken from it, others of it are kept.
        callback: Told of each point: the point, its number from 1, how many there are, whether it was measured now.

    Returns:
        The points, in the order of models and ways.

    Raises:
        InputError: A model does not fit the data, or a number is out of range.
        DataError: ``out`` holds something else.
    """
    if n < FEWEST:
        raise InputError(f"n is {n}: a distance with its interval needs at least {FEWEST} samples")
    if batch < 1:
        raise InputError(f"batch is {batch}, must be at least 1")
    if not models:
        raise InputError("there is no model to measure: name at least one")
    names = [name for name, _ in models]
    if len(set(names)) != len(names):
        raise InputError(f"the models are {', '.join(names)}: each can be named once")
    plan = [(name, model, way) for name, model in models for way in ways(model, steps, solver_steps)]
    kept = _read(out)
    real = open_images(data)
    for name, model in models:
        if model.image_shape != real.shape:
            raise InputError(f"{name} makes images {list(model.image_shape)}, the data are {list(real.shape)}: they must agree")
    features = search_extractor(extractor, real)
    digests = {name: weights_digest(model) for name, model in models}
    points: list[QualityPoint] = []
    for name, model, way in plan:
        settings = {
            "weights": digests[name],
            "sampler": way.sampler,
            "steps": way.steps,
            "time points": list(model.config.time_points.get(way.steps, ())),
            "data": real.digest(),
            "extractor": features.digest,
            "n": n,
            "seed": seed,
            "batch": batch,
            "machine": machine(model.device),
        }
        found = next((point for point in kept if point.settings == settings), None)
        if found is None:
            asked: dict[str, Any] = {"steps": way.steps, "sigmas": model.config.time_points.get(way.steps), "seed": seed}
            asked["sampler"] = way.sampler
            seconds = sampling_seconds(model, min(batch, n), **asked)
            record = evaluate(model, real, n=n, metrics=("frechet",), extractor=features, **asked)
            notes = (*record.notes, f"{name} by {way.sampler}; {settings['machine']}")
            point = QualityPoint(name, way, seconds, settings, dataclasses.replace(record, notes=notes))
            kept.append(point)
            if out is not None:
                write_json(out, {"format": FORMAT, "points": [p.as_dict() for p in kept]})
        else:
            point = dataclasses.replace(found, model=name)
        points.append(point)
        if callback is not None:
            callback(point, len(points), len(plan), found is None)
    return points


def table(points: Sequence[QualityPoint]) -> tuple[list[str], list[list[str]]]:
    """The points as a table.

    Args:
        points: What was measured.

    Returns:
        Its head and its rows, as text.
    """
    head = ["model", "sampler", "steps", "calls", "Fréchet distance", "95 % interval", "seconds an image"]
    rows = []
    for point in points:
        metric = point.record.metrics["frechet"]
        interval = f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}" if metric.interval else ""
        cells = (point.model, point.way.sampler, str(point.way.steps), str(point.calls))
        rows.append([*cells, f"{metric.value:.4g}", interval, f"{point.seconds:.3g}"])
    return head, rows


def sampling_seconds(model: ConsistencyModel, n: int, **options: Any) -> float:
    """Wall time of sampling for each image: the least of five batches, after one that is not counted.

    The least, because other work on the machine can only add to it.

    Args:
        model: The model.
        n: Images of a batch.
        options: Of its ``sample``.

    Returns:
        Seconds.
    """
    times = []
    for k in range(1 + BATCHES):
        _wait(model.device)
        start = time.perf_counter()
        model.sample(n, first=k * n, batch=n, **options)
        _wait(model.device)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / n


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(out: Path | None) -> list[QualityPoint]:
    if out is None or not out.exists():
        return []
    try:
        values = json.loads(out.read_text(encoding="utf-8"))["points"]
        points = [
            QualityPoint(v["model"], Way(v["sampler"], v["steps"]), v["seconds"], v["settings"], Record.from_dict(v["record"]))
            for v in values
        ]
        return [point for point in points if point.record.model is not None]  # an older version noted no conditions
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out} holds no points of a comparison: choose another name, nothing was changed") from error
