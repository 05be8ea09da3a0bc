"""The form of the Return tab as HTML: a slider and a field for every number, and beside it where it comes from."""

from __future__ import annotations

import html
import json

from atonce.studio.returns_fields import CURRENCIES, GROUPS, Field
from atonce.studio.returns_page import SOURCES
from atonce.studio.returns_published import choices
from atonce.studio.returns_work import beginning


def form_html() -> str:
    """The whole form; assets/returns.js brings it to life.

    Returns:
        HTML without a ``${`` in it, since Gradio reads it as a template.
    """
    facts = {"beginning": beginning(), "sources": SOURCES}
    groups = "".join(_group(title, fields) for title, fields in GROUPS)
    published = "".join(f"<option>{html.escape(title)}</option>" for title in choices())
    currencies = "".join(f"<option>{name}</option>" for name in CURRENCIES)
    return (
        f'<form id="return-form" autocomplete="off" data-facts="{html.escape(json.dumps(facts))}" novalidate>'
        '<div class="return-top">'
        '<label for="return-published">Begin with what is published</label>'
        f'<select id="return-published"><option value="">Choose ...</option>{published}</select>'
        '<span class="return-pair"><label for="return-currency">Currency</label>'
        f'<select id="return-currency">{currencies}</select></span>'
        '<button type="button" id="return-reset" class="at-button">Start again</button></div>'
        f"{groups}"
        '<div class="return-row return-check"><input type="checkbox" id="return-power_included">'
        '<label for="return-power_included">The price of the device includes its power (rented machines); '
        "the price of energy is then not used</label></div>"
        '<p class="return-strip" aria-hidden="true"></p></form>'
    )


def _group(title: str, fields: tuple[Field, ...]) -> str:
    rows = "".join(_row(field) for field in fields)
    return f'<fieldset class="return-group"><legend>{html.escape(title)}</legend>{rows}</fieldset>'


def _row(field: Field) -> str:
    key, name = html.escape(field.key), html.escape(field.label)
    unit = html.escape(field.unit.replace("{}", "\u00a4"))
    whole = ' data-whole="1"' if field.key.startswith("calls@") or field.key == "images_per_day" else ""
    return (
        f'<div class="return-row" data-key="{key}" data-low="{field.low:.12g}" data-high="{field.high:.12g}" '
        f'data-step="{field.step:.12g}"{whole}>'
        f'<label for="return-{key}">{name} <span class="return-unit">{unit}</span></label>'
        f'<div class="return-inputs"><input type="range" id="return-slide-{key}" aria-label="{name}, slider" min="0" '
        'max="1000">'
        f'<input type="text" inputmode="decimal" id="return-{key}" aria-describedby="return-from-{key} return-wrong-{key}">'
        f'</div><p class="return-from" id="return-from-{key}">'
        '<span class="return-badge"></span> <span class="return-note"></span></p>'
        f'<p class="return-wrong" id="return-wrong-{key}"></p></div>'
    )
