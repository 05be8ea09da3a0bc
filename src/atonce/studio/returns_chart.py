"""Pictures of a return that grow with the page: bars, and money over days. Each says in words what it shows."""

from __future__ import annotations

import html
import math

from atonce.planning.estimate import duration_text
from atonce.planning.returns import Return
from atonce.studio.returns_work import short

_HEIGHT = 240


def bars(title: str, unit: str, values: tuple[float | None, float | None], names: tuple[str, str]) -> str:
    """Two bars of one quantity.

    Args:
        title: The quantity.
        unit: Its unit.
        values: Before and after; ``None`` where one is not known.
        names: Of the ways.

    Returns:
        HTML: a figure.
    """
    top = max((value for value in values if value is not None), default=0.0)
    rows = []
    for role, value, name in zip(("before", "after"), values, names, strict=True):
        share = 0.0 if value is None or top == 0 else 100 * value / top
        said = "not known" if value is None else f"{short(value)} {unit}"
        rows.append(
            f'<div class="return-bar"><span class="return-bar-name">{html.escape(name)}</span>'
            f'<span class="return-track"><span class="return-fill return-{role}" style="width:{share:.3g}%"></span></span>'
            f'<span class="return-bar-value">{html.escape(said)}</span></div>'
        )
    return f'<figure class="return-figure"><figcaption>{html.escape(title)}</figcaption>{"".join(rows)}</figure>'


def horizon(found: Return) -> float:
    """Days that the chart of money shows: twice the time to break-even, a week to ten years; a year where there is none."""
    return 365.0 if found.break_even_days is None else min(3650.0, max(7.0, 2 * found.break_even_days))


def days(found: Return) -> str:
    """What has been paid after so many days, before and after the change.

    Args:
        found: The comparison.

    Returns:
        HTML: a figure with an inline SVG whose coordinates are shares, so that its text keeps its size at every width.
    """
    end, money = horizon(found), found.terms.currency
    before, after = end * found.before.per_day, found.terms.once + end * found.after.per_day
    top = max(before, after, found.terms.once) or 1.0
    steps_y, steps_x = ticks(top), ticks(end)
    top = max(top, steps_y[-1])

    def at(day: float, paid: float) -> tuple[str, str]:
        return f"{100 * day / end:.4g}%", f"{100 - 100 * paid / top:.4g}%"

    parts = []
    for paid in steps_y:
        y = at(0, paid)[1]
        parts.append(f'<line class="return-grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="-8" y="{y}" dy="0.35em" text-anchor="end">{short(paid)}</text>')
    for day in steps_x:
        x = at(day, 0)[0]
        parts.append(f'<text x="{x}" y="{_HEIGHT + 20}" text-anchor="middle">{short(day)}</text>')
    for role, once, paid in (("before", 0.0, before), ("after", found.terms.once, after)):
        (x1, y1), (x2, y2) = at(0, once), at(end, paid)
        parts.append(f'<line class="return-line return-{role}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')
    even = found.break_even_days
    if even is not None and 0 < even <= end:
        x, y = at(even, even * found.before.per_day)
        parts.append(f'<circle class="return-even" cx="{x}" cy="{y}" r="6"/>')
    names = (found.before.way.name, found.after.way.name)
    legend = "".join(
        f'<span class="return-key"><span class="return-swatch return-{role}"></span>{html.escape(name)}</span>'
        for role, name in zip(("before", "after"), names, strict=True)
    )
    said = days_text(found)
    return (
        f'<figure class="return-figure return-days"><figcaption>Paid so far ({html.escape(money)}) over days</figcaption>'
        f'<div class="return-plot"><svg width="100%" height="{_HEIGHT}" role="img" aria-label="{html.escape(said)}">'
        f"{''.join(parts)}</svg></div>"
        f'<p class="return-legend">{legend}</p><p class="return-said">{html.escape(said)}</p></figure>'
    )


def days_text(found: Return) -> str:
    """The chart of money in words."""
    end, money = horizon(found), found.terms.currency
    before, after = end * found.before.per_day, found.terms.once + end * found.after.per_day
    text = f"After {short(end)} days {short(before)} {money} are paid before the change and {short(after)} {money} after it"
    if found.break_even_days is None:
        return f"{text}; it never pays back."
    if found.terms.once == 0:
        return f"{text}; nothing is paid once, so it pays from the first image."
    return f"{text}; both are even after {duration_text(found.break_even_days * 86400)}."


def ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to a largest value.

    Args:
        top: The largest value, above 0.
        most: How many steps at most.

    Returns:
        Ascending, the first is 0 and none is above ``top``.
    """
    rough = top / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * (1 - 1e-9))
    return [step * i for i in range(int(top / step * (1 + 1e-9)) + 1)]
