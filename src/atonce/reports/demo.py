"""The demo: train a generator of handwritten digits here, judge it, and leave a run folder that explains what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atonce.core.errors import InputError
from atonce.core.files import write_bytes
from atonce.core.images import to_uint8
from atonce.core.progress import format_duration
from atonce.core.records import Metric, Record, Source, make_record
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation.digits import COUNT, HALF_SPLIT_DISTANCE, LIMITS, DigitsVerdict, judge_digits
from atonce.evaluation.extractors import pixels
from atonce.model import ConsistencyModel
from atonce.reports import plots
from atonce.reports.pictures import labelled_rows, side_by_side, write_png
from atonce.reports.report import DemoFacts, demo_page
from atonce.training.loop import Run, fit
from atonce.training.options import Options
from atonce.training.presets import digits
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder

SAMPLE_SEED = 1  # of the samples that are judged and shown; the monitor of training uses another


@dataclass(frozen=True)
class Demo:
    """What the demo leaves behind.

    Attributes:
        folder: The run folder.
        verdict: What the judge found; ``None`` after an interruption.
        text: Lines for the terminal.
    """

    folder: Path
    verdict: DigitsVerdict | None
    text: str


def run_demo(out: Path, *, images: int | None = None, seed: int = 0, resume: bool = True, quiet: bool = False) -> Demo:
    """Train on the digits (or continue), judge 1,797 one-step samples, and write pictures, plots, record and report.

    Args:
        out: The run folder. Run again, a finished demo only makes its report anew.
        images: Budget in images seen; default: that of the recipe.
        seed: Seed of the run.
        resume: Whether a demo that is there may be continued.
        quiet: Show no progress.

    Returns:
        The demo.

    Raises:
        InputError: The folder holds something else, or a value is out of range.
    """
    recipe = digits(seed=seed) if images is None else digits(images, seed=seed)
    data = open_data("digits", split="train")
    run = fit(recipe, data, out, resume=resume, options=Options(quiet=quiet))
    if not run.finished:
        done = f"{run.images_seen:,} of {recipe.images:,} images"
        return Demo(run.folder, None, f"stopped at {done}; nothing is lost: the same command continues it")
    return judge_run(run, data)


def judge_run(run: Run, data: ImageData) -> Demo:
    """Judge a finished run on digits and write what people look at.

    Args:
        run: The run.
        data: The digits it was trained on.

    Returns:
        The demo.

    Raises:
        InputError: The run is not finished.
    """
    if not run.finished:
        raise InputError(f"{run.folder} is not finished ({run.images_seen:,} images seen): continue it first")
    folder, model = RunFolder(run.folder), run.model
    recipe, log = folder.read_recipe(), folder.read_log()
    one = to_uint8(model.sample(COUNT, 1, SAMPLE_SEED)).cpu()
    two = to_uint8(model.sample(64, 2, SAMPLE_SEED)).cpu()
    verdict = judge_digits(one)
    record = verdict_record(verdict, model, recipe, data)
    model.records[:] = [record]
    model.save_pretrained(folder.model)
    record.save(folder.path / "record.json")

    real = data.images[:64]
    pictures = {
        "samples.png": side_by_side([("one network call each", one[:64]), ("real digits", real)]),
        "samples-two-steps.png": labelled_rows([("one step", one[:12]), ("two steps", two[:12])]),
    }
    for name, picture in pictures.items():
        write_png(folder.path / name, picture)
    final = (run.images_seen / 1000, verdict.frechet)
    figures = {
        "loss.png": plots.losses(log, recipe),
        "quality.png": plots.quality(log, HALF_SPLIT_DISTANCE, final, LIMITS["demo"].ratio * HALF_SPLIT_DISTANCE),
        "curriculum.png": plots.curriculum(recipe),
        "by-sigma.png": plots.by_sigma(log, recipe),
    }
    for name, figure in figures.items():
        write_bytes(folder.path / name, plots.png(figure))
    facts = DemoFacts(
        folder.path, recipe, verdict, run.images_seen, training_seconds(log), sum(p.numel() for p in model.parameters())
    )
    write_bytes(folder.path / "report.html", demo_page(facts).encode())
    return Demo(folder.path, verdict, _text(facts))


def training_seconds(log: list[dict[str, object]]) -> float:
    """Seconds of training, over all parts of an interrupted run, from its last log line."""
    seconds = [line["seconds"] for line in log if isinstance(line.get("seconds"), (int, float))]
    return float(seconds[-1]) if seconds else 0.0  # type: ignore[arg-type]


def verdict_record(verdict: DigitsVerdict, model: ConsistencyModel, recipe: Recipe, data: ImageData) -> Record:
    """The verdict on one-step samples as a record.

    Args:
        verdict: What the judge found.
        model: The model that made the samples.
        recipe: Its resolved recipe.
        data: What it was trained on.

    Returns:
        The record.
    """
    extractor, everything = pixels(model.shape), open_data("digits", split="all")
    metrics = {
        "frechet": Metric(verdict.frechet, unit="squared distance"),
        "digits_ratio": Metric(verdict.ratio, unit="ratio"),
        "digits_confidence": Metric(verdict.confidence, higher_is_better=True, unit="ratio", settings="one against rest"),
        "digits_confidence_strict": Metric(
            verdict.strict_confidence, higher_is_better=True, unit="ratio", settings="pairs, coupled"
        ),
        "neighbour_ratio": Metric(verdict.neighbour_ratio, higher_is_better=None, unit="ratio"),
        "smallest_class_share": Metric(min(verdict.class_shares), higher_is_better=None, unit="share"),
        "largest_class_share": Metric(max(verdict.class_shares), higher_is_better=None, unit="share"),
    }
    return make_record(
        metrics,
        device=str(model.device),
        extractor=Source(extractor.name, extractor.digest),
        reference=Source("digits (all)", everything.digest(), len(everything)),
        data=Source(data.name, data.digest(), len(data)),
        samples=verdict.samples,
        recipe=recipe.digest(),
        seed=SAMPLE_SEED,
        steps=1,
        calls=1,
        notes=("trained on a fixed random 80 % of the digits; pixel features, so this is not FID",),
    )


def _text(facts: DemoFacts) -> str:
    verdict, limits = facts.verdict, LIMITS["demo"]
    shortfalls = verdict.shortfalls("demo")
    lines = [
        "",
        f"trained on {facts.images_seen:,} images in {format_duration(facts.seconds)}",
        f"judged by {verdict.samples:,} one-step samples:",
        f"  R               {verdict.ratio:.2f}   (at most {limits.ratio:g}; 1 = as far as two halves of the real digits)",
        f"  confidence      {verdict.confidence:.2f}   (at least {limits.confidence:g} of that of real digits; "
        f"a strict classifier: {verdict.strict_confidence:.2f})",
        f"  class shares    {min(verdict.class_shares):.1%} to {max(verdict.class_shares):.1%}   (5 % to 15 %)",
        f"  neighbour ratio {verdict.neighbour_ratio:.2f}   (at least {limits.neighbours:g}; 0 would be copies)",
        *(["short of a limit: " + "; ".join(shortfalls)] if shortfalls else ["all limits are kept"]),
        "",
        f"look at   {facts.folder / 'report.html'}",
        f"          {facts.folder / 'samples.png'}",
        f"then try  atonce sample {facts.folder} --n 64 --steps 2 --out samples.png",
        "          atonce train ict --data YOUR_FOLDER --size 32 --out runs/mine",
    ]
    return "\n".join(lines)
