"""The verb ``plan compare``: models side by side, from their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

import atonce
from atonce.core.errors import InputError
from atonce.verbs.output import show

if TYPE_CHECKING:
    from atonce.planning.comparison import Row

_MARK = "<!-- made by atonce plan compare -->"


def plan_compare(
    entries: Positional[tuple[str, ...]],
    metric: str | None = None,
    price_per_hour: float | None = None,
    utilisation: float | None = None,
    currency: str = "USD",
    measure: bool = True,
    batch: int | None = None,
    device: str = "auto",
    markdown: bool = False,
    out: Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Put models side by side: quality with its interval, calls, seconds, cost of 1,000 images.

    Rows are ranked where their records may be compared (same extractor, reference, number of samples, ...); otherwise the table
    says why not.

    Example: atonce plan compare quality.json --price-per-hour 0.1

    Args:
        entries: Records of atonce eval, points of atonce bench quality, or models (name or folder) with records of their own.
        metric: The quality; default: fid, frechet or kid, whichever all have.
        price_per_hour: Price of a device hour; default 2.5.
        utilisation: Share of the paid time in which the device works; default 0.5.
        currency: How money is written.
        measure: Time models here; records of an evaluation alone do not hold seconds.
        batch: Images at once where that is done.
        device: auto, cpu, cuda or cuda:N.
        markdown: Print the table in Markdown.
        out: File for the table (.md or .json).
        quiet: Show no progress.
        json: Print the table as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: There are fewer than two rows, a model has no records, or the output file is not ours.
    """
    from atonce.core.files import write_json, write_text
    from atonce.planning.comparison import comparison_table
    from atonce.planning.returns import Terms
    from atonce.verbs.bench import table_text

    if out is not None and out.suffix.lower() not in (".md", ".json"):
        raise InputError(f"the table cannot be written to {out}: give a name that ends in .md or .json")
    if out is not None and out.exists() and not _is_ours(out):
        raise InputError(f"{out} exists and is no table of atonce plan compare: choose another name, nothing was changed")
    given: dict[str, Any] = {"price_per_hour": price_per_hour, "utilisation": utilisation}
    terms = Terms(**{name: value for name, value in given.items() if value is not None}, currency=currency)
    rows: list[Row] = []
    for entry in entries:
        rows += _rows(entry, metric, measure, batch, device, quiet)
    made = comparison_table(rows, terms, metric)
    facts = made.to_json()
    if out is not None and out.suffix.lower() == ".md":
        write_text(out, f"{made.markdown()}\n\n{_MARK}\n")
    elif out is not None:
        write_json(out, facts)
    text = made.markdown() if markdown else "\n".join([table_text(*made.cells()), "", *made.notes()])
    show(facts, text, json)
    return 0


def _rows(entry: str, metric: str | None, measure: bool, batch: int | None, device: str, quiet: bool) -> list[Row]:
    """The rows of a file of records, or of a model that has some."""
    from atonce.core.progress import Progress
    from atonce.planning.comparison import Row, rows_of_file
    from atonce.planning.ways import measured_way
    from atonce.training.options import pick_device

    path = Path(entry).expanduser()
    if path.suffix.lower() == ".json" or path.is_file():
        return rows_of_file(path)
    place = pick_device(device)
    model = atonce.load(entry)
    name = path.name if path.is_absolute() else entry.rstrip("/")
    records = [record for record in model.records if metric is None or metric in record.metrics]
    if not records:
        what = "no records" if metric is None else f"no record of {metric}"
        raise InputError(
            f"{entry} has {what} of its own: measure it (atonce eval {entry} --out record.json) and give the record"
        )
    model = model.to(place)
    timed: dict[int, tuple[float, str]] = {}
    rows = []
    for record in records:
        steps = record.steps or 1
        if measure and steps not in timed:
            with Progress("timing", 1, "models", quiet=quiet) as bar:
                bar.update(0, f"{name}, {steps} steps")
                way = measured_way(model, name, steps=steps, batch=batch)
            timed[steps] = way.seconds, "measured " + way.note.split(":")[0]
        seconds, note = timed.get(steps, (None, ""))
        rows.append(Row(f"{name}, {steps} step{'s' if steps > 1 else ''}", record, seconds, note))
    return rows


def _is_ours(path: Path) -> bool:
    """Whether a file is a table that this verb wrote."""
    from json import loads

    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".md":
            return _MARK in content
        found = loads(content)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"metric", "ranked", "why_not", "rows"} <= set(found)
