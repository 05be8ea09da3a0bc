"""Numbers that are not known exactly: a value between two others, and how it is said without more digits than it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SMALL = 1000


@dataclass(frozen=True)
class Estimate:
    """A predicted number.

    Attributes:
        value: What is expected.
        low: The least that is likely.
        high: The most that is likely.
        unit: Its unit.
        note: What it rests on.
    """

    value: float
    low: float
    high: float
    unit: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them, numbers to three digits."""
        numbers = {name: significant(getattr(self, name), 3) for name in ("value", "low", "high")}
        return {**numbers, "unit": self.unit, "note": self.note}

    def times(self, factor: float, unit: str, note: str = "") -> Estimate:
        """The same in proportion: a price from a time, an energy from a time.

        Args:
            factor: What all three numbers are multiplied by.
            unit: Unit of the product.
            note: What it rests on; default: the same.

        Returns:
            The product.
        """
        return Estimate(self.value * factor, self.low * factor, self.high * factor, unit, note or self.note)

    def plus(self, other: Estimate) -> Estimate:
        """The sum with another estimate of the same unit; the ends add up, since both are slow on a slow day."""
        note = self.note if self.note == other.note else "; ".join(filter(None, (self.note, other.note)))
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high, self.unit, note)


def significant(value: float, digits: int = 2) -> float:
    """A number to so many significant digits; what is not finite stays as it is."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def duration_text(seconds: float) -> str:
    """Seconds for people, two digits: ``40 s``, ``12 min``, ``3.2 h``, ``5.1 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (36 * 3600, 3600, "h"), (90 * 86400, 86400, "days")):
        if significant(seconds / unit) * unit < limit:
            return f"{significant(seconds / unit):g} {name}"
    return f"{count_text(seconds / (365.25 * 86400))} years" if seconds > 63e6 else f"{significant(seconds / 86400):g} days"


def bytes_text(count: float) -> str:
    """Bytes for people, two digits or whole units: ``480 MiB``, ``1.2 GiB``."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= 0.95 * unit:
            return f"{significant(count / unit):g} {name}"
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """A count for people, two digits: ``640``, ``80,000``, ``1.2 million``."""
    rounded = significant(count)
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(rounded) >= unit:
            return f"{rounded / unit:g} {name}"
    return f"{rounded:,.0f}" if abs(rounded) >= _SMALL else f"{rounded:g}"


def plain_text(value: float) -> str:
    """A number of an assumption: whole ones in full (``2,000,000``), others to three digits."""
    return f"{value:,.0f}" if value == round(value) else f"{significant(value, 3):g}"


def range_text(estimate: Estimate, say: Any) -> str:
    """An estimate with its ends where these differ when said: ``3.2 h (2.9 to 3.8 h)``.

    Args:
        estimate: The estimate.
        say: Number to words, such as :func:`duration_text`.

    Returns:
        The words.
    """
    value, low, high = say(estimate.value), say(estimate.low), say(estimate.high)
    return value if low == high else f"{value} ({low} to {high})"
