"""Deadlines and shapes as people write them, and what is refused."""

from __future__ import annotations

import datetime

import pytest

from atonce.core.errors import InputError
from atonce.planning.words import image_shape, seconds_until

NOW = datetime.datetime(2026, 12, 24, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90min", 5400), ("8h", 28800), ("1.5 h", 5400), ("2d", 172800), ("1h30min", 5400), ("2026-12-24T13:00+00:00", 3600)],
)  # fmt: skip
def test_deadlines(text: str, seconds: float) -> None:
    assert seconds_until(text, NOW) == seconds


def test_a_moment_without_a_zone_is_local() -> None:
    soon = datetime.datetime.now() + datetime.timedelta(hours=2)
    assert seconds_until(soon.isoformat(timespec="seconds")) == pytest.approx(7200, abs=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-12-24T11:59+00:00", "deadline 2026-12-24T11:59+00:00 has passed: give a later moment"),
        ("-3h", "deadline -3h is not ahead of us"),
        ("0h", "deadline 0h is not ahead of us"),
        ("8fortnights", "deadline 8fortnights has the unit 'fortnights', which is not known: use s, min, h or d"),
        ("8", "deadline 8 has no unit: use s, min, h or d"),
        ("soon", "deadline 'soon' is not understood"),
        ("8h and more", "deadline '8h and more' is not understood"),
        ("2026-13-40", "deadline '2026-13-40' is no day and time"),
        ("99999d", "more than makes sense here: give at most 3650d"),
    ],
)
def test_bad_deadlines_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        seconds_until(text, NOW)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shapes() -> None:
    assert image_shape("3x64x64") == (3, 64, 64)
    assert image_shape(" 1X8x8 ") == (1, 8, 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64x64", "shape '64x64' is not understood"),
        ("4x64x64", "has 4 channels, must be 1 (grey) or 3 (RGB)"),
        ("3x64x32", "shape 3x64x32 is not square"),
        ("3x2x2", "side of 2 pixels, must be from 4 to 1024"),
        ("3x9999x9999", "side of 9999 pixels"),
        ("-3x64x64", "is not understood"),
    ],
)
def test_bad_shapes_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        image_shape(text)
    assert said in str(caught.value)
