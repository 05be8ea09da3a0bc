"""Searched time points: what was found, the file that keeps values during a search, and the model folder that uses them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atonce.core.errors import DataError, InputError
from atonce.core.files import write_json
from atonce.core.records import Metric, Record
from atonce.model import ConsistencyModel, ModelConfig
from atonce.model_files import config_from_dict, config_to_dict, is_model_folder
from atonce.sampling.search import Times

FILE = "time_search.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Point:
    """Time points and their quality."""

    sigmas: Times
    metric: Metric

    def as_dict(self) -> dict[str, Any]:
        """The point as JSON values."""
        return {"sigmas": list(self.sigmas), **self.metric.as_dict()}


@dataclasses.dataclass(frozen=True)
class TimeSearch:
    """What a search found, what it saw, and how it measured.

    Attributes:
        steps: Intervals of the sampler.
        method: How it was searched.
        name: Of the metric.
        found: The best time points.
        before: Those that ``sample(steps=...)`` used until now, measured in the same way; they are no part of the curve.
        curve: Every choice that the search measured, in order.
        record: The found value with its provenance; extractor, data, samples and seed are those of all values.
        weights: Hex SHA-256 of the weights as they lie in a model folder.
        gain: By how much the distance falls, with the interval of the difference, measured with noise on which nothing was
            chosen (both sets of time points from the same); None where nothing better was found or the metric is a function.
        gain_seed: Seed of that noise.
        calls: Network calls for each image that this took; less than the intervals of all choices, since steps are shared.
        measured: Choices measured now; the others came from the ledger.
    """

    steps: int
    method: str
    name: str
    found: Point
    before: Point
    curve: tuple[Point, ...]
    record: Record
    weights: str
    gain: Metric | None
    gain_seed: int | None
    calls: int
    measured: int

    @property
    def improved(self) -> bool:
        """Whether what was found is better than what was used until now."""
        return self.found.metric.value < self.before.metric.value

    @property
    def sure(self) -> bool:
        """Whether the gain is more than chance: its interval, from noise on which nothing was chosen, lies above 0."""
        return self.gain is not None and self.gain.interval is not None and self.gain.interval[0] > 0

    @property
    def verdict(self) -> str:
        """What the time points that were found are worth, in words."""
        if not self.improved:
            return "no better than what the model uses"
        if self.gain is None or self.gain.interval is None:
            return "better with the noise of the search, not measured with other noise"
        if self.sure:
            return "a sure gain"
        if self.gain.interval[1] < 0:
            return "no gain: with other noise it is worse"
        return "no sure gain: 0 lies inside its interval"

    def as_dict(self) -> dict[str, Any]:
        """The search as JSON values."""
        return {
            "format": FORMAT,
            "steps": self.steps,
            "method": self.method,
            "metric": self.name,
            "sigmas": list(self.found.sigmas),
            "found": self.found.as_dict(),
            "before": self.before.as_dict(),
            "improved": self.improved,
            "gain": None if self.gain is None else {**self.gain.as_dict(), "seed": self.gain_seed},
            "sure": self.sure,
            "verdict": self.verdict,
            "evaluations": len(self.curve),
            "measured": self.measured,
            "calls": self.calls,
            "weights": self.weights,
            "extractor": dataclasses.asdict(self.record.extractor),
            "n": self.record.samples,
            "seed": self.record.seed,
            "curve": [point.as_dict() for point in self.curve],
            "record": self.record.as_dict(),
        }


class Ledger:
    """Values in a file, written as soon as they are there, so that an interrupted search continues.

    Args:
        path: The file; None keeps nothing.
        settings: What the values depend on beside the time points. A file that holds others is not used and not touched.

    Attributes:
        metrics: Values by time points.

    Raises:
        DataError: The file holds something else, or values of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.metrics: dict[Times, Metric] = {}
        if path is None or not path.exists():
            return
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found, points = values["settings"], values["evaluations"]
            for point in points:
                interval = None if point["interval"] is None else tuple(point["interval"])
                rest = {name: v for name, v in point.items() if name not in ("sigmas", "interval")}
                self.metrics[tuple(point["sigmas"])] = Metric(interval=interval, **rest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds no search of time points: choose another name, nothing was changed") from error
        differ = [name for name in settings if found.get(name) != settings[name]]
        if differ:
            raise DataError(f"{path} holds a search with another {', '.join(differ)}: choose another name, nothing was changed")

    def add(self, sigmas: Times, metric: Metric) -> None:
        """Keep a value."""
        self.metrics[sigmas] = metric
        self._write({})

    def finish(self, result: TimeSearch) -> None:
        """Keep the result beside the values."""
        self._write({"result": result.as_dict()})

    def _write(self, more: dict[str, Any]) -> None:
        if self.path is not None:
            points = [Point(sigmas, metric).as_dict() for sigmas, metric in self.metrics.items()]
            write_json(self.path, {"format": FORMAT, "settings": self.settings, "evaluations": points, **more})


def with_times(model: ConsistencyModel, result: TimeSearch) -> ConsistencyModel:
    """A model that shares the weights of ``model`` and takes the found time points for that many steps."""
    config = dataclasses.replace(model.config, time_points=_added(model.config.time_points, result))
    return ConsistencyModel(config, model.network, model._ema, model.card, model.records)


def store_times(folder: Path | str, result: TimeSearch) -> None:
    """Let the model of a folder use the found time points from now on: ``config.json``, and the curve in ``time_search.json``.

    Args:
        folder: A model folder of ours with the weights that were searched.
        result: The search.

    Raises:
        InputError: The folder is none of ours or holds other weights; nothing was changed.
        DataError: Its searches cannot be read; nothing was changed.
        StorageError: It cannot be written.
    """
    folder = Path(folder)
    values, config, searches = check_store(folder, result.weights)
    replaced = dataclasses.replace(config, time_points=_added(config.time_points, result))
    write_json(folder / FILE, {"format": FORMAT, "searches": {**searches, str(result.steps): result.as_dict()}})
    write_json(folder / "config.json", {**values, "time_points": config_to_dict(replaced)["time_points"]})


def check_store(folder: Path, weights: str) -> tuple[dict[str, Any], ModelConfig, dict[str, Any]]:
    """Whether time points that were searched for these weights can be stored in a folder; changes nothing.

    Args:
        folder: Where they are to go.
        weights: Digest of the weights.

    Returns:
        The values of its ``config.json``, the configuration that they are, and the searches that it holds.

    Raises:
        InputError: The folder is none of ours or holds other weights.
        DataError: Its searches cannot be read.
    """
    if not is_model_folder(folder):
        raise InputError(f"{folder} is not a model folder of atonce: time points are stored beside the weights they are for")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config_from_dict(values, folder / "config.json")
    if _weights(values) != weights:
        raise InputError(f"{folder} holds other weights than those that were searched: search that folder's model")
    return values, config, _stored(folder / FILE)


def holds_model(folder: Path, weights: str) -> bool:
    """Whether a folder holds the model already that a copy is to be written to; changes nothing.

    Args:
        folder: Where the copy is to go.
        weights: Digest of its weights.

    Returns:
        True: the same model, whose time points alone are to be stored. False: nothing is in the way.

    Raises:
        InputError: Something else is there.
        DataError: It is the same model, but its searches cannot be read.
    """
    if not folder.exists():
        return False
    if not is_model_folder(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            return False
        raise InputError(f"{folder} exists and is not a model folder: choose another name, nothing was changed")
    if _weights(json.loads((folder / "config.json").read_text(encoding="utf-8"))) != weights:
        raise InputError(f"{folder} holds another model, nothing was changed: choose another name")
    check_store(folder, weights)
    return True


def _weights(values: Mapping[str, Any]) -> Any:
    digests = values.get("weights")
    return digests.get("model.safetensors") if isinstance(digests, Mapping) else None


def _added(points: Mapping[int, Times], result: TimeSearch) -> dict[int, Times]:
    return dict(sorted({**points, result.steps: result.found.sigmas}.items()))


def _stored(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        found, written = values["searches"], values["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: move it away to store time points, nothing was changed") from error
    if written != FORMAT or not isinstance(found, dict):
        raise DataError(f"{file} holds no searches of format {FORMAT}: move it away to store time points, nothing was changed")
    return found
