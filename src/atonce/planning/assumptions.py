"""Numbers with where they come from: given, measured here, published, or our default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from atonce.core.errors import InputError

Source = Literal["given", "measured", "published", "default"]


@dataclass(frozen=True)
class Assumption:
    """A number on which a result rests.

    Attributes:
        name: What it is called where it can be changed.
        value: The number.
        unit: Its unit.
        source: Where it comes from.
        note: How it was measured, who published it, or why it is the default.
    """

    name: str
    value: float
    unit: str
    source: Source
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {"name": self.name, "value": self.value, "unit": self.unit, "source": self.source, "note": self.note}


def positive(value: object, name: str, most: float, unit: str = "", least: float = 0.0, zero: bool = False) -> float:
    """A number in its range, or one line that says what is wrong.

    Args:
        value: What was given.
        name: What it is.
        most: The largest value that makes sense.
        unit: Named in the message.
        least: The smallest value.
        zero: Whether ``least`` itself is allowed.

    Returns:
        The number.

    Raises:
        InputError: It is no finite number, or not in its range.
    """
    unit = f" {unit}" if unit else ""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}, must be a number{' of' if unit else ''}{unit}")
    if value > most:
        raise InputError(f"{name} is {value:g}, more than makes sense here: give at most {most:g}{unit}")
    if value < least or (value == least and not zero):
        raise InputError(f"{name} is {value:g}, must be {'at least' if zero else 'above'} {least:g}{unit}")
    return float(value)
