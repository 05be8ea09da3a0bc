"""Training runs as the cells of a table: trained one by one, resumed where they were interrupted, measured, collected.

A table is a list of cells; a cell is a recipe and where its samples come from. Each cell is trained in a process of its own,
which can be killed and started again at any moment, and leaves one JSON file beside the records that are committed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
# Where the runs lie until they are measured: they are too large to be committed.
RUNS = Path(os.environ.get("ATONCE_RUNS", ROOT / "runs"))
SAMPLES, SAMPLE_SEED = 5_000, 0


@dataclass(frozen=True)
class Cell:
    """One line of a table.

    Attributes:
        name: The line's name, unique in its table.
        recipe: Seed to recipe.
        what: What differs from the first line, for people.
        sampling: Measured ways to sample: name to arguments of ``model.sample``.
        teacher: Name of the cell of the same seed that is its teacher.
        group: Lines of one group stand together.
    """

    name: str
    recipe: Callable[[int], Any]
    what: str = ""
    sampling: Mapping[str, Mapping[str, Any]] | None = None
    teacher: str | None = None
    group: str = ""


ONE_AND_TWO: dict[str, dict[str, Any]] = {"1 step": {"steps": 1}, "2 steps": {"steps": 2}}


def data_named(name: str, split: str | None = None) -> Any:
    """The data of a table: ``digits``, or ``fashion-14`` and ``fashion-28`` from ATONCE_DATA."""
    from atonce.data.sources import open_data

    if name == "digits":
        return open_data("digits", split=split or "all")
    folder = Path(os.environ.get("ATONCE_DATA", ROOT.parent / "shared" / "data")) / "fashion-mnist"
    return open_data(str(folder), split=split or "train", size=int(name.rsplit("-", 1)[1]))


def folder_of(table: str, data: str, cell: str, seed: int) -> Path:
    """Run folder of a cell."""
    return RUNS / table / data / cell / str(seed)


def result_file(table: str, data: str, cell: str, seed: int) -> Path:
    """The cell's file among the records."""
    return RECORDS / table / data / f"{cell}.{seed}.json"


def train_cell(table: str, data: str, cell: Cell, seed: int) -> None:
    """Train a cell, or continue it. Leaves ``cell.json`` (seconds, memory) in the run folder."""
    import torch

    import atonce

    folder = folder_of(table, data, cell.name, seed)
    if (folder / "cell.json").exists():
        return
    options: dict[str, Any] = {
        "evaluate_every": 1 << 40,
        "checkpoint_seconds": 60.0,
        "keep": 1,
        "quiet": not sys.stderr.isatty(),
    }
    recipe = cell.recipe(seed)
    if cell.teacher is not None:
        teacher = folder_of(table, data, cell.teacher, seed)
        if not (teacher / "cell.json").exists():
            print(f"{cell.name} {seed}: its teacher {cell.teacher} is not trained yet", flush=True)
            return
        model = atonce.load(str(teacher))  # as a model it stands in the recipe by its digest, not by a path
        recipe = dataclasses.replace(recipe, teacher=model, init=model)
    run = atonce.train(recipe, data_named(data), folder, **options)
    if not run.finished:
        raise SystemExit(130)
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    facts = {
        "images": run.images_seen,
        "seconds": last["seconds"],
        "threads": torch.get_num_threads(),
        "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(p.numel() for p in run.model.network.parameters()),
        "loss": last.get("loss"),
    }
    (folder / "cell.json").write_text(json.dumps(facts, indent=2) + "\n")


def checked_commit(given: str | None = None) -> str:
    """The commit that a record names: of the checkout, or given where it travels without its history.

    Raises:
        SystemExit: There is none: a number is published only with its commit.
    """
    from atonce.core.records import commit

    if found := given or commit():
        return found
    raise SystemExit("this code is no git checkout, and a record must name its commit: say --commit HASH")


def judge_cell(table: str, data: str, cell: Cell, seed: int, again: bool = False, the_commit: str | None = None) -> None:
    """Measure a trained cell: Frechet distance in the features of the data's own classifier, and its confidence."""
    import torch

    import atonce
    from atonce.core.images import to_uint8
    from atonce.core.records import ROUNDING, command_line, versions
    from atonce.evaluation.classifier import classifier, classifier_extractor, confidence
    from atonce.evaluation.extractors import mark_seen, seen_digests

    file, folder = result_file(table, data, cell.name, seed), folder_of(table, data, cell.name, seed)
    if not (folder / "cell.json").exists() or (file.exists() and not again):
        return
    the_commit = checked_commit(the_commit)
    images = data_named(data)
    learnt, held_out = data_named(data, "train"), data_named(data, "test")
    model = atonce.load(str(folder))
    judge, extractor = classifier(learnt), mark_seen(classifier_extractor(learnt), seen_digests(model.card))
    measured: dict[str, Any] = {}
    record: Any = None
    for name, arguments in (cell.sampling or ONE_AND_TWO).items():
        calls: list[int] = [0]
        start = time.perf_counter()
        samples = model.sample(
            SAMPLES, seed=SAMPLE_SEED, callback=lambda info, calls=calls: calls.__setitem__(0, info["calls"]), **arguments
        )
        seconds = time.perf_counter() - start
        quantised = to_uint8(samples)
        record = atonce.evaluate(quantised, images, metrics=("frechet",), extractor=extractor, n=SAMPLES)
        pixels = atonce.evaluate(quantised, images, metrics=("frechet",), extractor="pixels", n=SAMPLES)
        metric = record.metrics["frechet"]
        measured[name] = {
            "sample": {"seed": SAMPLE_SEED, **arguments},
            "frechet": metric.value,
            "interval": list(metric.interval or ()),
            "frechet in pixels": pixels.metrics["frechet"].value,
            "confidence": confidence(judge, quantised, held_out.images),
            "calls": calls[0],
            "images/s": SAMPLES / seconds,
        }
    out = {
        "cell": cell.name,
        "seed": seed,
        "what": cell.what,
        "data": {"name": images.name, "digest": images.digest(), "count": len(images)},
        "recipe": model.card.get("recipe"),
        "recipe_digest": model.card.get("recipe_digest"),
        "trained": json.loads((folder / "cell.json").read_text()),
        "samples": SAMPLES,
        "extractor": dataclasses.asdict(extractor.source()),
        "reference": dataclasses.asdict(record.reference),
        "rounding": ROUNDING,
        "measured": measured,
        "command": command_line(),
        "device": f"{model.device.type}, {torch.get_num_threads()} threads",
        "commit": the_commit,
        "versions": versions(),
        "torch": torch.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(out, indent=1) + "\n")


def run_all(script: str, table: str, data: str, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Train every cell that is not trained, each in a process of its own, seeds in the outer loop."""
    todo = [(seed, cell) for seed in seeds for cell in cells]
    for number, (seed, cell) in enumerate(todo):
        if (folder_of(table, data, cell.name, seed) / "cell.json").exists():
            continue
        start = time.monotonic()
        print(f"[{number + 1}/{len(todo)}] {data}: {cell.name}, seed {seed} ...", flush=True)
        words = [sys.executable, script, "cell", "--data", data, "--only", cell.name, "--seeds", str(seed)]
        done = subprocess.run(words, check=False)
        if done.returncode == 130:
            raise SystemExit(130)
        print(
            f"    {'done' if done.returncode == 0 else f'failed ({done.returncode})'} in {time.monotonic() - start:.0f} s",
            flush=True,
        )


def command(
    script: str,
    what: str,
    table: str,
    seeds: Mapping[str, Sequence[int]],
    cells_of: Callable[[str], list[Cell]],
    report: Callable[[], None],
) -> None:
    """The command line of a table: ``run``, ``judge`` and ``report``; ``cell`` is what ``run`` starts for each.

    Args:
        script: The file of the table.
        what: Its docstring.
        table: Its name.
        seeds: Seeds by data set.
        cells_of: Lines of a data set.
        report: Writes the page.
    """
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "cell", "judge", "report"])
    parser.add_argument("--data", choices=list(seeds), default="digits")
    parser.add_argument("--only", nargs="+", default=None, help="names of cells")
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    parser.add_argument("--again", action="store_true", help="measure again what is measured")
    parser.add_argument("--commit", help="commit of the checkout, where it travels without its history")
    given = parser.parse_args()
    if given.action == "report":
        report()
        return
    known = cells_of(given.data)
    chosen = [cell for cell in known if given.only is None or cell.name in given.only]
    if not chosen:
        parser.error(f"no such cell; known: {', '.join(cell.name for cell in known)}")
    chosen_seeds = given.seeds or seeds[given.data]
    if given.action == "run":
        run_all(script, table, given.data, chosen, chosen_seeds)
        return
    for seed in chosen_seeds:
        for cell in chosen:
            if given.action == "cell":
                train_cell(table, given.data, cell, seed)
            else:
                judge_cell(table, given.data, cell, seed, given.again, given.commit)


def results(table: str, data: str, cell: str) -> list[dict[str, Any]]:
    """What has been measured of a cell, by seed."""
    found = sorted((RECORDS / table / data).glob(f"{cell}.*.json"))
    return [json.loads(f.read_text()) for f in found if f.name.removeprefix(f"{cell}.").removesuffix(".json").isdigit()]


# Two-sided 95 % points of Student's t for n - 1 degrees of freedom.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def summary(found: Sequence[Mapping[str, Any]], sampling: str, metric: str) -> tuple[float, tuple[float, float] | None] | None:
    """Mean over seeds and its 95 % interval: Student's t over seeds, or the resampling interval where there is one seed."""
    rows = [r["measured"][sampling] for r in found if sampling in r["measured"]]
    values = [float(r[metric]) for r in rows]
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) > 1:
        half = _T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
        return mean, (mean - half, mean + half)
    interval = rows[0].get("interval") if metric == "frechet" else None
    return mean, (interval[0], interval[1]) if interval else None


def text_of(value: tuple[float, tuple[float, float] | None] | None, digits: int = 3) -> str:
    """A cell's text: value and half width, or "not run"."""
    if value is None:
        return "not run"
    mean, interval = value
    return f"{mean:.{digits}g}" + (f" ± {(interval[1] - interval[0]) / 2:.2g}" if interval else "")
