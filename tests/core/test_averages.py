"""Names of averages: one for each rate, however it is written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.averages import Rate, known_as, name_of, parse_rate
from atonce.core.errors import InputError

NAMES = ["power-0.1", "0.9", "half-life-1000", "2-steps", "0.9990"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("power-0.1", "power-0.1"),
        ("power-0.10", "power-0.1"),
        ("power-1e-1", "power-0.1"),
        ("0.9", "0.9"),
        (0.9, "0.9"),
        ("0.90", "0.9"),
        ("half-life-1e3", "half-life-1000"),
        ("half-life-1000.0", "half-life-1000"),
        ("2-steps", "2-steps"),
        ("0.9990", "0.9990"),  # as it is called, where it is called so
        ("power-0.11", None),
        (0.99, None),
        ("4-steps", None),
        ("", None),
        (True, None),
        (None, None),
        ([0.9], None),
        ("nan", None),
    ],
)
def test_what_is_meant(asked: Any, name: str | None) -> None:
    assert known_as(asked, NAMES) == name


@given(st.sampled_from(["decay", "half-life", "power"]), st.floats(1e-6, 0.28))
def test_every_rate_is_found_by_its_name(kind: Any, value: float) -> None:
    rate = Rate(kind, value * 1e6 + 1 if kind == "half-life" else value)
    name = name_of(rate)
    assert known_as(name, [name]) == name
    assert name_of(parse_rate(name)) == name


def test_what_is_no_rate() -> None:
    with pytest.raises(InputError, match="the average 'power-0.4' is not known: give a decay"):
        parse_rate("power-0.4")
