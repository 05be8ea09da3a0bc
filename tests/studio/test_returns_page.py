"""The Return tab in Chromium: by mouse and by keyboard, live, kept over a reload, and with the file of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atonce.planning.returns import Terms, Way, compare


def field(page: Any, key: str) -> Any:
    """The number field of a key."""
    return page.locator(f'[id="return-{key}"]')


def opened(page: Any) -> None:
    """Wait until the form stands and the server has answered it once."""
    page.wait_for_function(
        "() => document.querySelector('[id=\"return-images_per_day\"]')?.value"
        " && document.querySelector('.return-strip')?.textContent"
    )


def shows(page: Any, text: str) -> None:
    """Wait until the results say something."""
    page.wait_for_function("t => document.querySelector('#return-results').textContent.includes(t)", arg=text)


def type_in(page: Any, key: str, text: str) -> None:
    """Type a number."""
    field(page, key).fill(text)


def test_a_slider_changes_the_results_while_it_moves(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        shows(page, "47.2 USD")
        slide = page.locator('[id="return-slide-images_per_day"]')
        box = slide.bounding_box()
        page.mouse.move(box["x"] + 0.43 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2, steps=6)
        during = float(field(page, "images_per_day").input_value())
        assert during > 1e6
        page.wait_for_function("() => !document.querySelector('#return-results').textContent.includes('47.2 USD')")
        page.mouse.up()
        assert page.locator('[data-key="images_per_day"] .return-badge').inner_text() == "yours"
        found = compare(
            Way("before", 35, 0.35, 0.7),
            Way("after", 1, 0.01, 0.02),
            Terms(images_per_day=float(field(page, "images_per_day").input_value())),
        )
        shows(page, f"{float(f'{found.saved_per_day:.3g}'):,.0f} USD")


def test_by_keyboard_alone_and_the_file(browser: Any, studio_url: str, page_for: Any, tmp_path: Path) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        field(page, "seconds@before").focus()
        page.keyboard.press("Control+A")
        page.keyboard.type("0.36")
        for key, text in (
            ("seconds@after", "0.01"),
            ("images_per_day", "1,000,000"),
            ("utilisation", "1"),
            ("price_per_hour", "3.6"),
            ("once", "700"),
        ):
            field(page, key).focus()
            page.keyboard.press("Control+A")
            page.keyboard.type(text)
        # 350 a day are saved, so 700 are back after two days
        shows(page, "2 days")
        shows(page, "350 USD")
        slide = page.locator('[id="return-slide-once"]')
        slide.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => document.querySelector('[id=\"return-once\"]').value !== '700'")
        field(page, "once").fill("700")
        shows(page, "2 days")
        page.wait_for_function("() => document.querySelector('#at-says')?.textContent.includes('pays back after 2 days')")
        with page.expect_download() as caught:
            page.locator("#return-json").focus()
            page.keyboard.press("Enter")
        caught.value.save_as(tmp_path / "return.json")
        assert caught.value.suggested_filename == "atonce-return.json"
        found = json.loads((tmp_path / "return.json").read_text())
        assert found["break_even_days"] == pytest.approx(2.0)
        assert found["terms"]["images_per_day"] == 1_000_000
        assert {each["name"]: each["source"] for each in found["assumptions"]}["once"] == "given"
        assert "--once 700" in page.locator(".return-command").inner_text()


def test_wrong_numbers_are_named_beside_the_field(browser: Any, studio_url: str, page_for: Any, axe: Any) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        type_in(page, "watts", "-5")
        shows(page, "Power of the device under load is -5, must be at least 0 W")
        type_in(page, "images_per_day", "0")
        shows(page, "Images a day is 0, must be above 0 images")
        assert field(page, "watts").get_attribute("aria-invalid") == "true"
        assert page.locator('[id="return-wrong-images_per_day"]').inner_text() == "Images a day is 0, must be above 0 images"
        assert page.locator("#return-json").count() == 0
        assert axe(page) == []
        type_in(page, "watts", "many")
        shows(page, "Power of the device under load is 'many': give a number")
        type_in(page, "watts", "200")
        type_in(page, "images_per_day", "5e20")
        shows(page, "Images a day is 5e+20, more than makes sense here: give at most 1e+13 images")
        type_in(page, "images_per_day", "5000")
        shows(page, "Break-even")
        assert field(page, "watts").get_attribute("aria-invalid") == "false"


def test_published_numbers_are_marked_and_everything_is_kept(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        page.select_option("#return-published", "ImageNet 64x64: distilled, two calls")
        shows(page, "FID as published")
        assert field(page, "calls@before").input_value() == "79"
        row = page.locator('[data-key="calls@before"]')
        assert row.locator(".return-badge").inner_text() == "published"
        assert "arXiv 2303.01469" in row.locator(".return-note").inner_text()
        page.select_option("#return-currency", "EUR")
        page.uncheck("#return-power_included")
        type_in(page, "once", "123")
        shows(page, "--once 123 --no-power-included --currency EUR")
        page.reload()
        page.get_by_role("tab", name="Return", exact=True).first.click()
        opened(page)
        shows(page, "EUR for 1,000 images")
        shows(page, "FID as published")
        assert field(page, "once").input_value() == "123"
        assert not page.is_checked("#return-power_included")
        assert row.locator(".return-badge").inner_text() == "published"
        page.click("#return-reset")
        shows(page, "47.2 USD")
        assert field(page, "calls@before").input_value() == "35"


def test_measuring_marks_the_numbers_as_measured(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        page.locator("#return-measure button").first.click()
        page.locator("#return-steps input").fill("0")
        page.click("#return-begin")
        page.wait_for_selector("text=steps is 0, must be a whole number of at least 1 and of at most 200")
        page.locator("#return-steps input").fill("1")
        page.click("#return-begin")
        page.wait_for_function("() => /gone/.test(document.querySelector('#return-status').textContent)")
        page.click("#return-stop")
        page.wait_for_function("() => /Stopped/.test(document.querySelector('#return-status').textContent)")
        assert page.locator('[data-key="seconds@after"] .return-badge').inner_text() == "assumed"


@pytest.mark.slow
def test_a_whole_measurement(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url, tab="Return") as page:
        opened(page)
        page.locator("#return-measure button").first.click()
        page.click("#return-begin")
        page.wait_for_function(
            "() => /Measured in/.test(document.querySelector('#return-status').textContent)", timeout=300_000
        )
        for key in ("calls@before", "seconds@before", "latency@before", "calls@after", "seconds@after", "latency@after"):
            assert page.locator(f'[data-key="{key}"] .return-badge').inner_text() == "measured here"
        assert field(page, "calls@before").input_value() == "35"
        shows(page, "digits, 1 step")
        before, after = (float(field(page, f"seconds@{role}").input_value()) for role in ("before", "after"))
        assert 5 < before / after < 200  # 35 calls instead of one, on a machine that may be busy


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_serious_for_axe(
    browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any, width: int, dark: bool
) -> None:
    with page_for(browser, studio_url, width=width, dark=dark, tab="Return") as page:
        opened(page)
        page.locator(".return-details summary").click()
        shot(page, f"return-{width}{'-dark' if dark else ''}")
        assert axe(page) == []
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "the page does not scroll sideways"
