"""A comparison as HTML: two tables, one of images and one of numbers."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from urllib.parse import quote

from atonce.planning.returns import Cost
from atonce.studio.compare_work import Outcome, without_images


def page(outcomes: Sequence[Outcome], costs: Sequence[Cost], currency: str) -> str:
    """Both tables.

    Args:
        outcomes: What was measured.
        costs: Of each.
        currency: How money is written.

    Returns:
        HTML; a line of text where there is nothing yet.
    """
    if not outcomes:
        return '<p class="at-note">Nothing compared yet: choose ways and press Compare.</p>'
    return grid(outcomes) + numbers(outcomes, costs, currency)


def grid(outcomes: Sequence[Outcome]) -> str:
    """The images: a row for each way, a column for each seed.

    Args:
        outcomes: What was measured.

    Returns:
        HTML.
    """
    seeds = [image.seed for image in outcomes[0].images]
    head = "".join(f'<th scope="col"><span class="at-hidden">Seed </span>{seed}</th>' for seed in seeds)
    rows = []
    for each in outcomes:
        cells = "".join(
            f'<td><img class="{"at-crisp" if image.width < 256 else ""}" src="{html.escape(image.src)}"'
            f' alt="{html.escape(image.title)}"></td>'
            for image in each.images
        )
        rows.append(f'<tr><th scope="row">{html.escape(each.way.name)}</th>{cells}</tr>')
    return (
        '<div class="at-table-wrap" tabindex="0" role="region" aria-label="Images of each way">'
        '<table class="at-table compare-grid">'
        f'<caption>The same seeds in each way</caption><thead><tr><th scope="col">Way</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def numbers(outcomes: Sequence[Outcome], costs: Sequence[Cost], currency: str) -> str:
    """Time, calls and cost.

    Args:
        outcomes: What was measured.
        costs: Of each.
        currency: How money is written.

    Returns:
        HTML.
    """
    slowest = max(each.seconds for each in outcomes)
    rows = []
    for each, cost in zip(outcomes, costs, strict=True):
        cells = (
            str(each.calls),
            time_text(each.latency),
            time_text(each.seconds),
            f"{1 / each.seconds:,.0f}" if each.seconds < 0.5 else f"{1 / each.seconds:.2f}",
            f"{money(cost.per_1000)} {html.escape(currency)}",
            f"{slowest / each.seconds:.1f}×",
        )
        rows.append(
            f'<tr><th scope="row">{html.escape(each.way.name)}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        )
    columns = ("Way", "Calls", "One image alone", "Per image together", "Images a second", "Cost of 1,000", "Speed")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    count, rounds = len(outcomes[0].images), min(each.rounds for each in outcomes)
    file = quote(json.dumps({"outcomes": without_images(outcomes), "cost_per_1000": [c.per_1000 for c in costs]}, indent=2))
    return (
        '<div class="at-table-wrap" tabindex="0" role="region" aria-label="Time and cost of each way">'
        '<table class="at-table compare-numbers"><caption>Time, calls and cost</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="at-note">Measured in this run on this server, with whatever else it did: medians of at least {rounds}'
        f" round{'s' if rounds != 1 else ''} of {count} images together, and of images alone; waiting in the queue is left out."
        " Speed is against the slowest."
        f' <a href="data:application/json,{file}" download="compare.json">Download the numbers</a></p>'
    )


def time_text(seconds: float) -> str:
    """A time with three digits and a unit that fits.

    Args:
        seconds: The time.

    Returns:
        For example ``3.21 ms``.
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def money(value: float) -> str:
    """An amount with as many digits as say something.

    Args:
        value: The amount.

    Returns:
        For example ``12.30`` or ``0.000412``.
    """
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.3g}"
