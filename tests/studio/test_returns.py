"""The Return tab without a browser: the form, the arithmetic that is the planning room's, the pictures and the file."""

from __future__ import annotations

import base64
import copy
import html
import json
import re
import shlex
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.cli import main
from atonce.planning.returns import Terms, Way, compare
from atonce.studio.returns_chart import bars, days, days_text, horizon, ticks
from atonce.studio.returns_fields import FIELDS, TERM_KEYS
from atonce.studio.returns_form import form_html
from atonce.studio.returns_page import break_even, refused, results, seconds_text, summary
from atonce.studio.returns_published import DEVICES, PAIRS, begin_with, choices
from atonce.studio.returns_work import Wrong, beginning, command, download, read, reckon, short


def filled(**numbers: Any) -> dict[str, Any]:
    """A form in which somebody typed numbers; ``__`` in a name stands for ``@``."""
    state = beginning()
    for name, number in numbers.items():
        state["values"][name.replace("__", "@")] = {"number": number, "source": "given", "note": ""}
    return state


def all_given() -> dict[str, Any]:
    """A form in which every number was typed: 700 paid once come back in two days (tests/planning has the sum by hand)."""
    return filled(
        images_per_day=1_000_000, utilisation=1.0, price_per_hour=3.6, once=700, watts=1000, overhead=1.5, price_per_kwh=0.4,
        calls__before=35, seconds__before=0.36, latency__before=1.8, calls__after=1, seconds__after=0.01, latency__after=0.05,
    )  # fmt: skip


def test_every_number_of_the_terms_has_a_field() -> None:
    assert set(TERM_KEYS) == set(Terms.__dataclass_fields__) - {"power_included", "currency"}
    assert {key for key in FIELDS if "@" in key} == {
        f"{w}@{r}" for w in ("calls", "seconds", "latency") for r in ("before", "after")
    }
    for field in FIELDS.values():
        assert field.low < field.high
        assert field.note, f"{field.key} says not where it comes from"


def test_the_beginning_is_the_planning_rooms_defaults() -> None:
    found = reckon(read(beginning()))
    assert found.terms == Terms()
    assert found.before.way.calls == 35
    assert found.cheaper == pytest.approx(35)
    assert {each.source for each in found.assumptions} == {"default"}


def test_a_return_by_hand() -> None:
    # 0.36 s and 0.01 s at full use and 3.6 an hour: 360 and 10 a day for a million; 700 / 350 = 2 days.
    found = reckon(read(all_given()))
    assert found.break_even_days == pytest.approx(2.0)
    assert found.saved_per_day == pytest.approx(350)
    # 360 s at 1,000 W are 0.1 kWh, 0.15 with the building
    assert found.before.kwh_per_1000 == pytest.approx(0.15)
    said = "36 times cheaper, one image 36 times sooner, saves 350 USD a day. It pays back after 2 days, 2 million images."
    assert summary(found) == said


def test_the_file_is_what_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    state = all_given() | {"power_included": False, "currency": "EUR"}
    form = read(state)
    words = shlex.split(command(form))
    assert words[:3] == ["atonce", "plan", "return"]
    assert main([*words[1:], "--json"]) == 0
    printed = capsys.readouterr().out
    assert download(reckon(form)) == printed
    assert json.loads(printed)["terms"]["currency"] == "EUR"


def test_the_command_leaves_defaults_of_the_terms_out_and_still_gives_the_same_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    form = read(filled(once=50))
    words = shlex.split(command(form))
    assert "--watts" not in words
    assert words[words.index("--once") + 1] == "50"
    assert main([*words[1:], "--json"]) == 0
    theirs, ours = json.loads(capsys.readouterr().out), reckon(form).to_json()
    for part in ("saved_per_day", "cheaper", "faster", "break_even_days", "terms"):
        assert theirs[part] == ours[part]


@given(st.floats(1, 1e12), st.floats(1e-5, 100), st.floats(1e-5, 100), st.floats(0, 1e6), st.floats(0.01, 1), st.booleans())
def test_the_tab_adds_no_arithmetic_of_its_own(
    images: float, before: float, after: float, once: float, use: float, included: bool
) -> None:
    state = filled(images_per_day=images, seconds__before=before, seconds__after=after, once=once, utilisation=use)
    found = reckon(read(state | {"power_included": included}))
    terms = Terms(images_per_day=images, once=once, utilisation=use, power_included=included)
    plain = compare(Way("before", 35, before, 0.7), Way("after", 1, after, 0.02), terms)
    for part in ("saved_per_day", "saved_kwh_per_day", "cheaper", "faster", "break_even_days", "break_even_images"):
        assert getattr(found, part) == getattr(plain, part)


@pytest.mark.parametrize(
    ("key", "typed", "line"),
    [
        ("images_per_day", -5, "Images a day is -5, must be above 0 images"),
        ("images_per_day", "0", "Images a day is 0, must be above 0 images"),
        ("images_per_day", 1e20, "Images a day is 1e+20, more than makes sense here: give at most 1e+13 images"),
        ("images_per_day", "many", "Images a day is 'many': give a number"),
        ("images_per_day", "", "Images a day is empty: give a number"),
        ("images_per_day", True, "Images a day is 'True': give a number"),
        ("images_per_day", [1], "Images a day is '[1]': give a number"),
        ("watts", float("nan"), "Power of the device under load is 'nan': give a number"),
        ("utilisation", 1.5, "Share of paid time in use is 1.5, more than makes sense here: give at most 1"),
        ("overhead", 0.5, "Energy of the building over the device's (PUE) is 0.5, must be at least 1"),
        ("price_per_hour", -1, "Price of a device hour is -1, must be at least 0"),
        ("calls@before", 0, "Network calls, before is 0, must be above 0"),
        ("seconds@after", 0, "Device time, after is 0, must be above 0 seconds for an image"),
        ("latency@before", -2, "Latency, before is -2, must be above 0 seconds"),
        ("once", 1e15, "Training and other cost, once is 1e+15, more than makes sense here: give at most 1e+12"),
    ],
)
def test_wrong_numbers_are_named_as_on_the_page(key: str, typed: Any, line: str) -> None:
    state = filled(**{key.replace("@", "__"): typed})
    with pytest.raises(Wrong) as caught:
        reckon(read(state))
    assert caught.value.lines == {key: line}
    assert line.replace("'", "&#x27;") in refused(caught.value.lines)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(Wrong) as caught:
        reckon(read(filled(watts=-1, seconds__before=0, once=5)))
    assert set(caught.value.lines) == {"watts", "seconds@before"}
    told = re.search(r'data-wrong="([^"]*)"', refused(caught.value.lines))
    assert told is not None
    assert "seconds@before" in told[1]


@pytest.mark.parametrize(
    "sent", [None, 3, "x", {}, {"values": 3}, {"values": {"watts": 7}}, {"quality": {"before": "x"}, "names": 1}]
)
def test_a_page_that_sends_nonsense_gets_the_beginning(sent: Any) -> None:
    assert reckon(read(sent)).terms == Terms()


def test_an_unknown_currency_is_named() -> None:
    with pytest.raises(Wrong, match="the currency is 'Taler', must be one of USD, EUR"):
        read(beginning() | {"currency": "Taler"})


def test_a_latency_may_be_empty() -> None:
    state = filled(latency__before="")
    found = reckon(read(state))
    assert found.faster is None
    assert "not known" in results(read(state), found)


def test_sources_go_with_the_numbers() -> None:
    state = filled(watts=250)
    for what in ("calls", "seconds", "latency"):
        state["values"][f"{what}@after"] |= {"source": "measured", "note": "here, 8 at once"}
    state["values"]["calls@before"] |= {"source": "published", "note": "published: a paper"}
    by_name = {each.name: each for each in reckon(read(state)).assumptions}
    assert (by_name["watts"].source, by_name["once"].source) == ("given", "default")
    assert (by_name["after: device time"].source, by_name["after: device time"].note) == ("measured", "here, 8 at once")
    assert by_name["before: device time"].source == "default"
    assert "calls: published: a paper" in by_name["before: network calls"].note


def test_published_pairs_set_calls_and_quality_and_take_times_in_proportion() -> None:
    state = filled(seconds__after=0.02, latency__after="")
    title = "ImageNet 64x64: distilled, two calls"
    found = begin_with(state, title)
    assert found["values"]["calls@before"] == {
        "number": 79,
        "source": "published",
        "note": choices()[title]["values"]["calls@before"]["note"],
    }
    assert found["values"]["seconds@before"]["number"] == pytest.approx(79 * 0.02)
    assert found["values"]["seconds@after"]["number"] == pytest.approx(2 * 0.02)
    assert found["values"]["seconds@before"]["source"] == "default"
    assert found["values"]["latency@before"]["number"] is None
    assert found["quality"] == {"before": 2.44, "after": 4.70}
    made = reckon(read(found))
    assert made.cheaper == pytest.approx(79 / 2)
    assert "FID as published" in results(read(found), made)
    assert state["values"]["calls@before"]["source"] == "default", "the form that was given is not changed"


def test_choosing_twice_keeps_the_time_of_a_call() -> None:
    state = beginning()
    for pair in PAIRS:
        state = begin_with(state, pair.title)
    assert state["values"]["seconds@after"]["number"] / state["values"]["calls@after"]["number"] == pytest.approx(0.01)


def test_a_device_sets_its_power_only() -> None:
    state = filled(seconds__after=0.02)
    found = begin_with(copy.deepcopy(state), "Device: NVIDIA A100 SXM")
    assert found["values"]["watts"]["number"] == DEVICES["NVIDIA A100 SXM"][0] == 400
    assert found["values"]["watts"]["source"] == "published"
    assert found["values"]["seconds@after"] == state["values"]["seconds@after"]


def test_every_published_number_names_its_source() -> None:
    for choice in choices().values():
        for value in choice["values"].values():
            assert value["source"] == "published"
            assert re.search(r"arXiv \d{4}\.\d{5}|data sheet", value["note"])


def test_the_form_has_a_label_for_every_control_and_no_template_marks() -> None:
    page = form_html()
    assert "${" not in page
    assert "{{" not in page
    ids = re.findall(r'<(?:input|select)[^>]* id="([^"]+)"', page)
    labelled = set(re.findall(r'<label for="([^"]+)"', page)) | set(re.findall(r'id="(return-slide-[^"]+)" aria-label=', page))
    assert set(ids) == labelled
    assert len(ids) == len(set(ids)) == 2 * len(FIELDS) + 3


def test_results_hold_the_file_and_a_summary() -> None:
    form = read(all_given())
    found = reckon(form)
    page = results(form, found)
    link = re.search(r'download="atonce-return.json" href="data:application/json;base64,([^"]+)"', page)
    assert link is not None
    assert base64.b64decode(link[1]).decode() == download(found)
    assert summary(found) in page
    for field in FIELDS.values():
        assert f'<th scope="row">{html.escape(field.label)}</th><td>{short(form.values[field.key].number or 0)} ' in page
    assert page.count("<td>yours</td>") == len(FIELDS)
    assert page.count("not used: the price of the device includes it") == 1


def test_names_cannot_bring_markup() -> None:
    state = beginning()
    state["names"] = {"before": "<img src=x>", "after": 'a"b'}
    page = results(read(state), reckon(read(state)))
    assert "<img" not in page
    assert "&lt;img src=x&gt;" in page


def test_dearer_and_later_is_said_as_such() -> None:
    found = compare(Way("a", 1, 0.01, 0.05), Way("b", 35, 0.36, 1.8), Terms(once=10))
    text = summary(found)
    assert "36 times dearer" in text
    assert "36 times later" in text
    assert "more. It never pays back" in text
    assert "it never pays back" in days_text(found)
    assert break_even(compare(Way("a", 35, 0.36), Way("b", 1, 0.01))) == "It pays at once: nothing is paid once"


def test_the_chart_of_money_ends_at_twice_break_even_and_marks_it_in_the_middle() -> None:
    found = reckon(read(all_given() | {"power_included": True}))
    assert horizon(found) == 7.0  # a week at least
    later = reckon(read(filled(once=100_000)))
    assert horizon(later) == pytest.approx(min(3650.0, 2 * (later.break_even_days or 0)))
    drawn = ElementTree.fromstring(re.search(r"<svg.*?</svg>", days(later), re.S)[0])  # type: ignore[index]
    circle = drawn.find("circle")
    assert circle is not None
    assert float(circle.attrib["cx"].rstrip("%")) == pytest.approx(
        100 * (later.break_even_days or 0) / horizon(later), rel=1e-3
    )
    lines = [each.attrib for each in drawn.findall("line") if "return-line" in each.attrib["class"]]
    assert float(lines[1]["y1"].rstrip("%")) < float(lines[0]["y1"].rstrip("%")), "what is paid once is paid at the beginning"
    assert drawn.attrib["aria-label"] == days_text(later)


def test_bars_are_in_proportion() -> None:
    drawn = bars("Cost", "USD", (4.0, 1.0), ("a", "b"))
    assert re.findall(r"width:([\d.]+)%", drawn) == ["100", "25"]
    assert re.findall(r"width:([\d.]+)%", bars("Cost", "USD", (0.0, 0.0), ("a", "b"))) == ["0", "0"]


@given(st.floats(1e-6, 1e12))
def test_ticks_are_round_and_fit(top: float) -> None:
    found = ticks(top)
    assert found[0] == 0
    assert 3 <= len(found) <= 6
    assert found[-1] <= top * (1 + 1e-6)
    assert top - found[-1] < found[1] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (35, "35"),
        (0.486111, "0.486"),
        (1234567, "1,230,000"),
        (0.00001234, "1.23e-05"),
        (-47.2, "-47.2"),
        (1e18, "1e+18"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_seconds_are_said_in_their_unit() -> None:
    assert [seconds_text(value) for value in (None, 0.0123, 1.5)] == ["-", "12.3 ms", "1.5 s"]
