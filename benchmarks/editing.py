"""Editing of held-out pictures with the gallery's models, beside simple baselines.

    python benchmarks/editing.py run         measure (an hour or two on a busy core); writes benchmarks/records/editing.json
    python benchmarks/editing.py pictures    docs/pictures/editing-*.png
    python benchmarks/editing.py report      the tables and their explanation in docs/editing.md

Held out are the first test images of Fashion-MNIST and all digits that the model was not trained on. Every result is rounded to
bytes before it is measured. What has been measured is kept in the runs folder, so an interrupted run goes on where it stood.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import editing_baselines as base
from cells import RECORDS, RUNS, data_named
from editing_baselines import Array
from run import machine

import atonce
from atonce.core.files import sha256_json, write_json
from atonce.core.images import from_uint8, to_uint8
from atonce.core.progress import Progress
from atonce.core.records import command_line, commit, versions
from atonce.core.streams import Stream, normal, uniform
from atonce.editing import denoise, estimate_sigma, inpaint, stroke, to_averages, upscale
from atonce.editing.tasks import STEPS as TASK_STEPS
from atonce.editing.times import edit_times
from atonce.evaluation.classifier import classifier
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance
from atonce.evaluation.resampling import jackknife_interval, percentile_interval, resamples

RECORD = RECORDS / "editing.json"
COUNT = {"digits": 360, "fashion": 200}
MODELS = {"digits": ("digits", "digits"), "fashion": ("fashion-mnist", "fashion-28")}
FEW = (1, 2, 4, 8, 32)  # steps beside the default
AVERAGED = 4
# What is measured beside one edit of each picture, and on which tasks: calls cost time.
SEVERAL = {"digits": ("half", "x4"), "fashion": ("half", "x4")}
BY_STEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "digits": {"half": (*FEW, 128), "x4": FEW},
    "fashion": {"half": FEW},
}
GUESSED = ("half", "noise-0.6")
BLOCKS = 20


@dataclass(frozen=True, eq=False)
class Held:
    """Held-out pictures of a data set, and what judges and knows it.

    Attributes:
        data: ``digits`` or ``fashion``.
        model: The gallery's model.
        images: uint8 [N, 1, H, W].
        labels: int64 [N].
        judge: The classifier of the training images.
        linear: The best linear guess from the training images.
        training: 200 training pictures, to tune baselines on.
        others: As many held-out pictures again, uint8.
    """

    data: str
    model: Any
    images: Tensor
    labels: Tensor
    judge: Any
    linear: base.Linear
    training: Array
    others: Tensor

    @property
    def x(self) -> Tensor:
        """The pictures, float32 [N, 1, H, W] in [-1, 1]."""
        return from_uint8(self.images)

    @property
    def given(self) -> Tensor | None:
        """The classes, for a model that makes classes."""
        return self.labels if self.model.labels else None


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to be done to pictures.

    Attributes:
        title: For people.
        mask: bool [N, H, W], what is made, or ``None`` for everything.
        simple: Baselines that know nothing of the data.
        linear: The one that knows mean and covariance of the training pictures.
        ours: Edits: name to pictures, float [N, 1, H, W].
    """

    title: str
    mask: Tensor | None
    simple: Mapping[str, Callable[[], Array]]
    linear: Callable[[], Array] | None
    ours: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


@functools.cache
def held_out(data: str, count: int | None = None) -> Held:
    """Pictures of a data set that its model has not seen."""
    name, source = MODELS[data]
    train, test = data_named(source, "train"), data_named(source, "test")
    n = min(count or COUNT[data], len(test))
    others = test.images[n : 2 * n] if len(test) >= 2 * n else train.images[:n]
    return Held(
        data,
        atonce.load(name),
        test.images[:n],
        test.labels[:n],
        classifier(train),
        base.Linear(pictures(from_uint8(train.images))),
        pictures(from_uint8(train.images[:200])),
        others,
    )


def pictures(x: Tensor) -> Array:
    """Float [N, 1, H, W] as an array [N, H, W]."""
    return x[:, 0].double().numpy()


def masks(images: Tensor) -> dict[str, tuple[str, Tensor]]:
    """Masks [N, H, W] for images [N, 1, H, W] by name, with a title."""
    n, _, height, width = images.shape
    rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width)[None].expand(height, width)
    centre = (rows >= height // 4) & (rows < height - height // 4) & (columns >= width // 4) & (columns < width - width // 4)
    random = (uniform(0, torch.arange(n), height * width, Stream.EVALUATE, 1) < 0.5).reshape(n, height, width)
    return {
        "centre": ("inpaint the middle (a quarter of the area)", centre.expand(n, height, width)),
        "half": ("inpaint the right half", (columns >= width // 2).expand(n, height, width)),
        "random": ("inpaint half of the pixels, drawn at random", random),
        "outpaint": ("outpaint: only the middle is known", (~centre).expand(n, height, width)),
    }


def variants(held: Held, key: str, edit: Callable[..., Tensor]) -> dict[str, Callable[[], Tensor]]:
    """One edit of each picture; on some tasks also the mean of several, a guessed class, other numbers of steps."""
    name = own_name(held)
    once = functools.cache(lambda: edit(labels=held.given))
    out: dict[str, Callable[[], Tensor]] = {name: once}
    if key in SEVERAL[held.data]:
        further = range(1, AVERAGED)
        out[f"mean of {AVERAGED} edits"] = lambda: torch.stack(
            [once(), *(edit(labels=held.given, seed=seed) for seed in further)]
        ).mean(0)
    if held.given is not None and key in GUESSED:
        out["atonce, class guessed"] = lambda: edit(labels=None)
    for steps in BY_STEPS[held.data].get(key, ()):
        out[f"{name}, {steps} step{'s' * (steps > 1)}"] = functools.partial(edit, labels=held.given, steps=steps)
    return out


def own_name(held: Held) -> str:
    """What an edit by the model is called."""
    return "atonce" if held.given is None else "atonce, class given"


def tasks(held: Held) -> dict[str, Task]:
    """Everything that is measured on a data set."""
    x, model, plain, name = held.x, held.model, pictures(held.x), own_name(held)
    out: dict[str, Task] = {}
    for key, (title, mask) in masks(held.images).items():
        holes = mask.numpy()
        simple = {
            "mean of the known pixels": functools.partial(base.mean_fill, plain, holes),
            "nearest known pixel": functools.partial(base.nearest_fill, plain, holes),
            "biharmonic": functools.partial(base.biharmonic_fill, plain, holes),
        }
        made = functools.partial(inpaint, model, x, mask[:, None])
        filled = functools.partial(held.linear.fill, plain, holes)
        out[key] = Task(title, mask, simple, filled, variants(held, key, made))
    for factor in (2, 4):
        small = to_averages(x, factor)
        simple = {
            "replicate": functools.partial(base.replicate, pictures(small), factor),
            "bicubic": functools.partial(base.bicubic, pictures(small), factor),
        }
        enlarged = functools.partial(upscale, model, small.clamp(-1, 1), factor)
        grown = functools.partial(held.linear.enlarge, pictures(small), factor)
        side = x.shape[-1]
        title = f"upscale {side // factor} x {side // factor} by {factor}"
        out[f"x{factor}"] = Task(title, None, simple, grown, variants(held, f"x{factor}", enlarged))
    for sigma in (0.3, 0.6):
        out[f"noise-{sigma}"] = noise_task(held, sigma)
    sketch = strokes(held.images)
    out["stroke"] = Task(
        "strokes to picture",
        None,
        {"the strokes themselves": functools.partial(pictures, sketch)},
        None,
        {
            name: functools.partial(stroke, model, sketch, labels=held.given),
            f"{name}, sigma 2": functools.partial(stroke, model, sketch, labels=held.given, sigma=2.0),
        },
    )
    return out


def noise_task(held: Held, sigma: float) -> Task:
    """Denoising at a level; the filters are told it, or are tuned for it on training pictures."""
    n, shape = len(held.images), tuple(held.images.shape[1:])
    noisy = held.x + sigma * normal(0, torch.arange(n), shape, Stream.EVALUATE, 2)
    trial = held.training + sigma * pictures(normal(0, torch.arange(len(held.training)), shape, Stream.EVALUATE, 3))
    widths, weights = [0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5], [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6]
    simple = {
        "the noisy picture": lambda: pictures(noisy).clip(-1, 1),
        "Gaussian filter": lambda: base.gaussian_filter(
            pictures(noisy), base.tuned(base.gaussian_filter, trial, held.training, widths)
        ),
        "local Wiener filter": lambda: base.local_wiener(pictures(noisy), sigma),
        "total variation": lambda: base.total_variation(
            pictures(noisy), base.tuned(base.total_variation, trial, held.training, weights)
        ),
    }
    name = own_name(held)
    ours = {
        name: lambda: denoise(held.model, noisy, sigma, labels=held.given),
        f"{name}, sigma estimated": lambda: denoise(held.model, noisy, labels=held.given),
    }
    if held.given is not None and f"noise-{sigma}" in GUESSED:
        ours["atonce, class guessed"] = lambda: denoise(held.model, noisy, sigma)
    title = f"denoise, sigma {sigma} (estimated {float(estimate_sigma(noisy).mean()):.2f} on average)"
    return Task(title, None, simple, lambda: held.linear.denoise(pictures(noisy), sigma), ours)


def strokes(images: Tensor) -> Tensor:
    """A sketch of each image uint8 [N, 1, H, W]: patches (2 x 2 of 8 x 8, 4 x 4 of 28 x 28) in three shades, float."""
    factor = images.shape[-1] // (4 if images.shape[-1] == 8 else 7)
    shades = to_averages(from_uint8(images), factor).clamp(-1, 1).round()
    return shades.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


# ---- measuring


def rounded(x: Tensor | Array) -> Tensor:
    """Results as uint8 [N, 1, H, W]."""
    return to_uint8(x if isinstance(x, Tensor) else torch.from_numpy(x)[:, None])


def frechet(features: Tensor, originals: Tensor) -> tuple[float, tuple[float, float]]:
    """Fréchet distance of pictures to their originals, with a jackknife interval that leaves out blocks of pairs."""

    def distance(keep: Tensor) -> float:
        both = []
        for rows in (features, originals):
            statistics = FeatureStatistics(rows.shape[1])
            statistics.update(rows[keep])
            both.append(statistics)
        return frechet_distance(*both)

    block = torch.arange(len(features)) % BLOCKS
    value = distance(block >= 0)
    return value, jackknife_interval(value, [distance(block != k) for k in range(BLOCKS)], 0.0)


def measure(held: Held, mask: Tensor | None, result: Tensor | Array) -> tuple[dict[str, Any], Array]:
    """What is measured of one set of results, and the mean squared error of each picture."""
    found, n = rounded(result), len(held.images)
    a, b = pictures(from_uint8(found)), pictures(held.x)
    errors = base.squared_errors(a, b, None if mask is None else mask.numpy())
    draws = [rows.numpy() for rows in resamples(n, 0, 0)]

    def mean(values: Array, turn: Callable[[float], float] = float) -> list[float]:
        interval = percentile_interval([turn(float(values[rows].mean())) for rows in draws])
        return [turn(float(values.mean())), *sorted(interval)]

    right = (held.judge.predictions(found) == held.labels).double().numpy()
    value, interval = frechet(held.judge.features(found), held.judge.features(held.images))
    out: dict[str, Any] = {
        "psnr": mean(errors, base.psnr),
        "rms": mean(errors, lambda error: float(error**0.5)),
        "accuracy": mean(right),
        "frechet": [value, *interval],
    }
    if held.images.shape[-1] >= 11:
        out["ssim"] = mean(base.ssim(a, b))
    if mask is not None:
        out["known bytes changed"] = int(((found != held.images)[:, 0] & ~mask).sum())
    return out, errors


def gain(errors: Array, other: Array) -> list[float]:
    """Decibels by which one set of errors is below another, with an interval over the same pictures."""

    def difference(rows: Any) -> float:
        return base.psnr(float(errors[rows].mean())) - base.psnr(float(other[rows].mean()))

    draws = [difference(rows.numpy()) for rows in resamples(len(errors), 0, 0)]
    return [difference(slice(None)), *percentile_interval(draws)]


def run_task(held: Held, task: Task, kept: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure what is missing of a task, method by method."""
    best: tuple[str, Array] | None = None
    for kind, methods in (("simple", task.simple), ("linear", {"best linear guess": task.linear}), ("ours", task.ours)):
        for name, method in methods.items():
            if method is None or (kind == "ours" and name in kept):
                continue
            found, errors = measure(held, task.mask, method())
            if kind == "simple" and (best is None or errors.mean() < best[1].mean()):
                best = (name, errors)
            kept[name] = {"kind": kind, **found}
            if kind == "ours" and best is not None:
                kept[name]["gain"] = {"over": best[0], "psnr": gain(errors, best[1])}
            print(held.data, task.title, name, {k: v for k, v in kept[name].items() if k != "kind"}, sep=" | ", flush=True)
            save()


def run_all(chosen: list[str], n: int | None) -> None:
    """Measure everything that is missing, then write the record."""
    measured: dict[str, Any] = {}
    for data in chosen:
        held = held_out(data, n)
        digest = sha256_json(edit_times(held.model, TASK_STEPS, None))[:8]  # other noise levels, other measurements
        file = RUNS / "editing" / f"{data}-{len(held.images)}-{digest}.json"
        kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        wanted = tasks(held)
        with Progress(f"editing {data}", len(wanted), "tasks") as bar:
            for number, (key, task) in enumerate(wanted.items()):
                entry = kept.setdefault(key, {"methods": {}})
                entry["title"] = task.title
                run_task(held, task, entry["methods"], functools.partial(write_json, file, kept))
                bar.update(number + 1, key)
        reference = {
            "accuracy": float((held.judge.predictions(held.images) == held.labels).double().mean()),
            "frechet of as many other pictures": frechet(held.judge.features(held.others), held.judge.features(held.images))[0],
        }
        measured[data] = {
            "pictures": len(held.images),
            "model": {"name": MODELS[data][0], "recipe_digest": held.model.card.get("recipe_digest")},
            "extractor": {"name": f"classifier of {held.judge.name}", "digest": held.judge.digest},
            "originals": reference,
            "tasks": kept,
        }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        RECORD,
        {
            "section": "editing",
            "what": "Edits of held-out pictures against simple baselines; 95 % intervals over pictures.",
            "command": f"python benchmarks/{command_line()}",
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": {"seed": 0, "rounding": "to bytes before measuring", "resamples": 200, "blocks": BLOCKS},
            "measured": measured,
        },
    )


def main() -> None:
    """Measure, draw or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "pictures", "report"])
    parser.add_argument("--data", nargs="+", choices=list(COUNT), default=list(COUNT))
    parser.add_argument("--n", type=int, default=None, help="pictures of each data set, for a trial")
    given = parser.parse_args()
    if given.action == "run":
        torch.set_num_threads(1)
        run_all(given.data, given.n)
        return
    import editing_report

    (editing_report.draw if given.action == "pictures" else editing_report.write)()


if __name__ == "__main__":
    main()
