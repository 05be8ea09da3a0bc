"""What the Return tab shows below the form: the answer in a few words, a table, charts, and every number it rests on."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping

from atonce.planning.estimate import count_text, duration_text
from atonce.planning.returns import Cost, Return
from atonce.studio.returns_chart import bars, days
from atonce.studio.returns_fields import FIELDS
from atonce.studio.returns_work import Form, command, download, short

SOURCES = {"given": "yours", "measured": "measured here", "published": "published", "default": "assumed"}
"""What the page calls the sources of the planning room."""


def results(form: Form, found: Return) -> str:
    """The results of a form.

    Args:
        form: The form.
        found: Its return.

    Returns:
        HTML.
    """
    money = html.escape(found.terms.currency)
    names = (found.before.way.name, found.after.way.name)
    ways = (found.before, found.after)
    uri = base64.b64encode(download(found).encode()).decode()
    return (
        f'<div class="return-results" data-summary="{html.escape(summary(found))}">'
        f"{cards(found)}{table(found)}"
        '<div class="return-charts">'
        + bars("Cost of 1,000 images", money, (ways[0].per_1000, ways[1].per_1000), names)
        + bars("Energy of 1,000 images", "kWh", (ways[0].kwh_per_1000, ways[1].kwh_per_1000), names)
        + bars("One image alone", "s", (ways[0].way.latency, ways[1].way.latency), names)
        + f"</div>{days(found)}{rests_on(form)}"
        f'<p class="return-take"><a id="return-json" class="return-button" download="atonce-return.json" '
        f'href="data:application/json;base64,{uri}">Download as JSON</a></p>'
        '<p class="return-soft">The same on the command line (with --json it prints the file above):</p>'
        f'<pre class="return-command" tabindex="0" aria-label="Command">{html.escape(command(form))}</pre></div>'
    )


def refused(lines: Mapping[str, str]) -> str:
    """What is shown where numbers cannot be.

    Args:
        lines: One line for each, by the field's key.

    Returns:
        HTML; the lines are also told to the form.
    """
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines.values())
    told = html.escape(json.dumps(dict(lines)))
    return f'<div class="return-results return-refused" data-wrong="{told}"><p>Nothing was reckoned:</p><ul>{listed}</ul></div>'


def summary(found: Return) -> str:
    """The answer in a sentence or two, as a screen reader is told it."""
    money = found.terms.currency
    words = [cheaper(found)]
    if found.faster is not None:
        words.append(sooner(found.faster))
    saved = found.saved_per_day
    words.append(f"saves {short(saved)} {money} a day" if saved >= 0 else f"costs {short(-saved)} {money} a day more")
    return f"{', '.join(words)}. {break_even(found)}."


def cheaper(found: Return) -> str:
    """How the costs compare."""
    factor = found.cheaper
    return f"{short(factor)} times cheaper" if factor >= 1 else f"{short(1 / factor)} times dearer"


def sooner(factor: float) -> str:
    """How the latencies compare."""
    return f"one image {short(factor)} times sooner" if factor >= 1 else f"one image {short(1 / factor)} times later"


def break_even(found: Return) -> str:
    """When what is paid once is back."""
    if found.break_even_days is None:
        return "It never pays back: the change saves nothing"
    if not found.terms.once:
        return "It pays at once: nothing is paid once"
    after = duration_text(found.break_even_days * 86400)
    return f"It pays back after {after}, {count_text(found.break_even_images or 0)} images"


def cards(found: Return) -> str:
    """The four answers in large letters."""
    money, saved, energy = found.terms.currency, found.saved_per_day, found.saved_kwh_per_day
    even = found.break_even_days
    pays = "never" if even is None else "at once" if not found.terms.once else duration_text(even * 86400)
    faster = "not known" if found.faster is None else f"{short(max(found.faster, 1 / found.faster))} times"
    late = found.faster is not None and found.faster < 1
    shown = (
        ("Cheaper" if found.cheaper >= 1 else "Dearer", f"{short(max(found.cheaper, 1 / found.cheaper))} times"),
        ("Later" if late else "Sooner", faster),
        ("Saved a day" if saved >= 0 else "More a day", f"{short(abs(saved))} {money}"),
        ("Energy saved a day" if energy >= 0 else "More energy a day", f"{short(abs(energy))} kWh"),
        ("Break-even", pays),
    )
    cells = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in shown)
    return f'<dl class="return-cards">{cells}</dl>'


def table(found: Return) -> str:
    """Both ways side by side."""
    money = found.terms.currency

    def row(name: str, before: str, after: str) -> str:
        cells = f"<td>{html.escape(before)}</td><td>{html.escape(after)}</td>"
        return f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'

    def both(name: str, of: str, unit: str = "") -> str:
        values = (getattr(found.before, of), getattr(found.after, of))
        return row(name, *(f"{short(value)}{unit}" for value in values))

    ways: tuple[Cost, Cost] = (found.before, found.after)
    rows = [
        row("Network calls for an image", *(short(cost.way.calls) for cost in ways)),
        row("Device time for an image", *(seconds_text(cost.way.seconds) for cost in ways)),
        row("One image alone", *(seconds_text(cost.way.latency) for cost in ways)),
        both(f"{money} for 1,000 images", "per_1000"),
        both("kWh for 1,000 images", "kwh_per_1000"),
        both(f"{money} a day", "per_day"),
        both("kWh a day", "kwh_per_day"),
        both("Devices busy", "devices"),
        both("Images a second of one device", "images_per_second"),
    ]
    if any(cost.way.quality is not None for cost in ways):
        said = ("-" if cost.way.quality is None else f"{cost.way.quality:g}" for cost in ways)
        rows.append(row("FID as published", *said))
    names = "".join(f'<th scope="col">{html.escape(cost.way.name)}</th>' for cost in ways)
    return (
        '<div class="return-wide" tabindex="0" role="region" aria-label="Both ways side by side"><table class="return-table">'
        f"<thead><tr><td></td>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def rests_on(form: Form) -> str:
    """Every number of the return with its unit and source, each as the form has it."""
    rows = ""
    for key, field in FIELDS.items():
        value = form.values[key]
        unit = field.unit.replace("{}", form.currency)
        said = "not known" if value.number is None else f"{short(value.number)} {unit}"
        unused = key == "price_per_kwh" and form.power_included
        note = "; ".join(filter(None, (value.note, "not used: the price of the device includes it" if unused else "")))
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in (said, SOURCES[value.source], note))
        rows += f'<tr><th scope="row">{html.escape(field.label)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Number", "Value", "Source", "Note"))
    return (
        '<details class="return-details"><summary>Every number this rests on</summary>'
        '<div class="return-wide" tabindex="0" role="region" aria-label="Every number this rests on">'
        f'<table class="return-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def seconds_text(value: float | None) -> str:
    """Seconds as they are read: ``12 ms``, ``0.35`` s as ``350 ms``; a dash where there are none."""
    if value is None:
        return "-"
    return f"{short(1000 * value)} ms" if value < 1 else f"{short(value)} s"
