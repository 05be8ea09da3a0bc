"""What people write where a plan asks for a time or a shape: ``8h``, ``2026-12-24T18:00``, ``3x64x64``."""

from __future__ import annotations

import datetime
import re

from atonce.core.errors import InputError

_UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hours": 3600, "hour": 3600, "d": 86400, "day": 86400, "days": 86400}
_DURATION = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
_MOST = 3650 * 86400.0  # seconds; ten years
_SIDE = 1024


def seconds_until(deadline: str, now: datetime.datetime | None = None) -> float:
    """Seconds of a deadline: a duration with its unit, or a moment.

    Args:
        deadline: ``90min``, ``8h``, ``2d``; parts may follow each other (``1h30min``). Or a day and time, ``2026-12-24T18:00``,
            in local time where it names no zone.
        now: The present moment; default: the clock's.

    Returns:
        Seconds from now.

    Raises:
        InputError: It is neither, its unit is not known, it is not ahead of us, or more than ten years away.
    """
    text = str(deadline).strip()
    if re.match(r"\d{4}-\d{2}", text):
        seconds = _until(text, now or datetime.datetime.now(datetime.UTC))
    else:
        seconds = _duration(text)
    if seconds <= 0:
        raise InputError(f"deadline {text} is not ahead of us: give a time from now (8h, 2d) or a later moment")
    if seconds > _MOST:
        raise InputError(f"deadline {text} is more than makes sense here: give at most 3650d")
    return seconds


def _until(text: str, now: datetime.datetime) -> float:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"deadline {text!r} is no day and time ({error}): write it like 2026-12-24T18:00") from error
    if moment.tzinfo is None:
        moment = moment.astimezone()
    seconds = (moment - now).total_seconds()
    if seconds <= 0:
        raise InputError(f"deadline {text} has passed: give a later moment, or a time from now (8h)")
    return seconds


def _duration(text: str) -> float:
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise InputError(f"deadline {text!r} is not understood: give a time with its unit (90min, 8h, 2d) or a moment")
    total = 0.0
    for number, unit in parts:
        if unit.lower() not in _UNITS:
            named = f"has the unit {unit!r}, which is not known" if unit else "has no unit"
            raise InputError(f"deadline {text} {named}: use s, min, h or d, for example 8h")
        total += float(number) * _UNITS[unit.lower()]
    return total


def image_shape(text: str) -> tuple[int, int, int]:
    """A shape of images from its words.

    Args:
        text: Channels, height and width: ``3x64x64``.

    Returns:
        (C, H, W).

    Raises:
        InputError: It is no such shape, not square, has another number of channels than 1 or 3, or an absurd side.
    """
    found = _SHAPE.fullmatch(text.strip().lower())
    if not found:
        raise InputError(f"shape {text!r} is not understood: give channels, height and width, for example 3x64x64")
    channels, height, width = (int(number) for number in found.groups())
    if channels not in (1, 3):
        raise InputError(f"shape {text} has {channels} channels, must be 1 (grey) or 3 (RGB)")
    if height != width:
        raise InputError(f"shape {text} is not square: networks take squares, for example {channels}x{height}x{height}")
    if not 4 <= height <= _SIDE:
        raise InputError(f"shape {text} has a side of {height} pixels, must be from 4 to {_SIDE}")
    return channels, height, width
