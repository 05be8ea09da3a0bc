"""What the Return tab works with: the form's values become a return of the planning room, or lines that say what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from atonce.core.errors import InputError
from atonce.planning.assumptions import Source
from atonce.planning.estimate import significant
from atonce.planning.returns import Return, Terms, Way, compare
from atonce.studio.returns_fields import CURRENCIES, FIELDS, TERM_KEYS, Field

_SOURCES = get_args(Source)
_LONGEST = 300  # characters of a name or a note that a page may send
_GIVEN = "given, not measured"  # as the verb says it


@dataclass(frozen=True)
class Value:
    """A number of the form.

    Attributes:
        number: It; ``None`` where it was left empty.
        source: Where it comes from.
        note: What is said of that.
    """

    number: float | None
    source: Source
    note: str


@dataclass(frozen=True)
class Form:
    """The whole form.

    Attributes:
        values: By key.
        names: Of the ways, by role.
        power_included: Whether the device's price includes its power.
        currency: How money is written.
        quality: Fréchet distances by role, where they are known.
    """

    values: Mapping[str, Value]
    names: Mapping[str, str]
    power_included: bool = True
    currency: str = "USD"
    quality: Mapping[str, float] | None = None


class Wrong(InputError):
    """Values of the form that cannot be.

    Args:
        lines: One line for each, by the field's key.
    """

    def __init__(self, lines: Mapping[str, str]) -> None:
        super().__init__("; ".join(lines.values()))
        self.lines = dict(lines)


def beginning() -> dict[str, Any]:
    """The form as it is before anybody has changed it, as :func:`read` takes it."""
    return {
        "values": {key: {"number": field.value, "source": "default", "note": field.note} for key, field in FIELDS.items()},
        "names": {"before": "before", "after": "after"},
        "power_included": True,
        "currency": CURRENCIES[0],
        "quality": {},
    }


def read(sent: object) -> Form:
    """What the page sent.

    Args:
        sent: A mapping like that of :func:`beginning`; numbers may be text, as they were typed. What is missing is as there.

    Returns:
        The form.

    Raises:
        Wrong: A number is not one, or something else is not as it should be.
    """
    given = _mapping(sent)
    base, lines, values = beginning(), {}, {}
    entries = _mapping(given.get("values"))
    for key, field in FIELDS.items():
        entry = entries.get(key)
        entry = entry if isinstance(entry, Mapping) else base["values"][key]
        try:
            number = _number(entry.get("number"), field)
        except InputError as wrong:
            lines[key] = str(wrong)
            number = field.value
        source: Source = entry["source"] if entry.get("source") in _SOURCES else "given"
        values[key] = Value(number, source, _text(entry.get("note")))
    currency = given.get("currency", base["currency"])
    if currency not in CURRENCIES:
        lines["currency"] = f"the currency is {str(currency)[:20]!r}, must be one of {', '.join(CURRENCIES)}"
    names, quality = _mapping(given.get("names")), _mapping(given.get("quality"))
    if lines:
        raise Wrong(lines)
    return Form(
        values,
        {role: _text(names.get(role)) or role for role in ("before", "after")},
        given.get("power_included") is not False,
        str(currency),
        {role: float(value) for role, value in quality.items() if _sound(value)},
    )


def reckon(form: Form) -> Return:
    """The return of a form; all arithmetic is :func:`atonce.planning.returns.compare`'s.

    Args:
        form: The form.

    Returns:
        Costs, savings and break-even.

    Raises:
        Wrong: Numbers are out of their ranges; each line names the field as the page does, the value and the limit.
    """
    lines = {}
    for key, field in FIELDS.items():  # each by itself, so that each wrong one is named
        number = form.values[key].number
        try:
            if key in TERM_KEYS:
                Terms(**{key: number})  # type: ignore[arg-type]
            else:
                what, _, role = key.partition("@")
                dataclasses.replace(Way(role, 1.0, 1.0), **{what: number})  # type: ignore[arg-type]
        except InputError as wrong:
            lines[key] = named(str(wrong), field)
    if lines:
        raise Wrong(lines)
    terms = Terms(
        **{key: float(form.values[key].number or 0.0) for key in TERM_KEYS},
        power_included=form.power_included,
        currency=form.currency,
    )
    sources: dict[str, Source] = {key: form.values[key].source for key in TERM_KEYS}
    return compare(_way(form, "before"), _way(form, "after"), terms, sources)


def named(line: str, field: Field) -> str:
    """A line of the planning room with the name that the page has for the number."""
    return line.replace(field.code, field.label, 1)


def download(found: Return) -> str:
    """What ``atonce plan return --json`` prints for the same numbers."""
    return json.dumps(found.to_json(), indent=2) + "\n"


def command(form: Form) -> str:
    """The same on the command line.

    Args:
        form: The form.

    Returns:
        A line for a shell; it names the seconds, and of the rest what is not the verb's default.
    """
    words = ["atonce", "plan", "return"]
    for key, field in FIELDS.items():
        value = form.values[key]
        if value.number is None:
            continue
        if key not in TERM_KEYS or value.source != "default":
            words += [field.option, f"{value.number:.12g}"]
    if not form.power_included:
        words.append("--no-power-included")
    if form.currency != CURRENCIES[0]:
        words += ["--currency", form.currency]
    return shlex.join(words)


def _way(form: Form, role: str) -> Way:
    calls, seconds, latency = (form.values[f"{what}@{role}"] for what in ("calls", "seconds", "latency"))
    assert calls.number is not None
    assert seconds.number is not None
    source, note = _origin(calls, seconds, latency)
    quality = (form.quality or {}).get(role)
    return Way(form.names[role], calls.number, seconds.number, latency.number, source, note, quality)


def _origin(calls: Value, seconds: Value, latency: Value) -> tuple[Source, str]:
    """Where a way's numbers come from: one word where they agree, and what is said of each where they do not."""
    parts = {"calls": calls, "device time": seconds} | ({} if latency.number is None else {"latency": latency})
    times = {value.source for name, value in parts.items() if name != "calls"}
    if {value.source for value in parts.values()} == {"given"}:
        return "given", _GIVEN
    source: Source = times.pop() if len(times) == 1 else "given"
    notes = {name: value.note or value.source for name, value in parts.items()}
    if len(set(notes.values())) == 1:
        return source, notes["calls"]
    return source, "; ".join(f"{name}: {note}" for name, note in notes.items())


def _number(raw: Any, field: Field) -> float | None:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        if field.key.startswith("latency@"):
            return None
        raise InputError(f"{field.label} is empty: give a number")
    try:
        number = float(raw) if not isinstance(raw, bool) else math.nan
    except (TypeError, ValueError):
        raise InputError(f"{field.label} is {str(raw)[:30]!r}: give a number") from None
    if not math.isfinite(number):
        raise InputError(f"{field.label} is {str(raw)[:30]!r}: give a number")
    return number


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return " ".join(str(value).split())[:_LONGEST] if isinstance(value, str) else ""


def _sound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def short(value: float) -> str:
    """A number to three digits, as a person reads it: ``1,230,000``, ``0.00694``."""
    rounded = significant(value, 3)
    if rounded and abs(rounded) < 1e-4:
        return f"{rounded:.3g}"
    return f"{rounded:,.10f}".rstrip("0").rstrip(".") if abs(rounded) < 1e15 else f"{rounded:.3g}"
