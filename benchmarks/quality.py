"""Quality against cost on the digits: ``python benchmarks/quality.py``.

The gallery's one-step model at one, two and four steps against a denoiser's Heun and Euler solvers, on one scale: the Fréchet
distance of pixels to all digits, of 2,000 samples. The denoiser is the teacher of benchmarks/methods.py where that is trained,
else a small one that is trained here. An interrupted run goes on when started again.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import RECORDS, ROOT, RUNS, folder_of
from run import machine

FILE = RECORDS / "quality.json"
PICTURE = ROOT / "docs" / "pictures" / "quality-digits.png"
SAMPLES, IMAGES, BATCH, SEED = 2000, 60_000, 80, 0
TIMED = 64  # images of a batch whose seconds are taken
STEPS, SOLVER_STEPS = (1, 2, 4), (5, 9, 18)


def denoiser() -> Any:
    """The teacher of the methods side by side, or a denoiser of the same kind that is trained now."""
    import atonce

    taught = folder_of("methods", "digits", "teacher", 0)
    if (taught / "model" / "config.json").exists():
        return atonce.load(str(taught))
    recipe = atonce.recipes.diffusion(
        IMAGES, BATCH, 0, network="tiny", dropout=0.0, lr=2e-3, lr_cooldown=0.6, ema=(0.999,), ema_rampup=0.05
    )
    run = atonce.train(recipe, "digits", RUNS / "quality-denoiser", evaluate_every=1 << 40)
    if not run.finished:
        raise SystemExit(130)
    return run.model


def measure(models: Sequence[tuple[str, Any]], n: int = SAMPLES, out: Path | None = None, **steps: Any) -> list[Any]:
    """The points of the comparison, each told on stderr.

    Args:
        models: Names and models.
        n: Samples of each point.
        out: Where points are kept at once, so that an interrupted run goes on.
        steps: ``steps`` and ``solver_steps``, where they are not those of the benchmark.

    Returns:
        The points.
    """
    from atonce.reports.quality import compare_quality

    def told(point: Any, done: int, total: int, new: bool) -> None:
        print(f"{done}/{total} {point.model} {point.way.sampler} {point.way.steps}", file=sys.stderr, flush=True)

    wanted = {"steps": STEPS, "solver_steps": SOLVER_STEPS, **steps}
    return compare_quality(models, "digits", **wanted, n=n, extractor="pixels", seed=SEED, out=out, callback=told)


def timed(models: Sequence[tuple[str, Any]], points: Sequence[Any], rounds: int = 2) -> list[Any]:
    """The points with seconds that were taken side by side, in rounds after all distances: the least of them.

    Other work on the machine then falls on all points alike, and not on those that were measured while it ran.

    Args:
        models: Names and models.
        points: What :func:`measure` gives.
        rounds: How often each point is timed.

    Returns:
        The points in the same order.
    """
    from atonce.reports.quality import sampling_seconds

    named, seconds = dict(models), [float("inf")] * len(points)
    for _ in range(rounds):
        for k, point in enumerate(points):
            way = point.way
            again = sampling_seconds(named[point.model], TIMED, steps=way.steps, sampler=way.sampler, seed=SEED)
            seconds[k] = min(seconds[k], again)
    return [dataclasses.replace(point, seconds=value) for point, value in zip(points, seconds, strict=True)]


def record_of(models: Sequence[tuple[str, Any]], points: Sequence[Any]) -> dict[str, Any]:
    """What is committed.

    Args:
        models: Names and models.
        points: What :func:`measure` gives.

    Returns:
        JSON values.
    """
    from atonce.core.records import commit, versions

    rows = []
    for point in points:
        metric = point.record.metrics["frechet"]
        rows.append(
            {
                "model": point.model,
                "sampler": point.way.sampler,
                "steps": point.way.steps,
                "calls": point.calls,
                "frechet": metric.value,
                "interval": list(metric.interval or ()),
                "seconds per image": point.seconds,
                "record": point.record.as_dict(),
            }
        )
    return {
        "section": "quality",
        "what": "Quality against cost on the digits: a one-step model against the solvers of a denoiser, Fréchet distance of "
        f"{points[0].record.extractor.name} to all digits.",
        "command": "python benchmarks/quality.py",
        "commit": commit(),
        "machine": machine(),
        "sampled on": points[0].settings["machine"],
        "versions": versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "samples": points[0].record.samples,
        "models": {
            name: {
                "method": model.card.get("method"),
                "data": model.card.get("data"),
                "images seen": model.card.get("images_seen"),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            for name, model in models
        },
        "measured": rows,
    }


def main() -> None:
    """Measure, and write the record and the picture."""
    import torch

    import atonce
    from atonce.core.files import write_bytes, write_json
    from atonce.reports.plots import png
    from atonce.reports.quality import table
    from atonce.reports.quality_plot import quality_figure
    from atonce.verbs.bench import table_text

    torch.set_num_threads(1)
    models = [("one-step model", atonce.load("digits")), ("denoiser", denoiser())]
    points = timed(models, measure(models, out=RUNS / "quality-digits.json"))
    write_json(FILE, record_of(models, points))
    write_bytes(PICTURE, png(quality_figure(points)))
    print(table_text(*table(points)))


if __name__ == "__main__":
    main()
