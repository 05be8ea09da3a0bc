"""Probes: a process for each preset, that trains for a moment and says what it took."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atonce.core.errors import TrainingError
from atonce.training.recipe import Recipe

Told = Callable[[float, str], None]


@dataclass(frozen=True)
class Measurement:
    """What a moment of training took, on this machine, with this network and these data.

    Attributes:
        batches: Images a step, ascending, of one or two trainings.
        steps: Seconds of a step of each, the median.
        quartiles: Of the larger one's steps.
        memory: Peak bytes of the process in each.
        device_memory: Peak bytes on a CUDA device in each; 0 elsewhere.
        floor: Peak bytes before any training: the libraries, the data, the teacher.
        startup: Seconds from the start of the process to the end of the first step.
        evaluation: Seconds of an evaluation without its samples.
        sample: Seconds of a network call in sampling, for each image of a batch.
        calls: Network calls of a sample in an evaluation, at the start.
        checkpoint: Seconds of a checkpoint.
        save: Seconds in which a model is saved.
        log: Seconds of a log line.
        checkpoint_bytes: Size of a checkpoint.
        model_bytes: Size of a saved model.
        picture_bytes: Size of an evaluation's picture.
        line_bytes: Size of a log line with its events.
        parameters: Of the network.
        precision: Of the arithmetic at the beginning of the curriculum.
        tensorboard: Whether events are written.
    """

    batches: tuple[int, ...]
    steps: tuple[float, ...]
    quartiles: tuple[float, float]
    memory: tuple[int, ...]
    device_memory: tuple[int, ...]
    floor: int
    startup: float
    evaluation: float
    sample: float
    calls: int
    checkpoint: float
    save: float
    log: float
    checkpoint_bytes: int
    model_bytes: int
    picture_bytes: int
    line_bytes: float
    parameters: int
    precision: str
    tensorboard: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Measurement:
        """The measurement of :meth:`to_json`."""
        fixed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Measurement(**fixed)


def measure(
    recipe: Recipe,
    data: Path,
    *,
    batch: int,
    labels: tuple[str, ...] = (),
    teacher: Path | None = None,
    seconds: float = 4.0,
    device: str = "cpu",
    precision: str = "auto",
    told: Told | None = None,
) -> Measurement:
    """Train with a recipe for a moment in a process of its own.

    Args:
        recipe: What would be trained. That it has ``init`` or ``teacher`` says whether the teacher is used as such.
        data: An npz of images.
        batch: Images a step, at most; where time is short the probe takes fewer.
        labels: Names of the classes of the images, which an npz has not.
        teacher: Folder of the model that is distilled, or that the run starts from.
        seconds: About how long, without the start of the process.
        device: Where.
        precision: As for training.
        told: Told how far it is, from 0 to 1, and what is done.

    Returns:
        The measurement.

    Raises:
        TrainingError: The probe did not get through; the message says why and what to try.
    """
    request = {
        "recipe": recipe.as_dict(),
        "data": str(data),
        "labels": list(labels),
        "batch": batch,
        "seconds": seconds,
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "teacher": None if teacher is None else str(teacher),
        "started": time.time(),
    }
    with tempfile.TemporaryDirectory(prefix="atonce-plan-") as folder:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        result, status, said = _run(file, told or (lambda share, text: None))
    if result is None:
        why = said or {-9: "it was killed, most likely for lack of memory", -14: "it hung"}.get(status, f"status {status}")
        raise TrainingError(
            f"the probe of {recipe.method} with batches of up to {batch} did not get through ({why}): try a smaller --batch "
            "or a smaller --network"
        )
    return Measurement.from_json(result)


def _run(file: Path, told: Told) -> tuple[dict[str, Any] | None, int, str]:
    """Start the probe and listen: its result, its status, and its last words."""
    place = str(Path(__file__).resolve().parents[2])  # where this package is, installed or not
    path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # the probe is alone
        environment.pop(name, None)
    result: dict[str, Any] | None = None
    said = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # -P: nothing is imported from the folder in which somebody happens to be
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "atonce.planning.probe", str(file)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    values = json.loads(line)
                except ValueError:
                    continue
                result = values.get("result", result)
                said = values.get("error", said)
                if "share" in values:
                    told(float(values["share"]), f"{values['batch']} images a step")
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        last = [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
    return result, status, said or (last[0] if last and status > 0 else "")
