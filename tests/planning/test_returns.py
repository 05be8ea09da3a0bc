"""The return calculator against cases computed by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.planning.returns import Terms, Way, compare, cost_of

HEUN = Way("Heun, 35 calls", 35, 0.36, latency=1.8)
ONE = Way("one step", 1, 0.01, latency=0.05)


def test_costs_by_hand() -> None:
    # 1,000 images take 360 s; at half use 720 s are paid for: 0.2 h at 3 an hour. 360 s at 1,000 W are 0.1 kWh, 0.15 with 1.5.
    found = cost_of(HEUN, Terms(images_per_day=86_400, price_per_hour=3.0, watts=1000, utilisation=0.5, overhead=1.5))
    assert found.per_1000 == pytest.approx(0.6)
    assert found.kwh_per_1000 == pytest.approx(0.15)
    assert found.per_day == pytest.approx(86.4 * 0.6)
    assert found.kwh_per_day == pytest.approx(12.96)
    assert found.devices == pytest.approx(0.72)  # 86,400 images of 0.36 s in a day of 86,400 s, half of which is used
    assert found.images_per_second == pytest.approx(1 / 0.36)


def test_own_power_is_paid_for_by_the_kilowatt_hour() -> None:
    terms = Terms(price_per_hour=0.0, watts=1000, price_per_kwh=0.4, power_included=False, utilisation=1.0, overhead=1.5)
    assert cost_of(HEUN, terms).per_1000 == pytest.approx(0.15 * 0.4)
    assert cost_of(HEUN, dataclasses.replace(terms, power_included=True)).per_1000 == 0.0


def test_the_return_by_hand() -> None:
    # 0.36 s and 0.01 s at full use, 3.6 an hour: 0.36 and 0.01 a thousand; a million a day are 360 and 10; 700 / 350 = 2 days.
    terms = Terms(images_per_day=1_000_000, price_per_hour=3.6, utilisation=1.0, once=700.0)
    found = compare(HEUN, ONE, terms)
    assert found.before.per_1000 == pytest.approx(0.36)
    assert found.after.per_1000 == pytest.approx(0.01)
    assert found.saved_per_day == pytest.approx(350.0)
    assert found.break_even_days == pytest.approx(2.0)
    assert found.break_even_images == pytest.approx(2_000_000)
    assert found.cheaper == pytest.approx(36.0)
    assert found.faster == pytest.approx(36.0)


def test_what_costs_more_never_pays() -> None:
    found = compare(ONE, HEUN, Terms(once=1.0))
    assert found.saved_per_day < 0
    assert found.break_even_days is None
    assert found.break_even_images is None
    assert compare(ONE, dataclasses.replace(ONE, name="same"), Terms(once=1.0)).break_even_days is None


def test_what_costs_nothing_once_pays_at_once() -> None:
    assert compare(HEUN, ONE, Terms(once=0.0)).break_even_days == 0.0


def test_unknown_latency_gives_no_factor() -> None:
    assert compare(HEUN, Way("one step", 1, 0.01)).faster is None


def test_every_number_and_its_source_is_shown() -> None:
    measured = dataclasses.replace(ONE, source="measured", note="here, 64 at once")
    found = compare(HEUN, measured, Terms(watts=250), {"watts": "given"})
    by_name = {each.name: each for each in found.assumptions}
    assert by_name["watts"].value == 250
    assert by_name["watts"].source == "given"
    assert by_name["price_per_hour"].source == "default"
    assert by_name["after: device time"].source == "measured"
    assert by_name["after: device time"].note == "here, 64 at once"
    assert "not used" in by_name["price_per_kwh"].note
    numbers = {field.name for field in dataclasses.fields(Terms)} - {"power_included", "currency"}
    assert numbers <= set(by_name)
    assert json.loads(json.dumps(found.to_json()))["after"]["way"]["name"] == "one step"


@given(st.floats(1e-4, 10), st.floats(1e-4, 10), st.floats(1, 1e9), st.floats(0.01, 1), st.floats(0, 1e6))
def test_break_even_is_where_the_money_is_back(before: float, after: float, images: float, use: float, once: float) -> None:
    terms = Terms(images_per_day=images, utilisation=use, once=once)
    found = compare(Way("before", 35, before), Way("after", 1, after), terms)
    if found.break_even_days is None:
        assert after >= before
        return
    days = found.break_even_days
    assert days * found.before.per_day == pytest.approx(once + days * found.after.per_day, rel=1e-6, abs=1e-6 * max(once, 1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images_per_day": 0}, "images_per_day is 0, must be above 0 images"),
        ({"images_per_day": -5}, "images_per_day is -5"),
        ({"images_per_day": 1e20}, "more than makes sense"),
        ({"utilisation": 1.5}, "utilisation is 1.5, more than makes sense here: give at most 1"),
        ({"utilisation": 0}, "utilisation is 0"),
        ({"watts": float("nan")}, "watts is nan, must be a number of W"),
        ({"price_per_hour": -1}, "price_per_hour is -1, must be at least 0"),
        ({"price_per_hour": True}, "price_per_hour is True"),
        ({"overhead": 0.5}, "overhead is 0.5, must be at least 1"),
        ({"once": "much"}, "once is 'much'"),
    ],
)
def test_absurd_terms_are_named(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        Terms(**wrong)


def test_absurd_ways_are_named() -> None:
    with pytest.raises(InputError, match="seconds of x is 0, must be above 0 seconds for an image"):
        Way("x", 1, 0)
    with pytest.raises(InputError, match="calls of x is -1"):
        Way("x", -1, 1)
    with pytest.raises(InputError, match="latency of x is 0"):
        Way("x", 1, 1, latency=0)
    with pytest.raises(InputError, match="sources has wats"):
        compare(HEUN, ONE, None, {"wats": "given"})
