"""Charts as inline SVG in the colours of the page, each with a table of the same numbers: for screen readers, and to copy."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atonce.reports.page import table_rows

WIDTH = 440  # of the drawing, in units that are about pixels
COLOURS = 6  # --ev-series-1 ... in evidence.css, told apart by people who see colours differently
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 52, 14, 10, 42, 270
_ROW = 36  # of a dot chart
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")


@dataclass(frozen=True)
class Point:
    """A measured value.

    Attributes:
        x: Where it stands.
        y: The value.
        interval: Its 95 % interval.
        note: More about it, for the table.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Values that belong together.

    Attributes:
        name: What they are of.
        points: The values.
        line: Whether they are joined.
        dots: Whether each is marked.
    """

    name: str
    points: tuple[Point, ...]
    line: bool = True
    dots: bool = True


@dataclass(frozen=True)
class Dot:
    """A line of a dot chart.

    Attributes:
        name: What was measured.
        value: The value; ``None`` where there is none.
        interval: Its 95 % interval.
        note: More about it, for the table.
        marked: Whether it is the one that the others are compared with.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    note: str = ""
    marked: bool = False


def line_chart(
    series: Sequence[Series], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False, alt: str = ""
) -> str:
    """Values over something, as a figure with its table.

    Args:
        series: The values. Those that are not finite, or not positive on a logarithmic axis, are left out of the drawing.
        title: What it shows.
        x: Name of the horizontal axis, with its unit.
        y: Name of the vertical axis, with its unit.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
        alt: What is to be seen, for those who do not see it; default: the title and the range of each series.

    Returns:
        HTML.
    """

    def shown(point: Point) -> bool:
        return math.isfinite(point.x) and math.isfinite(point.y) and (point.x > 0 or not log_x) and (point.y > 0 or not log_y)

    drawn = [(i, [p for p in each.points if shown(p)]) for i, each in enumerate(series)]
    points = [p for _, some in drawn for p in some]
    if not points:
        return nothing(f"{title}: there is nothing to draw yet.")
    # On a logarithmic axis an interval that reaches 0 would end nowhere.
    ends = [(max(p.interval[0], p.y / 20) if log_y else p.interval[0], p.interval[1]) for p in points if p.interval]
    ys = [p.y for p in points] + [v for end in ends for v in end if v > 0 or not log_y]
    across, x_ticks = _axis([p.x for p in points], _LEFT, WIDTH - _RIGHT, log_x, tight=True)
    up, y_ticks = _axis(ys, _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = [_grid(across, x_ticks, up, y_ticks)]
    for i, some in drawn:
        colour, dash = f"ev-s{i % COLOURS + 1}", _DASHES[i // COLOURS % len(_DASHES)] if len(series) > COLOURS else ""
        ordered = sorted(some, key=lambda p: p.x)
        if series[i].line and len(ordered) > 1:
            path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in ordered)
            parts.append(f'<polyline class="ev-line {colour}" points="{path}"{_dashed(dash)}/>')
        for p in ordered:
            if p.interval is not None:
                low = max(p.interval[0], p.y / 20) if log_y else p.interval[0]
                x1 = f"{across(p.x):.1f}"
                parts.append(
                    f'<line class="ev-line {colour}" x1="{x1}" x2="{x1}" y1="{up(low):.1f}" y2="{up(p.interval[1]):.1f}"/>'
                )
        if series[i].dots and len(ordered) <= 60 or len(ordered) == 1:
            parts += [f'<circle class="ev-dot {colour}" cx="{across(p.x):.1f}" cy="{up(p.y):.1f}" r="3.5"/>' for p in ordered]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x)}</text>')
    parts.append(
        f'<text x="12" y="{(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f})">{html.escape(y)}</text>'
    )
    told = alt or f"{title}. {_ranges(series, x, y)}"
    svg = _svg(_HEIGHT, told, parts)
    rows = [[each.name, *_cells(p)] for each in series for p in each.points]
    notes = any(row[-1] for row in rows)
    head = ["series", x, y, "95 % interval", *(["note"] if notes else [])]
    return _figure(title, svg, table(head, [row if notes else row[:-1] for row in rows], title), _legend(series))


def dot_chart(dots: Sequence[Dot], *, title: str, x: str, log: bool = True, name: str = "line", alt: str = "") -> str:
    """Values side by side with their intervals, one line for each, as a figure with its table.

    Args:
        dots: The values, in the order in which they are shown.
        title: What it shows.
        x: Name of the axis, with its unit.
        log: Whether the axis is logarithmic.
        name: What a line is called in the table.
        alt: What is to be seen; default: the title and the values.

    Returns:
        HTML.
    """
    values = [d.value for d in dots if d.value is not None and (d.value > 0 or not log)]
    notes = any(d.note for d in dots)
    rows = [[d.name, *_dot_cells(d), *([d.note] if notes else [])] for d in dots]
    numbers = table([name, x, "95 % interval", *(["note"] if notes else [])], rows, title)
    if not values:
        return nothing(f"{title}: there is nothing to draw yet.") + (numbers if notes else "")
    ends = [v for d in dots if d.interval and d.value is not None for v in (_low(d, log), d.interval[1]) if v > 0 or not log]
    height = _ROW * len(dots) + _BOTTOM + _TOP
    across, ticks = _axis([*values, *ends], 14, WIDTH - 14, log)
    base = height - _BOTTOM
    parts = [f'<line class="ev-grid" x1="{across(t):.1f}" x2="{across(t):.1f}" y1="{_TOP}" y2="{base}"/>' for t in ticks]
    parts += [f'<text x="{across(t):.1f}" y="{base + 16}" text-anchor="middle">{short(t)}</text>' for t in ticks]
    marked = next((d.value for d in dots if d.marked and d.value is not None), None)
    if marked is not None:
        at = f"{across(marked):.1f}"
        parts.append(f'<line class="ev-base" x1="{at}" x2="{at}" y1="{_TOP}" y2="{base}"/>')
    for row, d in enumerate(dots):
        y = _TOP + row * _ROW
        weight = ' class="ev-strong"' if d.marked else ""
        parts.append(f'<text x="14" y="{y + 13}"{weight}>{html.escape(_cut(d.name))}</text>')
        if d.value is None or (log and d.value <= 0):
            parts.append(f'<text x="{WIDTH - 14}" y="{y + 13}" text-anchor="end" class="ev-soft">not measured</text>')
            continue
        if d.interval is not None:
            x1, x2 = across(_low(d, log)), across(d.interval[1])
            parts.append(f'<line class="ev-line ev-s1" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y + 24}" y2="{y + 24}"/>')
        parts.append(f'<circle class="ev-dot ev-s{2 if d.marked else 1}" cx="{across(d.value):.1f}" cy="{y + 24}" r="4.5"/>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{height - 6}" text-anchor="middle">{html.escape(x)}</text>')
    said = "; ".join(f"{d.name}: {'not measured' if d.value is None else significant(d.value)}" for d in dots)
    svg = _svg(height, alt or f"{title}. {said}.", parts)
    return _figure(title, svg, numbers, "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of plain text that scrolls by itself where it is too wide, by the keyboard too.

    Args:
        head: Names of the columns.
        rows: Cells; the first of each is its heading.
        caption: What it holds.

    Returns:
        HTML.
    """
    label = html.escape(caption, quote=True)
    return (
        f'<div class="ev-wide" role="region" tabindex="0" aria-label="Table: {label}"><table class="ev-table">'
        f'<caption class="at-hidden">{label}</caption>{table_rows(head, rows)}</table></div>'
    )


def nothing(line: str) -> str:
    """What stands where there is nothing to show."""
    return f'<p class="ev-nothing">{html.escape(line)}</p>'


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent where it is of common size."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}" if 1e-4 <= abs(value) < 1e9 else f"{value:.{digits - 1}e}"


def short(value: float) -> str:
    """A number of an axis: ``20 k``, ``1.5 M``, ``0.05``."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit and not (unit == 1e3 and abs(value) < 1e4):
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _axis(
    values: Sequence[float], start: float, end: float, log: bool, tight: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """From values to places, and where numbers stand; a tight axis ends with the values, not with a number behind them."""
    low, high = min(values), max(values)
    if log:
        if high / low < 1.2:
            low, high = low / 1.5, high * 1.5
        low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
        a, b = math.log(low), math.log(high)
        return lambda v: start + (math.log(v) - a) / (b - a) * (end - start), _log_ticks(low, high)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    ticks = _ticks(low, high)
    if tight:
        low = ticks[0] if ticks[0] == 0 else low
        ticks = [t for t in ticks if low <= t <= high * (1 + 1e-9)]
    else:
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    return lambda v: start + (v - low) / (high - low) * (end - start), ticks


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover a range."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range of a logarithmic axis: 1, 2 and 5 of each power of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**k for k in powers for m in steps if low <= m * 10.0**k <= high]
        if len(found) <= 7:
            break
    else:
        found = found[:: 1 + len(found) // 7]
    return found if len(found) >= 2 else [v for v in _ticks(low, high, 4) if low <= v <= high and v > 0]


def _grid(across: Callable[[float], float], x: Sequence[float], up: Callable[[float], float], y: Sequence[float]) -> str:
    base, right = _HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for t in y:
        at = up(t)
        parts.append(f'<line class="ev-grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(t)}</text>')
    parts.append(f'<line class="ev-axis" x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    for t in x:
        at = across(t)
        parts.append(f'<line class="ev-axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 17}" text-anchor="middle">{short(t)}</text>')
    return "".join(parts)


def _svg(height: float, alt: str, parts: Sequence[str]) -> str:
    told = html.escape(alt, quote=True)
    return f'<svg class="ev-chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def _figure(title: str, svg: str, numbers: str, legend: str) -> str:
    return (
        f'<figure class="ev-figure"><figcaption>{html.escape(title)}</figcaption>{svg}{legend}'
        f"<details><summary>The same as a table</summary>{numbers}</details></figure>"
    )


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = []
    for i, each in enumerate(series):
        dash = _dashed(_DASHES[i // COLOURS % len(_DASHES)] if len(series) > COLOURS else "")
        mark = f'<line class="ev-line" x1="1" x2="23" y1="6" y2="6"{dash}/>' if each.line else ""
        mark += '<circle class="ev-dot" cx="12" cy="6" r="3.5"/>' if each.dots or not each.line else ""
        key = f'<svg class="ev-key ev-s{i % COLOURS + 1}" viewBox="0 0 24 12" aria-hidden="true">{mark}</svg>'
        items.append(f"<li>{key}{html.escape(each.name)}</li>")
    return f'<ul class="ev-legend">{"".join(items)}</ul>'


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _ranges(series: Sequence[Series], x: str, y: str) -> str:
    told = []
    for each in series:
        ordered = sorted((p for p in each.points if math.isfinite(p.y)), key=lambda p: p.x)
        if ordered:
            ends = ordered if len(ordered) < 2 else (ordered[0], ordered[-1])
            told.append(f"{each.name}: {y} " + " to ".join(f"{significant(p.y)} at {x} {short(p.x)}" for p in ends))
    return "; ".join(told) + "."


def _cells(p: Point) -> list[str]:
    interval = "" if p.interval is None else f"{significant(p.interval[0])} to {significant(p.interval[1])}"
    return [f"{p.x:,.10g}", significant(p.y), interval, p.note]


def _dot_cells(d: Dot) -> list[str]:
    if d.value is None:
        return ["not measured", ""]
    return [significant(d.value), "" if d.interval is None else f"{significant(d.interval[0])} to {significant(d.interval[1])}"]


def _low(d: Dot, log: bool) -> float:
    assert d.interval is not None
    assert d.value is not None
    return max(d.interval[0], d.value / 20) if log else d.interval[0]


def _cut(text: str, most: int = 62) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
