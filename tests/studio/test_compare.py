"""The tab Compare: the same seeds in several ways, with measured seconds, calls and a cost that can be followed by hand."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

from atonce.core.errors import InputError
from atonce.studio import compare_page, compare_work
from atonce.studio.compare_work import Outcome, Shown, Way


def outcome(way: Way, seconds: float, latency: float = 0.01, calls: int = 1) -> Outcome:
    images = (Shown(3, "digits, seed 3, 1 network call", "data:image/png;base64,AA==", 8),)
    return Outcome(way, calls, seconds, latency, 3, images)


def test_ways_are_one_two_and_four_steps_and_a_teachers_heun(client: Any) -> None:
    assert [way.name for way in compare_work.ways_of(client.app.state.studio)] == [
        "digits: one step",
        "digits: 2 steps",
        "digits: 4 steps",
    ]
    hosts = {
        "student": SimpleNamespace(kind="consistency"),
        "teacher": SimpleNamespace(kind="denoiser"),
    }
    served = SimpleNamespace(
        names=lambda: list(hosts), host=lambda name: SimpleNamespace(engine=lambda _: SimpleNamespace(model=hosts[name]))
    )
    ways = compare_work.ways_of(SimpleNamespace(service=SimpleNamespace(hosts=served)))  # type: ignore[arg-type]
    assert [way.name for way in ways][3:] == ["teacher: teacher, 18 Heun steps", "teacher: teacher, 9 Heun steps"]
    assert compare_work.usual(ways) == ["student|1", "student|2", "student|4", "teacher|18"]


@pytest.mark.parametrize(
    ("keys", "count", "said"),
    [
        ([], 8, "nothing is chosen"),
        (["digits|1", "gone|1"], 8, "'gone|1' is not served any more"),
        (["digits|1"], 5, "5 seeds are asked for: choose 4, 8, 16"),
        (["digits|1"], None, "None seeds"),
    ],
)
def test_choices_that_cannot_be(keys: list[str], count: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        compare_work.chosen([Way("digits", 1), Way("digits", 2)], keys, count)


def test_too_many_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [Way("digits", steps) for steps in range(1, 20)]
    with pytest.raises(InputError, match="19 ways are chosen, at most 12"):
        compare_work.chosen(ways, [way.key for way in ways], 8)


def test_a_way_is_made_and_timed(client: Any, someone: Any) -> None:
    studio = client.app.state.studio
    found = client.portal.call(
        functools.partial(compare_work.outcome_of, studio, someone, Way("digits", 2), (5, 6, 7, 8), "not a label here")
    )
    assert found.calls == 2
    assert [image.seed for image in found.images] == [5, 6, 7, 8]
    assert found.images[0].title == "digits, seed 5, 2 network calls"
    assert 0 < found.seconds < 60
    assert 0 < found.latency < 60
    assert 1 <= found.rounds <= compare_work.BATCHES


def test_the_cost_follows_by_hand() -> None:
    # 1,000 images of 0.036 s are 36 s of work; a device that works half of its paid time is paid for 72 s, 0.02 h: 0.10 at 5.
    (cost,) = compare_work.costs_of([outcome(Way("digits", 1), 0.036)], 5.0, 50.0)
    assert cost.per_1000 == pytest.approx(0.10)
    assert compare_page.money(cost.per_1000) == "0.10"


@pytest.mark.parametrize(
    ("price", "busy", "said"),
    [
        (None, 50, "must be numbers"),
        (1, None, "must be numbers"),
        (-1, 50, "price_per_hour"),
        (float("nan"), 50, "price_per_hour"),
        (1, 0, "the busy share is 0 %"),
        (1, 101, "the busy share is 101 %"),
    ],
)
def test_terms_that_cannot_be(price: Any, busy: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare_work.costs_of([outcome(Way("digits", 1), 0.1)], price, busy)


def test_the_tables_are_tables_and_say_what_they_must() -> None:
    outcomes = [outcome(Way("<b>", 1), 0.001), outcome(Way("<b>", 4), 0.004, 0.02, 4)]
    html = compare_page.page(outcomes, compare_work.costs_of(outcomes, 2.5, 50), "USD")
    assert "<b>:" not in html
    assert html.count("<caption>") == 2
    assert html.count('scope="row"') == 4
    assert 'alt="digits, seed 3, 1 network call"' in html
    assert "<td>4.0×</td>" in html
    assert "<td>1 ms</td>" in html
    assert "Nothing compared yet" in compare_page.page([], [], "USD")


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.00321, "3.21 ms"), (4.2e-6, "4.2 µs")])
def test_times_have_units_that_fit(seconds: float, text: str) -> None:
    assert compare_page.time_text(seconds) == text


def test_a_comparison_is_remembered(tmp_path: Path) -> None:
    outcomes = [outcome(Way("digits", 1), 0.001)]
    compare_work.save(tmp_path / "new", outcomes)
    assert compare_work.load(tmp_path / "new") == outcomes
    (tmp_path / "new" / "compare.json").write_text('[{"way": 3}]')
    assert compare_work.load(tmp_path / "new") == []
    assert compare_work.load(tmp_path / "none") == []


# ---- in a browser


def test_by_mouse(browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any) -> None:
    with page_for(browser, studio_url, tab="Compare") as page:
        page.get_by_label("digits: 4 steps").uncheck()
        page.get_by_label("fashion-mnist: one step").check()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.wait_for_selector("text=3 ways compared in", timeout=120_000)
        assert page.locator(".compare-grid tbody tr").count() == 3
        assert page.locator(".compare-grid img").count() == 24
        assert page.locator(".compare-numbers tbody tr").nth(1).locator("td").first.inner_text() == "2"
        costs = page.locator(".compare-numbers tbody td:nth-child(6)")
        before = costs.first.inner_text()
        page.locator("#compare-price input").fill("250")
        page.locator("#compare-price input").press("Tab")
        page.wait_for_function(
            "b => document.querySelector('.compare-numbers tbody td:nth-child(6)').textContent !== b", arg=before
        )
        assert float(costs.first.inner_text().split()[0].replace(",", "")) == pytest.approx(
            100 * float(before.split()[0]), rel=0.1
        )
        assert axe(page) == []
        shot(page, "compare-1280")
        page.reload()
        page.wait_for_selector(".compare-grid img")
        assert page.locator(".compare-grid tbody tr").count() == 3
        assert page.get_by_label("fashion-mnist: one step").is_checked()


def test_by_keyboard_at_phone_width(browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any) -> None:
    with page_for(browser, studio_url, width=390, dark=True, tab="Compare") as page:
        page.get_by_label("digits: 4 steps").focus()
        page.keyboard.press("Space")
        page.get_by_role("button", name="Compare", exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("text=2 ways compared in", timeout=120_000)
        assert axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        shot(page, "compare-390-dark")


def test_it_can_be_stopped_and_wrong_input_is_named(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Compare") as page:
        page.locator("#compare-busy input").fill("0")
        page.get_by_role("button", name="Compare", exact=True).click()
        said = page.locator(".toast-body").first
        said.wait_for()
        assert "the busy share is 0 %" in said.inner_text()
        page.locator("#compare-busy input").fill("50")
        for box in page.locator("#compare-ways input").all():
            box.check()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.wait_for_selector("text=of 6 done")
        page.locator("#compare-stop:not([disabled])").click()
        page.wait_for_selector("text=Stopped after")
        page.wait_for_selector("#compare-stop[disabled]")
