"""The Evidence tab in a real browser: every section by mouse, the main path by keyboard, a page of the inside of a model."""

from __future__ import annotations

import time
from typing import Any

import pytest

TITLE = "Evidence"
CHARTS = ("Quality against steps", "Quality against N", "Ablations", "Methods, ours and published")

INSIDE = "Inside a model"


def choose(page: Any, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check()
    page.wait_for_selector(f'section.ev-section[aria-label="{name}"]', state="attached", timeout=60_000)


@pytest.mark.slow  # a browser and a server
@pytest.mark.timeout(600)
def test_every_section_by_mouse_and_after_a_reload(studio_url, browser, page_for, shot, repository):
    with page_for(browser, studio_url, tab=TITLE) as page:
        for name in CHARTS:
            choose(page, name)
            charts = page.locator("#evidence-charts svg.ev-chart")
            assert charts.count() >= 1, name
            assert all(charts.nth(i).get_attribute("aria-label") for i in range(charts.count()))
            assert page.locator("#evidence-charts details summary").count() >= charts.count()  # a table for each
            shot(page, f"evidence-{name.split(',')[0].lower().replace(' ', '-')}")
        page.locator("#evidence-charts details summary").first.click()
        assert page.locator("#evidence-charts table.ev-table").first.is_visible()
        assert "published" in page.locator("#evidence-charts").inner_text()
        choose(page, "Where the numbers are from")
        assert "the model digits" in page.locator("#evidence-charts").inner_text()
        choose(page, "Model cards")
        page.wait_for_selector("#evidence-card h3")
        assert page.locator("#evidence-card h3").inner_text() == "digits"
        page.locator("#evidence-card-of input").click()
        page.get_by_role("option", name="fashion-mnist (served)").click()
        page.wait_for_function("() => document.querySelector('#evidence-card h3')?.innerText === 'fashion-mnist'")
        page.wait_for_timeout(500)
        page.reload()
        page.get_by_role("tab", name=TITLE, exact=True).first.click()
        page.wait_for_function("() => document.querySelector('#evidence-card h3')?.innerText === 'fashion-mnist'")
        assert page.get_by_role("radio", name="Model cards", exact=True).is_checked()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_main_path_by_keyboard(studio_url, browser, page_for):
    with page_for(browser, studio_url, tab=TITLE) as page:
        page.wait_for_selector("#evidence-charts svg.ev-chart")
        page.get_by_role("radio", name=CHARTS[0], exact=True).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f'section.ev-section[aria-label="{CHARTS[1]}"]')
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
        page.keyboard.press("Enter")
        table = page.locator("#evidence-charts table.ev-table").first
        assert table.is_visible()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Table: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_inside_of_a_model_is_shown_and_saved(studio_url, browser, page_for, shot):
    with page_for(browser, studio_url, tab=TITLE) as page:
        choose(page, INSIDE)
        page.locator("#evidence-inspect").click()
        page.wait_for_selector("#evidence-progress [role=progressbar]", timeout=60_000)
        page.reload()  # it goes on, and the page comes back to it
        page.get_by_role("tab", name=TITLE, exact=True).first.click()
        page.wait_for_selector(f'section.ev-section[aria-label="{INSIDE}"]', timeout=60_000)
        end = time.monotonic() + 480
        while not page.locator("#evidence-page iframe.ev-page").count():
            state = page.locator("#evidence-progress").inner_text()
            assert time.monotonic() < end, state
            assert page.locator("#evidence-progress .ev-problem").count() == 0, state
            time.sleep(0.5)
        frame = page.frame_locator("#evidence-page iframe.ev-page")
        assert frame.locator("h1").inner_text() == "Inside digits"
        assert frame.locator("svg, img").count() > 5
        with page.expect_download() as saved:
            page.locator(".ev-save").click()
        assert saved.value.suggested_filename == "inspection-digits.html"
        shot(page, "evidence-inside")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_nothing_is_cut_off_and_axe_finds_nothing(studio_url, browser, page_for, axe, shot, width: int, dark: bool):
    with page_for(browser, studio_url, width=width, dark=dark, tab=TITLE) as page:
        for name in (*CHARTS, "Model cards"):
            choose(page, name)
            if name in CHARTS:
                page.locator("#evidence-charts details summary").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert axe(page) == [], name
            shot(page, f"evidence-{CHARTS.index(name) if name in CHARTS else 'cards'}-{width}-{'dark' if dark else 'light'}")
