"""A table of models: quality with its interval, calls, seconds and cost, ranked only where the rules of records allow it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atonce.core.errors import DataError, InputError
from atonce.core.records import Metric, Record
from atonce.evaluation.compare import compare
from atonce.planning.estimate import significant
from atonce.planning.returns import Terms, Way, cost_of

_FIRST = ("fid", "frechet", "kid")  # metrics that speak of quality as a whole, the most usual first


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What it is called.
        record: The numbers with their provenance.
        seconds: Device seconds for an image; ``None`` where they are not known.
        note: Where the seconds come from.
    """

    name: str
    record: Record
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows side by side.

    Attributes:
        rows: The lines; the best first where they are ranked.
        metric: The quality that is compared.
        values: It, of each row; ``None`` where a row has none.
        ranked: Whether the order says something.
        why_not: Why they are not ranked; empty where they are.
        ties: For each row whether it cannot be told from the best.
        per_1000: Cost of 1,000 images, of each row; ``None`` without seconds.
        terms: What is paid for what.
    """

    rows: tuple[Row, ...]
    metric: str
    values: tuple[Metric | None, ...]
    ranked: bool
    why_not: str
    ties: tuple[bool, ...]
    per_1000: tuple[float | None, ...]
    terms: Terms

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        rows = []
        for i, row in enumerate(self.rows):
            value = self.values[i]
            rows.append(
                {
                    "name": row.name,
                    "rank": i + 1 if self.ranked else None,
                    "like_the_best": self.ties[i] if self.ranked else None,
                    self.metric: None if value is None else value.as_dict(),
                    "steps": row.record.steps,
                    "calls": row.record.calls,
                    "seconds": row.seconds,
                    "seconds_from": row.note,
                    "per_1000": self.per_1000[i],
                    "record": row.record.as_dict(),
                }
            )
        return {
            "metric": self.metric,
            "ranked": self.ranked,
            "why_not": self.why_not,
            "rows": rows,
            "terms": self.terms.__dict__,
        }

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows as text."""
        higher = next((v.higher_is_better for v in self.values if v is not None), None)
        end = "" if higher is None else " (more is better)" if higher else " (less is better)"
        head = [
            *(["rank"] if self.ranked else []),
            "model",
            f"{self.metric}{end}",
            "95 % interval",
            "steps",
            "calls",
            "seconds an image",
        ]
        head.append(f"{self.terms.currency} for 1,000")
        lines = []
        for i, row in enumerate(self.rows):
            value, interval = self.values[i], None
            interval = None if value is None else value.interval
            rank = f"{i + 1}" if not self.ties[i] or i == 0 else "like 1"
            cells = [*([rank] if self.ranked else []), row.name, "-" if value is None else f"{value.value:.4g}"]
            cells.append("-" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}")
            cells += ["-" if number is None else str(number) for number in (row.record.steps, row.record.calls)]
            cells.append("-" if row.seconds is None else f"{significant(row.seconds):g}")
            cost = self.per_1000[i]
            cells.append("-" if cost is None else f"{significant(cost):g}")
            lines.append(cells)
        return head, lines

    def markdown(self) -> str:
        """The table in Markdown, with what must be said beside it."""
        head, rows = self.cells()
        lines = [_bar(head), _bar(["---" if i < 1 + self.ranked else "---:" for i in range(len(head))]), *map(_bar, rows)]
        return "\n".join([*lines, "", *self.notes()])

    def notes(self) -> list[str]:
        """Sentences beside the table."""
        found = []
        if not self.ranked:
            found.append(f"Not ranked: {self.why_not}.")
        elif sum(self.ties) > 1:
            found.append("`like 1`: the difference from the best lies within its 95 % interval.")
        sources = list(dict.fromkeys(row.note for row in self.rows if row.note))
        found += [f"Seconds: {'; '.join(sources)}."] if sources else []
        price = f"{self.terms.price_per_hour:g} {self.terms.currency} a device hour at {self.terms.utilisation:.0%} use"
        found += [f"Cost: {price}."] if any(cost is not None for cost in self.per_1000) else []
        return found


def rows_of_file(path: Path) -> list[Row]:
    """The rows of a file: an evaluation's record, points of ``atonce bench quality``, or a benchmark that holds such.

    Args:
        path: The JSON file.

    Returns:
        One row or more.

    Raises:
        DataError: It cannot be read, or holds neither.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    points = values.get("points", values.get("measured")) if isinstance(values, dict) else None
    if not isinstance(points, list):
        return [Row(path.stem, Record.load(path))]
    rows = []
    for point in points:
        try:
            seconds = point.get("seconds", point.get("seconds per image"))
            settings = point.get("settings") or {}
            where = settings.get("machine") or values.get("sampled on") or "its machine"
            rows.append(
                Row(
                    f"{point['model']}, {point['steps']} {point['sampler']} step{'s' if point['steps'] > 1 else ''}",
                    Record.from_dict(point["record"]),
                    None if seconds is None else float(seconds),
                    f"measured on {where} in full batches",
                )
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path} holds points that cannot be read ({error!r}): make them again with atonce bench quality"
            ) from error
    if not rows:
        raise DataError(f"{path} holds no points")
    return rows


def comparison_table(rows: Sequence[Row], terms: Terms | None = None, metric: str | None = None) -> Table:
    """Rows as a table, ranked where their records may be compared.

    Args:
        rows: Two or more.
        terms: What is paid for what.
        metric: The quality to compare; default: the most usual one that all have.

    Returns:
        The table.

    Raises:
        InputError: There are fewer than two rows, or none has the metric.
    """
    if len(rows) < 2:
        raise InputError(f"a comparison needs at least 2 rows, got {len(rows)}: name another record or model")
    terms = Terms() if terms is None else terms
    rows = _distinct(rows)
    chosen = metric or _metric(rows)
    if not any(chosen in row.record.metrics for row in rows):
        there = sorted({name for row in rows for name in row.record.metrics})
        raise InputError(f"none of the records has the metric {chosen}; there are {', '.join(there) or 'none'}")
    why_not, ties = "", [False] * len(rows)
    try:
        found = compare([row.record for row in rows], [row.name for row in rows])
        if chosen not in found.shared:
            raise InputError(f"{chosen} is not compared: {found.left_out.get(chosen, 'not all have it')}")
        best = found.best(chosen)
        if best is None:
            raise InputError(f"{chosen} has no better end")
        higher = bool(rows[0].record.metrics[chosen].higher_is_better)
        rows = sorted(rows, key=lambda row: row.record.metrics[chosen].value, reverse=higher)
        like = {best}
        for each in found.differences:
            if each.metric == chosen and best in (each.one, each.other) and each.exceeds is not True:
                like |= {each.one, each.other}
        ties = [row.name in like for row in rows]
    except InputError as error:
        why_not = str(error).rstrip(".")
    costs = [None if row.seconds is None else cost_of(_way(row), terms).per_1000 for row in rows]
    return Table(
        rows=tuple(rows),
        metric=chosen,
        values=tuple(row.record.metrics.get(chosen) for row in rows),
        ranked=not why_not,
        why_not=why_not,
        ties=tuple(ties),
        per_1000=tuple(costs),
        terms=terms,
    )


def _way(row: Row) -> Way:
    assert row.seconds is not None
    return Way(row.name, row.record.calls or 1, row.seconds)


def _metric(rows: Sequence[Row]) -> str:
    shared = [name for name in rows[0].record.metrics if all(name in row.record.metrics for row in rows)]
    anywhere = [name for row in rows for name in row.record.metrics]
    return next((name for name in _FIRST if name in shared), None) or next(iter(shared or anywhere or _FIRST))


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows whose names differ: those that are called alike are numbered."""
    names = [row.name for row in rows]
    seen: dict[str, int] = {}
    out = []
    for row in rows:
        seen[row.name] = seen.get(row.name, 0) + 1
        out.append(row if names.count(row.name) == 1 else replace(row, name=f"{row.name} ({seen[row.name]})"))
    return out


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
