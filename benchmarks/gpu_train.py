"""The training of a job within a deadline, through the public API alone, in a process of its own."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_jobs import Job, Stage, images_for
from gpu_state import Limits, check_size, read_job, rounded_to_half
from gpu_tools import Notebook, say

import atonce
from atonce.core.files import write_bytes, write_json
from atonce.data.dataset import ImageData
from atonce.model import ConsistencyModel
from atonce.networks.build import build
from atonce.networks.presets import named
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder

LEAST_SECONDS = 5.0  # for less, no stage is begun
_NEVER = 1 << 45


def train_job(
    work: Path,
    job: Job,
    notes: Notebook,
    *,
    device: str,
    limits: Limits,
    plan_seconds: float | None = None,
    compiled: bool = False,
    trial_seconds: float = 8.0,
    evaluate_images: int = 1000,
) -> None:
    """Train from where the working folder stands until the clock of ``notes`` or the job ends.

    Args:
        work: The working folder.
        job: What is trained.
        notes: Where the leg is reported; its clock says when training must have stopped.
        device: Where.
        limits: What may be brought back.
        plan_seconds: Training time of the whole job over all legs; default: as planned before, else
            each leg plans for itself.
        compiled: Whether to compile.
        trial_seconds: How long the rate of a new stage is measured.
        evaluate_images: Samples of the evaluations on the way.
    """
    begun = time.time()
    status = read_job(work) or {"job": job.name, "stage": 0, "used": 0.0, "legs": []}
    status["plan"] = plan_seconds or status.get("plan")
    data = job.open()
    say(f"{job.name}: {len(data):,} images {list(data.shape)}, from stage {status['stage'] + 1} of {len(job.stages)}")
    legs: list[dict[str, Any]] = []
    while status["stage"] < len(job.stages):
        stage = job.stages[status["stage"]]
        if notes.left < LEAST_SECONDS:
            notes.skip(f"stage {stage.name}", "no time left in this leg")
            break
        started = time.time()
        folder = RunFolder(work / "run")
        options: dict[str, Any] = {"device": device, "compile": compiled, "keep": 2, "checkpoint_seconds": 60.0, "snapshots": 0}
        options["evaluate_images"] = evaluate_images
        before = _before(work, job, status["stage"])
        largest = stage.recipe(stage.most, before)
        check_size(_parameters(largest, data, before), limits, models=min(2, len(job.stages)))
        if folder.recipe_file.exists():
            recipe = _again(folder.read_recipe(), before)
            rate = float(status.get("rate", 0.0))
        else:
            planned = _seconds_for(job, status, notes)
            rate = _measured_rate(largest, data, min(trial_seconds, planned / 10), options)
            recipe = stage.recipe(images_for(stage, rate, planned, largest.batch), before)
            say(f"{stage.name}: {rate:,.0f} images/s, so {recipe.images:,} images in {planned / 60:.1f} minutes")
        status |= {"labels": list(data.label_names or ()), "compiled": compiled, "rate": rate}
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / "job.json", status)
        every = max(recipe.batch, min(recipe.images // 100, int(2 * rate)) if rate else recipe.images // 400)
        lines: list[dict[str, Any]] = []
        run = atonce.train(recipe, data, work / "run", callback=_stopper(notes, lines), log_every=every, **options)
        run.model.card["name"] = f"{job.name}-{stage.name}"
        run.model.save_pretrained(work / "latest")
        leg = _leg(stage, lines, run.images_seen, run.finished, time.time() - started)
        status["used"] += leg["seconds"]
        status["legs"].append(leg)
        legs.append(leg)
        if run.finished:
            status["stage"] += 1
            if status["stage"] < len(job.stages):
                _keep(work, stage, run.model)
                shutil.rmtree(work / "run")
        write_json(work / "job.json", status)
        notes.put("legs", legs)
        say(f"{stage.name}: {run.images_seen:,} of {recipe.images:,} images, {'finished' if run.finished else 'stopped'}")
        if not run.finished:
            break
    if status["stage"] >= len(job.stages) and not legs:
        notes.skip("training", f"job {job.name} is finished: there is nothing left to train")
    notes.put("seconds", time.time() - begun)
    notes.put("finished", status["stage"] >= len(job.stages))
    if device == "cuda" and torch.cuda.is_available():
        notes.put("peak memory, MiB", torch.cuda.max_memory_allocated() / 2**20)


def _stopper(notes: Notebook, lines: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    """A callback that asks the run to stop, as SIGTERM would, when the clock of ``notes`` has run out."""

    def callback(line: dict[str, Any]) -> None:
        lines.append({**line, "at": time.time()})
        if notes.left <= 0:
            signal.raise_signal(signal.SIGTERM)

    return callback


def _measured_rate(recipe: Recipe, data: ImageData, seconds: float, options: dict[str, Any]) -> float:
    """Images per second of a recipe on this machine, from a short run that is thrown away."""
    marks: list[tuple[int, float]] = []

    def callback(line: dict[str, Any]) -> None:
        marks.append((int(line["images"]), time.perf_counter()))
        if marks[-1][1] - marks[0][1] >= seconds:
            signal.raise_signal(signal.SIGTERM)

    with tempfile.TemporaryDirectory(prefix="atonce-rate-") as scratch:
        begun = time.perf_counter()
        quiet: dict[str, Any] = {"evaluate_every": _NEVER, "evaluate_images": 2, "quiet": True, "log_every": 4 * recipe.batch}
        atonce.train(recipe, data, Path(scratch) / "run", callback=callback, **{**options, **quiet, "checkpoint_seconds": 1e9})
        ended = time.perf_counter()
    if len(marks) > 1:  # the first line holds the warm-up
        return (marks[-1][0] - marks[0][0]) / max(marks[-1][1] - marks[0][1], 1e-6)
    return recipe.images / (ended - begun)


def _seconds_for(job: Job, status: dict[str, Any], notes: Notebook) -> float:
    """Time for the stage at hand: its share of what the plan has left, which is at least this leg."""
    shares = [stage.share for stage in job.stages[status["stage"] :]]
    return max((status["plan"] or 0.0) - status["used"], notes.left, 1.0) * shares[0] / sum(shares)


def _before(work: Path, job: Job, index: int) -> ConsistencyModel | None:
    return None if index == 0 else ConsistencyModel.from_pretrained(work / "models" / job.stages[index - 1].name)


def _again(recipe: Recipe, before: ConsistencyModel | None) -> Recipe:
    """The recipe of a run that is continued, with the model itself where the file has its name."""
    given = {name: before for name in ("init", "teacher") if getattr(recipe, name) is not None}
    return dataclasses.replace(recipe, **given)  # type: ignore[arg-type]  # train names it again, with the same result


def _parameters(recipe: Recipe, data: ImageData, before: ConsistencyModel | None) -> int:
    config = recipe.network
    if isinstance(config, str):
        told = before is not None and config == "auto"
        config = before.config.network if told else named(config, data.shape[1], data.shape[0], data.num_classes)  # type: ignore[union-attr]
    with torch.device("meta"):
        return sum(p.numel() for p in build(config, None).parameters())


def _leg(stage: Stage, lines: list[dict[str, Any]], seen: int, finished: bool, seconds: float) -> dict[str, Any]:
    """What a leg did, from its log lines."""
    leg: dict[str, Any] = {"stage": stage.name, "images_seen": seen, "finished": finished, "seconds": round(seconds, 1)}
    if len(lines) > 1:
        span = lines[-1]["at"] - lines[0]["at"]
        leg["from"] = lines[0]["images"]
        leg["images/s"] = round((lines[-1]["images"] - lines[0]["images"]) / max(span, 1e-6), 1)
    leg["precision"] = sorted({line["precision"] for line in lines if "precision" in line})
    leg["notes"] = [note for line in lines for note in line.get("notes", ())]
    return leg


def _keep(work: Path, stage: Stage, model: ConsistencyModel) -> None:
    """The model of a finished stage, rounded to half precision, and its log."""
    kept = ConsistencyModel(model.config, card=model.card)
    kept.network.load_state_dict(rounded_to_half(model.to("cpu").network.state_dict()))
    kept.save_pretrained(work / "models" / stage.name)
    write_bytes(work / "logs" / f"{stage.name}.jsonl", (work / "run" / "log.jsonl").read_bytes())
