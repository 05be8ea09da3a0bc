"""The sections of the Evidence tab as HTML: charts from records, each number with where it comes from."""

from __future__ import annotations

import html
from collections.abc import Sequence

from atonce.core.errors import InputError
from atonce.core.records import Record
from atonce.planning.comparison import Row, comparison_table
from atonce.studio.evidence_chart import Dot, Point, Series, dot_chart, line_chart, nothing, significant, table
from atonce.studio.evidence_published import MEASURED, PUBLISHED, published, published_about
from atonce.studio.evidence_records import Found
from atonce.studio.evidence_tables import SWEEP, WHOLE, Group, groups, sweep

_METRICS = ("fid", "frechet", "kid")  # that speak of quality as a whole, the most usual first
_SEEN = "its extractor was seen in training, so it ranks nothing"
_LABELS = {"fid": "FID", "frechet": "Fréchet distance", "kid": "KID"}
_DATA = {"digits": "digits, 8x8", "fashion-14": "Fashion-MNIST, 14x14", "fashion-28": "Fashion-MNIST, 28x28"}


def places_html(found: Found) -> str:
    """Where was looked, what was found there, and what could not be read."""
    if not found.places:
        return nothing("No place with records is known: start the studio with --records, or evaluate a model (atonce eval).")
    parts = [table(["place", "with records"], [[place, f"{count:,}"] for place, count in found.places], "Places with records")]
    if found.others:
        parts.append(f'<p class="ev-say">{found.others:,} other JSON files there hold no records that can be drawn.</p>')
    if found.problems:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in found.problems[:20])
        parts.append(f'<p class="ev-say">Not read:</p><ul class="ev-list">{items}</ul>')
    return "".join(parts)


def steps_html(found: Found) -> str:
    """Quality against steps: a chart for each set of records that may be compared, with their table."""
    parts = []
    for rows in _comparable(found.rows):
        record, metric = rows[0].record, _metric(rows[0].record)
        assert metric is not None  # rows without one are left out
        lines: dict[str, list[Point]] = {}
        for row in rows:
            value = row.record.metrics[metric]
            if row.record.calls:
                lines.setdefault(_line(row), []).append(Point(row.record.calls, value.value, value.interval, row.note))
        label = _LABELS.get(metric, metric)
        title = f"{label} against network calls: {record.data.name}, features of {record.extractor.name}"
        chart = ""
        if record.extractor.seen_in_training:
            chart = nothing("Not drawn: the extractor took part in training, so its numbers rank nothing.")
        elif len({point.x for points in lines.values() for point in points}) > 1:
            series = [Series(name, tuple(points)) for name, points in lines.items()]
            chart = line_chart(
                series, title=title, x="network calls for each image", y=f"{label}, lower is better", log_x=True, log_y=True
            )
        parts.append(
            chart + _compared(rows, metric, title if chart else f"{record.data.name}, features of {record.extractor.name}")
        )
    for group in groups(found.cells, "methods"):
        series = [
            Series(f"{group.what(name)} ({_presets(group, name)})", points)
            for name in group.names
            if not group.seen(name) and (points := _by_calls(group, name))
        ]
        title = f"Fréchet distance against network calls: {_named(group)}"
        words = "network calls for each image"
        parts.append(line_chart(series, title=title, x=words, y="Fréchet distance, lower is better", log_x=True, log_y=True))
    shown = [part for part in parts if part]
    return _section(shown, "No record of an evaluation is here yet: atonce eval makes one, atonce bench quality makes several.")


def grid_html(found: Found) -> str:
    """Quality against the number of grid points, with the power law."""
    parts = []
    for group in groups(found.cells, "ablation"):
        made = sweep(group)
        if made is None:
            continue
        series = [Series("measured", tuple(Point(n, y, interval) for n, y, interval in made.points), line=False)]
        said = "The law is fitted from three points on."
        if made.law is not None:
            a, b, rest = made.law
            ends = (made.fitted[0][0], made.fitted[-1][0])
            law = f"{significant(a)} (N-1)^-{b:.2f}"
            series.append(Series(law, tuple(Point(n, a * n**-b, note="of the law") for n in ends), dots=False))
            said = (
                f"Fitted to the points up to the best N, where more points still help: {law} up to N = {ends[1] + 1:.0f}; the "
                f"root mean square of what is left of the logarithm is {rest:.2f}."
            )
        chart = line_chart(
            series,
            title=f"Quality against N: {_named(group)}",
            x="intervals N - 1",
            y="Fréchet distance in one step",
            log_x=True,
            log_y=True,
        )
        parts.append(f'<div>{chart}<p class="ev-say">{html.escape(said)}</p></div>')
    return _section(parts, "No run with one N throughout is among the records (benchmarks/ablation.py trains them).")


def ablation_html(found: Found) -> str:
    """What each ingredient is worth, ours with intervals, and what is published of it."""
    parts = []
    for group in groups(found.cells, "ablation"):
        names = [name for name in group.names if not name.startswith(SWEEP)]
        for way in ("1 step", "2 steps"):
            dots = [_dot(group, name, way) for name in names]
            if any(way in group.ways(name) for name in names):
                parts.append(
                    dot_chart(
                        dots,
                        title=f"{_named(group)}, {way} ({MEASURED})",
                        x="Fréchet distance, lower is better",
                        name="switched to",
                    )
                )
    others = [row for row in published() if row.table.startswith("Choices")]
    dots = [Dot(row.method, row.fid, note=row.source) for row in others]
    parts.append(dot_chart(dots, title=f"{others[0].table} ({PUBLISHED})", x="FID, lower is better", log=False, name="choice"))
    return _section(parts, "") + f'<p class="ev-say">{html.escape(published_about()[1])}</p>'


def methods_html(found: Found) -> str:
    """The methods side by side: ours with intervals, and the published ones beside them."""
    parts, tables = [], []
    for group in groups(found.cells, "methods"):
        dots = [_way(group, name, way) for name in group.names for way in group.ways(name)]
        title = f"{_named(group)} ({MEASURED})"
        parts.append(dot_chart(dots, title=title, x="Fréchet distance, lower is better", name="method"))
    names = list(dict.fromkeys(row.table for row in published() if not row.table.startswith("Choices")))
    for name in names:
        lines = [row for row in published() if row.table == name]
        dots = [
            Dot(
                f"{row.method}, {row.calls} call{'s' if row.calls > 1 else ''}",
                row.fid,
                note="; ".join(filter(None, (row.source, row.note))),
            )
            for row in lines
        ]
        parts.append(dot_chart(dots, title=f"{name} ({PUBLISHED})", x="FID, lower is better", name="method"))
        tables.append(_beside(name))
    about = published_about()[0]
    words = (
        "Ours are Fréchet distances in other features, on other data and with budgets thousands of times smaller, so their "
        "numbers cannot be compared with published ones. What may be looked at is the order of the methods."
    )
    return f'<p class="ev-say">{html.escape(about)} {html.escape(words)}</p>' + _section(parts, "") + "".join(tables)


def _beside(name: str) -> str:
    """A published table as such, with its sources."""
    rows = [
        [row.method, str(row.calls), f"{row.fid:g}", PUBLISHED, row.source, row.note]
        for row in published()
        if row.table == name
    ]
    return (
        f"<details><summary>{html.escape(name)}: all numbers with their sources</summary>"
        f"{table(['method', 'calls', 'FID', 'kind', 'source', 'note'], rows, name)}</details>"
    )


def _comparable(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in groups whose numbers may be compared: one metric, extractor, reference and number of samples."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        record, metric = row.record, _metric(row.record)
        if metric is None:
            continue
        key = (metric, record.extractor.digest, record.reference.digest, record.reference.count, record.samples)
        found.setdefault((*key, record.rounding, record.extractor.seen_in_training), []).append(row)
    return sorted(found.values(), key=len, reverse=True)


def _compared(rows: Sequence[Row], metric: str, title: str) -> str:
    """The table of rows, ranked where the rules of records allow it."""
    if len(rows) < 2:
        return _single(rows[0], metric, title)
    try:
        made = comparison_table(rows, metric=metric)
    except InputError as error:
        return nothing(str(error))
    head, cells = made.cells()
    notes = "".join(f'<p class="ev-say">{html.escape(note.replace("`", ""))}</p>' for note in made.notes())
    return f"<details><summary>{html.escape(title)}: the comparison</summary>{table(head, cells, title)}{notes}</details>"


def _single(row: Row, metric: str, title: str) -> str:
    value, record = row.record.metrics[metric], row.record
    interval = "-" if value.interval is None else f"{significant(value.interval[0])} to {significant(value.interval[1])}"
    head = ["model", _LABELS.get(metric, metric), "95 % interval", "calls", "samples"]
    cells = [row.name, significant(value.value), interval, str(record.calls or "-"), f"{record.samples:,}"]
    return f'<p class="ev-caption">{html.escape(title)}</p>{table(head, [cells], title)}'


def _line(row: Row) -> str:
    """The line of a chart that a row belongs to: its model and sampler, without the number of steps."""
    sampler = row.record.sampler or ""
    name = row.name.split(",")[0]
    return f"{name}, {sampler}" if sampler and sampler not in name else name


def _metric(record: Record) -> str | None:
    return next((name for name in _METRICS if name in record.metrics), None)


def _by_calls(group: Group, name: str) -> tuple[Point, ...]:
    points = []
    for way in group.ways(name):
        calls, value = group.calls(name, way), group.value(name, way)
        if calls and value:
            points.append(Point(calls, value[0], value[1], way))
    return tuple(points)


def _presets(group: Group, name: str) -> str:
    return next((str(cell.recipe.get("method", name)) for cell in group.cells if cell.name == name), name)


def _dot(group: Group, name: str, way: str) -> Dot:
    value = group.value(name, way)
    seeds = group.seeds(name)
    note = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if value is None or group.seen(name):
        return Dot(group.what(name), None, note=note if value is None else _SEEN)
    return Dot(group.what(name), value[0], value[1], note, marked=name == WHOLE[0])


def _way(group: Group, name: str, way: str) -> Dot:
    """A line of the comparison of methods: one way to sample one method."""
    calls, seeds = group.calls(name, way), group.seeds(name)
    note = f"{calls or '?'} call{'s' if calls != 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}"
    value = group.value(name, way)
    if group.seen(name) or value is None:
        return Dot(f"{group.what(name)}, {way}", None, note=_SEEN if group.seen(name) else note)
    return Dot(f"{group.what(name)}, {way}", value[0], value[1], note)


def _named(group: Group) -> str:
    """A group in words: its data, features and number of samples."""
    return f"{_DATA.get(group.data, group.data)}, {group.extractor}, {group.samples:,} samples"


def _section(parts: Sequence[str], empty: str) -> str:
    shown = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="ev-figures">{shown}</div>' if parts else nothing(empty)
