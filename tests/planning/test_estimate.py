"""Numbers that are not known exactly, and how they are said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.planning.estimate import Estimate, bytes_text, count_text, duration_text, plain_text, range_text, significant


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0.4 s"), (41.6, "42 s"), (125, "2.1 min"), (3 * 3600 + 100, "3 h"), (50 * 3600, "2.1 days"), (1e9, "32 years")],
)  # fmt: skip
def test_durations_have_two_digits(seconds: float, said: str) -> None:
    assert duration_text(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"), [(500, "500 B"), (480 * 2**20 + 1, "480 MiB"), (1000 * 2**20, "0.98 GiB"), (3 * 2**40, "3 TiB")]
)
def test_bytes(count: float, said: str) -> None:
    assert bytes_text(count) == said


@pytest.mark.parametrize(
    ("count", "said"), [(0.68, "0.68"), (641, "640"), (80_123, "80,000"), (409_600_000, "410 million"), (999_999, "1 million")]
)
def test_counts(count: float, said: str) -> None:
    assert count_text(count) == said


def test_a_range_is_said_only_where_it_shows() -> None:
    assert range_text(Estimate(100, 90, 120, "s"), duration_text) == "1.7 min (1.5 min to 2 min)"
    assert range_text(Estimate(100, 99.9, 100.1, "s"), duration_text) == "1.7 min"


def test_assumptions_are_said_in_full() -> None:
    assert [plain_text(v) for v in (2e6, 0.25, 0.0, 0.17912)] == ["2,000,000", "0.25", "0", "0.179"]


def test_products_sums_and_json() -> None:
    hour = Estimate(3600.4, 3000, 4000, "s", "measured")
    assert hour.times(2 / 3600, "USD").to_json() == {"value": 2.0, "low": 1.67, "high": 2.22, "unit": "USD", "note": "measured"}
    both = hour.plus(Estimate(60, 50, 70, "s", "guessed"))
    assert (both.low, both.high, both.note) == (3050, 4070, "measured; guessed")
    assert hour.plus(hour).note == "measured"


@given(st.floats(1e-9, 1e15), st.integers(1, 6))
def test_rounding_changes_at_most_half_a_digit(value: float, digits: int) -> None:
    assert significant(value, digits) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits) * 1.001)
    assert significant(-value, digits) == -significant(value, digits)


def test_zero_and_infinity_stay() -> None:
    assert significant(0.0) == 0.0
    assert significant(float("inf")) == float("inf")
