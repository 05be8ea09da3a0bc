"""What the Train tab shows of runs, as HTML: one run with its curves and samples, the list of runs, several side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from atonce.core.errors import StorageError
from atonce.core.progress import format_duration
from atonce.planning.estimate import count_text
from atonce.reports.page import data_uri
from atonce.studio.evidence_chart import Point, Series, line_chart, nothing, significant, table
from atonce.studio.train_runs import WORDS, Run, own_words
from atonce.training.recipe import flatten

MOST_COMPARED = 8  # runs side by side
_MOST_POINTS = 400  # of a curve
_PICTURE = 8 << 20  # bytes; a grid of samples is far smaller


def signature(run: Run | None) -> str:
    """What changes when there is something new to show of a run."""
    if run is None:
        return "none"
    return f"{run.name} {run.state} {run.images_seen} {len(run.log)} {run.share} {run.left} {run.picture()} {run.problem}"


def run_html(run: Run | None) -> str:
    """One run: how it stands, its curves, its latest samples.

    Args:
        run: The run; ``None`` where none is chosen.

    Returns:
        HTML.
    """
    if run is None:
        return nothing("No run is chosen: start one, or choose one from the list.")
    parts = [status_html(run), _problem(run)]
    if run.log:
        parts.append(f'<div class="ev-figures">{_loss([run])}{_quality([run])}{_samples(run)}</div>')
    else:
        parts.append(nothing("It has written nothing yet: the libraries and the data are being opened."))
    return f'<div class="ev-run" data-state="{run.state}">{"".join(parts)}</div>'


def status_html(run: Run) -> str:
    """How far a run is, in a line and a bar.

    Args:
        run: The run.

    Returns:
        HTML. The line is a polite live region, so that a change of state is read out; the numbers beside it are not.
    """
    state = f'<strong role="status">{html.escape(run.name)}: {html.escape(WORDS[run.state])}</strong>'
    facts = []
    if run.total:
        facts.append(f"{run.images_seen:,} of {run.total:,} images")
    if run.share is not None and run.state != "finished":
        facts.append(f"{run.share:.0%}")
    if run.alive and (rate := run.rate):
        facts.append(f"{rate:,.0f} images a second" if rate >= 10 else f"{significant(rate, 2)} images a second")
    if left := time_left(run):
        facts.append(f"{left} left")
    if run.seconds is not None and not run.alive:
        facts.append(f"took {format_duration(run.seconds)}")
    if run.losses:
        facts.append(f"loss {significant(run.losses[-1][1])}")
    if run.quality:
        facts.append(f"distance {significant(run.quality[-1][1])}")
    share = run.share or 0.0
    bar = (
        f'<div class="at-bar" role="progressbar" aria-label="{html.escape(run.name, quote=True)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.1f}%"></i></div>'
    )
    return f'<div class="ev-status">{state}<span>{html.escape(" · ".join(facts))}</span>{bar}</div>'


def time_left(run: Run) -> str:
    """Time left as words; empty where nobody knows or nothing is left."""
    if not run.alive or run.state == "stopping":
        return ""
    if run.left:
        return run.left
    rate, total = run.rate, run.total
    return format_duration((total - run.images_seen) / rate) if rate and total else ""


def list_html(runs: Sequence[Run], hidden: int = 0) -> str:
    """Runs as a table.

    Args:
        runs: The runs, the latest first.
        hidden: How many there are besides.

    Returns:
        HTML.
    """
    if not runs:
        return nothing("There is no run yet.")
    head = ["run", "state", "preset", "data", "images", "last loss", "best distance", "time"]
    rows = [
        [
            run.name,
            WORDS[run.state].split(";")[0] + (f": {own_words(run, run.problem)}" if run.problem else ""),
            run.recipe.method if run.recipe else "",
            _data(run),
            f"{count_text(run.images_seen)} of {count_text(run.total)}" if run.total else "",
            significant(run.losses[-1][1]) if run.losses else "",
            significant(min(v for _, v in run.quality)) if run.quality else "",
            format_duration(run.seconds) if run.seconds is not None else "",
        ]
        for run in runs
    ]
    more = f'<p class="ev-say">{hidden:,} older runs are not shown here.</p>' if hidden else ""
    return table(head, rows, "Runs") + more


def compare_html(runs: Sequence[Run]) -> str:
    """Several runs in one chart each for loss and quality, and a table of what they are and in what they differ.

    Args:
        runs: Two or more runs.

    Returns:
        HTML.
    """
    if len(runs) < 2:
        return nothing("Choose two runs or more to see them side by side.")
    if len(runs) > MOST_COMPARED:
        return nothing(f"{len(runs)} runs are chosen, at most {MOST_COMPARED} can be told apart in a chart: choose fewer.")
    parts = [f'<div class="ev-figures">{_loss(runs)}{_quality(runs)}</div>']
    kinds = {(run.recipe.distance, run.recipe.weight, run.recipe.pairs) for run in runs if run.recipe}
    if len(kinds) > 1:
        parts.append(
            '<p class="ev-say">The losses are of different kinds (distance, weight or pairs differ), so their heights say '
            "nothing about each other.</p>"
        )
    if len({(run.metric, run.data.get("digest")) for run in runs if run.quality}) > 1:
        parts.append(
            '<p class="ev-say">Data or features differ, so the distances cannot be compared: each has a chart of its own.</p>'
        )
    parts.append(table(["", *(run.name for run in runs)], _side_by_side(runs), "Runs side by side"))
    return "".join(parts)


def _loss(runs: Sequence[Run]) -> str:
    series = [Series(run.name, _thinned(run.losses), dots=len(run.losses) < 4) for run in runs if run.losses]
    return line_chart(series, title="Loss", x="images seen", y="loss", log_y=True)


def _quality(runs: Sequence[Run]) -> str:
    """One chart for each kind of features and data: what differs in these cannot be compared."""
    groups: dict[tuple[str | None, str | None], list[Run]] = {}
    for run in runs:
        if run.quality:
            groups.setdefault((run.metric, run.data.get("digest")), []).append(run)
    charts = []
    for (metric, _), group in groups.items():
        on = f", {group[0].data.get('name', '')}, {group[0].data.get('count', 0):,} images" if len(groups) > 1 else ""
        series = [Series(run.name, tuple(Point(x, y) for x, y in run.quality)) for run in group]
        title = f"Samples against the data{on}: {metric}, lower is better, not FID"
        charts.append(line_chart(series, title=title, x="images seen", y="Fréchet distance", log_y=True))
    return "".join(charts)


def _samples(run: Run) -> str:
    path = run.picture()
    content = _read(path) if path is not None else None
    if path is None or content is None:
        return ""
    seen = int(path.stem)
    alt = f"Grid of samples of {run.name} after {seen:,} images, always from the same noise"
    return (
        f'<figure class="ev-figure"><figcaption>Samples after {seen:,} images</figcaption>'
        f'<img class="ev-samples" alt="{html.escape(alt, quote=True)}" src="{data_uri(content)}"></figure>'
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= _PICTURE else None
    except (OSError, StorageError):
        return None


def _problem(run: Run) -> str:
    parts = []
    if run.problem:
        parts.append(f'<p class="ev-problem" role="alert">{html.escape(own_words(run, run.problem))}</p>')
    parts += [f'<p class="ev-say">{html.escape(own_words(run, note))}</p>' for note in dict.fromkeys(run.notes[-3:])]
    return "".join(parts)


def _side_by_side(runs: Sequence[Run]) -> list[list[str]]:
    rows = [["state", *(WORDS[run.state].split(";")[0] for run in runs)], ["data", *(_data(run) for run in runs)]]
    rows.append(["images seen", *(f"{run.images_seen:,}" for run in runs)])
    rows.append(["last loss", *(significant(run.losses[-1][1]) if run.losses else "-" for run in runs)])
    best = [min((v for _, v in run.quality), default=None) for run in runs]
    rows.append(["best distance", *("-" if v is None else significant(v) for v in best)])
    rows.append(["time", *("-" if run.seconds is None else format_duration(run.seconds) for run in runs)])
    recipes = [flatten(run.recipe.as_dict()) if run.recipe else {} for run in runs]
    for name in sorted({key for recipe in recipes for key in recipe}):
        values = [str(recipe.get(name, "-")) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def _data(run: Run) -> str:
    if not run.data:
        return run.launch.data if run.launch else ""
    shape = "x".join(map(str, run.data.get("shape", ())))
    name = run.launch.data if run.launch else str(run.data.get("name", ""))
    return f"{name}, {run.data.get('count', 0):,} of {shape}"


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[Point, ...]:
    step = 1 + len(points) // _MOST_POINTS
    kept = [*points[::step]]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return tuple(Point(x, y) for x, y in kept)
