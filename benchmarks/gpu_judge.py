"""What came out: a grid of samples and offline distances, each written as soon as it is known; and the curves of a job."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_jobs import Job
from gpu_tools import Notebook, say
from torch import Tensor

import atonce
from atonce.core.errors import AtonceError
from atonce.core.images import to_uint8
from atonce.data.dataset import ImageData
from atonce.evaluation.classifier import classifier, classifier_extractor, confident_share, label_accuracy
from atonce.evaluation.extractors import Extractor, effnet_lite0, mark_seen, pixels, seen_digests
from atonce.model import ConsistencyModel
from atonce.reports.pictures import side_by_side, write_png

PIXELS = 1024  # features up to which the distance in pixels is worth its time
HEUN_STEPS = 18


def train_judge(job: Job) -> None:
    """Train the classifier of the job's data, on the CPU, into the cache."""
    data = job.open()
    if data.labels is not None:
        classifier(data)


def judge_job(work: Path, job: Job, notes: Notebook, *, device: str, samples: int = 10_000) -> None:
    """Sample the model as it stands and measure it, the cheap and telling things first.

    Args:
        work: The working folder; ``samples.png`` is left there.
        job: What was trained.
        notes: Where results go; its clock says when to stop.
        device: Where to sample.
        samples: How many are measured.
    """
    model = ConsistencyModel.from_pretrained(work / "latest").to(torch.device(device))
    data = job.open()
    ways = {f"{HEUN_STEPS} Heun steps": HEUN_STEPS} if model.kind == "denoiser" else {"1 step": 1, "2 steps": 2}
    columns = len(model.labels) if model.labels and len(model.labels) <= 12 else 8
    shown = {
        name: to_uint8(model.sample(columns * columns, n, labels=_labels(model, columns**2))).cpu() for name, n in ways.items()
    }
    panels = [(f"{job.name}: {name}", images) for name, images in shown.items()]
    write_png(work / "samples.png", side_by_side(panels, columns=columns, scale=max(4, 64 // data.shape[1])))
    notes.put(
        "grid", {"file": "samples.png", "ways": list(ways), "seed": 0, "columns": "one class each" if model.labels else ""}
    )
    found: dict[str, dict[str, Any]] = {}
    made: dict[str, Tensor] = {}
    labels = _labels(model, samples)
    for name, steps in ways.items():
        if notes.left <= 0:
            notes.skip(f"measuring {name}", "no time left")
            continue
        model.sample(2, steps, labels=_labels(model, 2))
        start = time.perf_counter()
        made[name] = to_uint8(model.sample(samples, steps, labels=labels)).cpu()
        rate = samples / (time.perf_counter() - start)
        found[name] = {"samples": samples, "calls": _calls(model, steps), "images/s": rate, "sampled on": device}
        notes.put(name, found[name])
    for extractor in _extractors(work, data, model, notes, device):  # the quick ones of all ways first
        for name, images in made.items():
            if notes.left <= 0:
                notes.skip(f"{extractor.name} of {name}", "no time left")
                continue
            record = atonce.evaluate(images, data, metrics=("frechet",), extractor=extractor, n=samples)  # type: ignore[arg-type]
            metric = record.metrics["frechet"]
            found[name][f"frechet, {extractor.name}"] = {
                "value": metric.value,
                "interval": list(metric.interval or ()),
                "extractor": extractor.digest,
                "seen in training": extractor.seen_in_training,
            }
            if extractor.name.startswith("classifier"):
                judge = classifier(data)
                found[name]["confident"] = confident_share(judge, images)
                found[name]["confident, training images"] = confident_share(judge, data.images[:samples])
                if labels is not None:
                    found[name]["looks like its class"] = label_accuracy(judge, images, labels)
            notes.put(name, found[name])
            say(f"{name}: frechet {metric.value:.4g} ({extractor.name})")


def _calls(model: ConsistencyModel, steps: int) -> int:
    """Calls of the network for an image; the last of Heun's steps ends at 0 and needs one only."""
    return 2 * steps - 1 if model.kind == "denoiser" else steps


def _labels(model: ConsistencyModel, n: int) -> Tensor | None:
    return torch.arange(n) % len(model.labels) if model.labels else None


def _extractors(work: Path, data: ImageData, model: ConsistencyModel, notes: Notebook, device: str) -> list[Extractor]:
    found: list[Extractor] = []
    if data.labels is None:
        notes.skip("the data's classifier", "the data have no labels")
    elif not list((work / "cache").glob("classifiers/*.safetensors")):
        notes.skip("the data's classifier", "it is still being trained on the CPU; the next leg goes on without waiting")
    else:
        found.append(classifier_extractor(data))
    if math.prod(data.shape) <= PIXELS:
        found.append(pixels(data.shape))
    else:
        notes.skip("frechet in pixels", f"{math.prod(data.shape)} features take too long")
    try:
        effnet = effnet_lite0(256)
        # The reference images are on the CPU, and the network goes where the images are.
        found.append(dataclasses.replace(effnet, function=lambda images: effnet.function(images.to(device))))
    except AtonceError as error:
        notes.skip("EffNet-Lite0", str(error))
    if device == "cpu" and found and found[-1].name == "EffNet-Lite0":
        notes.skip("EffNet-Lite0", "too slow on a CPU")
        found.pop()
    seen = seen_digests(model.card)
    return [mark_seen(extractor, seen) for extractor in found]


def curves(work: Path, path: Path, results: Mapping[str, Any]) -> None:
    """Loss and monitored distance of all stages over images seen.

    Args:
        work: The working folder.
        path: The picture.
        results: What :func:`judge_job` found, written into the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = [*sorted((work / "logs").glob("*.jsonl"), key=lambda file: file.stat().st_mtime), work / "run" / "log.jsonl"]
    logs = [(file.stem if file.parent.name == "logs" else "now", _lines(file)) for file in files if file.exists()]
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1)
    for name, lines in logs:
        for axes, start in ((top, "loss"), (bottom, "frechet-pixels")):
            points = [(line["images"], v) for line in lines for k, v in line.items() if k == start or k.startswith(f"{start}-")]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < 20 else "")
    for axes, label in ((top, "loss"), (bottom, "Frechet, pooled pixels")):
        axes.set_ylabel(label)
        if axes.lines:
            axes.set_yscale("log")
            axes.legend()
    bottom.set_xlabel("images seen in the stage")
    found = [f"{way}: {k} {v['value']:.4g}" for way, r in results.items() for k, v in r.items() if k.startswith("frechet")]
    top.set_title("\n".join(found[:4]), fontsize=9)
    figure.savefig(path, dpi=110)


def _lines(file: Path) -> list[dict[str, Any]]:
    out = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:  # cut short by a kill
            break
    return out
