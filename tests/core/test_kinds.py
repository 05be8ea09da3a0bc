from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from atonce.core.kinds import check_types, fits


@dataclasses.dataclass(frozen=True)
class Form:
    name: str
    size: int | None
    share: float
    told: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1.0, int, False),
        (1, float, True),
        (True, int, False),
        (True, float, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        ("1", int | None, False),
        ((1, 2.0), tuple[float, ...], True),
        ((1, "2"), tuple[float, ...], False),
        ([1.0], tuple[float, ...], False),
        ({"a": "b"}, Mapping[str, str], True),
        ({"a": 1}, Mapping[str, str], False),
    ],
)
def test_kinds(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


def test_the_field_is_named() -> None:
    check_types(Form, {"name": "a", "size": None, "share": 1})
    check_types(Form, {"unknown": 3})
    with pytest.raises(TypeError, match="size is 'big', of the wrong kind"):
        check_types(Form, {"name": "a", "size": "big"})
