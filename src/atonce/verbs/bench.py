"""The verb ``bench quality``."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tyro.conf import Positional

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show


def bench_quality(
    models: Positional[tuple[str, ...]],
    data: str = "digits",
    steps: tuple[int, ...] = (1, 2, 4),
    solver_steps: tuple[int, ...] = (5, 9, 18),
    n: int = 2000,
    seed: int = 0,
    extractor: str = "auto",
    batch: int = 64,
    device: str = "auto",
    out: Path = Path("quality.json"),
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Compare one-step and many-step sampling: quality against network calls and against seconds, as a table and a plot.

    Consistency models are sampled by restarts, denoisers by Heun and by Euler. Points that the output file holds already are
    not measured again, so an interrupted comparison goes on when the same command is given again, and models can be added.

    Example: atonce bench quality digits --data digits --n 1000 --out runs/quality.json

    Args:
        models: Gallery names, run folders, model folders or hub ids.
        data: What the samples are to be like: a name, or a folder, zip or file of images.
        steps: Intervals of consistency models.
        solver_steps: Intervals of denoisers; Heun makes 2 k - 1 network calls, Euler k.
        n: Samples of each point.
        seed: Of the samples.
        extractor: What turns images into features; auto is pixels for digits and the classifier of other labelled data.
        batch: Images computed at once where seconds are measured: the least of five batches.
        device: auto, cpu, cuda or cuda:N.
        out: Points with their records (.json); the plot is written beside it (.png).
        quiet: Show no progress.
        json: Print the points as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value is out of range or a file of somebody else is in the way.
    """
    from atonce.core.files import write_bytes
    from atonce.core.progress import Progress
    from atonce.reports.pictures import is_ours
    from atonce.reports.plots import png
    from atonce.reports.quality import QualityPoint, compare_quality, table
    from atonce.reports.quality_plot import quality_figure
    from atonce.training.options import pick_device

    if out.suffix.lower() != ".json":
        raise InputError(f"the points cannot be written to {out}: give a name that ends in .json; the plot goes beside it")
    picture = out.with_suffix(".png")
    if picture.exists() and not is_ours(picture):
        raise InputError(f"{picture} exists and was not made by atonce: choose another name, nothing was changed")
    place = pick_device(device)
    shorter = [Path(name).name if Path(name).is_absolute() else name.rstrip("/") for name in models]
    opened = [(short, atonce.load(name).to(place)) for short, name in zip(shorter, models, strict=True)]
    with contextlib.ExitStack() as shown:
        bar: Progress | None = None  # made when something happens, so that a refusal is one line

        def step(point: QualityPoint, done: int, total: int, new: bool) -> None:
            nonlocal bar
            bar = bar or shown.enter_context(Progress("measuring", total, "points", start=0 if new else done, quiet=quiet))
            bar.update(done, f"{point.model} {point.way.sampler} {point.way.steps}")

        points = compare_quality(
            opened,
            data,
            steps=steps,
            solver_steps=solver_steps,
            n=n,
            extractor=extractor,
            seed=seed,
            batch=batch,
            out=out,
            callback=step,
        )
    write_bytes(picture, png(quality_figure(points)))
    facts = {"points": [point.as_dict() for point in points], "plot": str(picture)}
    text = "" if json else table_text(*table(points))
    machine = points[0].settings["machine"]
    show(facts, f"{text}\n{n} samples a point, {points[0].record.extractor.name}, {machine}; {out}, {picture}", json)
    return 0


def table_text(head: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal: drawn by rich where it is installed, in plain columns elsewhere.

    Args:
        head: Names of the columns.
        rows: Cells, as many in each row as there are columns.

    Returns:
        Lines without a line break at the end.
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows])
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(head):
        drawn.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console(width=max(100, sum(widths) + 3 * len(head)), no_color=True)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
