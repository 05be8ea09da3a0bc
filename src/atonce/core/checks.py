"""Checks of what callers hand in, each with one clear line."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from atonce.core.errors import InputError


def whole(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number within limits.

    Args:
        value: The number; numpy's whole numbers are fine too.
        name: What to call it in messages.
        least: The smallest that will do, or ``None``.
        most: The largest, or ``None``.

    Returns:
        It, as an int.

    Raises:
        InputError: It is something else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        limits = [] if least is None else [f"of at least {least}"]
        limits += [] if most is None else [f"of at most {most:,}"]
        raise InputError(f"{name} is {value!r}, must be a whole number {' and '.join(limits)}".rstrip())
    return number


def numbers(values: Any, name: str) -> list[float]:
    """Several numbers.

    Args:
        values: A sequence or tensor of numbers.
        name: What to call them in messages.

    Returns:
        The numbers as floats.

    Raises:
        InputError: It is something else, a string of digits for example.
    """
    try:
        given: list[Any] = list(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes)) else [None]
        return [float("none" if isinstance(value, str) else value) for value in given]
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name} is {values!r}, must be a list of numbers") from problem
