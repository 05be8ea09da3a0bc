"""Two people at once: neither sees, keeps or disturbs what is the other's."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

IMAGE = "#generate-picture img[src^=data]"


def move(page: Any, seed: int) -> None:
    field = page.locator("#generate-seed input[type=number]")
    field.fill(str(seed))
    field.press("Enter")
    href = "document.querySelector('#generate-picture a[data-file=json]').href"
    page.wait_for_function(f's => decodeURIComponent({href}).includes(`"seed": ${{s}},`)', arg=seed)


def test_two_browsers_do_not_mix(browser: Any, studio_url: str, page_for: Any) -> None:
    contexts = [browser.new_context(reduced_motion="reduce") for _ in range(2)]
    try:
        with (
            page_for(browser, studio_url, context=contexts[0]) as anna,
            page_for(browser, studio_url, context=contexts[1]) as ben,
        ):
            for page in (anna, ben):
                page.wait_for_selector(IMAGE)
            move(anna, 11)
            move(ben, 22)
            for page in (anna, ben):
                page.get_by_role("button", name="Keep", exact=True).click()
                page.wait_for_selector("#generate-kept li[data-id]")
            anna.reload()
            anna.wait_for_selector("#generate-kept li[data-id]")
            assert anna.input_value("#generate-seed input[type=number]") == "11"
            kept = [page.locator("#generate-kept [data-back]") for page in (anna, ben)]
            assert [each.count() for each in kept] == [1, 1]
            assert re.search("seed 11", kept[0].get_attribute("title") or "")
            assert re.search("seed 22", kept[1].get_attribute("title") or "")
            # while one compares, the other's image still follows, and shows no trace of it
            anna.get_by_role("tab", name="Compare", exact=True).first.click()
            anna.get_by_role("button", name="Compare", exact=True).click()
            move(ben, 33)
            anna.wait_for_selector("text=3 ways compared in", timeout=120_000)
            ben.get_by_role("tab", name="Compare", exact=True).first.click()
            ben.wait_for_selector("text=Nothing compared yet")
            ben.reload()
            ben.wait_for_selector("text=Nothing compared yet")
    finally:
        for context in contexts:
            context.close()


def test_one_person_in_two_windows_is_one_person(browser: Any, studio_url: str, page_for: Any) -> None:
    context = browser.new_context(reduced_motion="reduce")
    try:
        with page_for(browser, studio_url, context=context) as first:
            first.wait_for_selector(IMAGE)
            first.get_by_role("button", name="Keep", exact=True).click()
            first.wait_for_selector("#generate-kept li[data-id]")
            with page_for(browser, studio_url, context=context) as second:
                second.wait_for_selector("#generate-kept li[data-id]")
                assert second.locator("#generate-kept li[data-id]").count() == 1
    finally:
        context.close()
