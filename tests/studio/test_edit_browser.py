"""The Edit tab in a real browser: by mouse, by keyboard alone, at phone width, after a reload, with wrong input."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

_HERE = """() => {
  const e = document.activeElement;
  const near = [e.closest("[id]")?.id, e.closest("label")?.innerText];
  return [e.getAttribute("aria-label"), e.getAttribute("aria-labelledby"), e.innerText, e.id, ...near].join(" | ");
}"""  # what has the focus


def begin(page, seed=3):
    page.get_by_role("spinbutton", name="Its seed").fill(str(seed))
    page.get_by_role("button", name="Use this picture").click()
    page.locator(".edit-result h3", has_text=f"seed {seed}").wait_for()
    page.locator(".edit-canvas canvas").wait_for()


def task(page, name):
    page.locator("#edit-task").get_by_role("radio", name=name, exact=True).check()


def drag(page, *points):
    area = page.locator(".edit-canvas canvas")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def marked(page):
    return int(re.match(r"\d+", page.locator(".edit-canvas [data-says]").inner_text())[0])


def run(page, title):
    page.locator("#edit-run").click()
    page.locator("#edit-progress", has_text=title).locator("text=took").wait_for()


def history(page):
    return page.locator(".edit-history li")


def test_marking_filling_in_undo_redo_and_download_by_mouse(browser, studio_url, page_for, shot, axe):
    with page_for(browser, studio_url, tab="Edit") as page:
        begin(page)
        drag(page, (0.55, 0.1), (0.55, 0.9))
        assert marked(page) >= 7
        page.get_by_role("radio", name="Erase").check()
        drag(page, (0.55, 0.1), (0.55, 0.4))
        page.get_by_role("button", name="Take back").click()
        assert marked(page) >= 7
        page.get_by_role("radio", name="Rectangle").check()
        drag(page, (0.55, 0.05), (0.95, 0.95))
        assert marked(page) == 32
        run(page, "Fill in, seed 0")
        assert history(page).count() == 2
        divider = page.get_by_role("slider", name="Divider between before and after")
        divider.fill("100")
        assert divider.get_attribute("aria-valuetext") == "100 percent before, 0 percent after"
        assert page.locator("[data-before]").evaluate("e => e.style.clipPath").startswith("inset(0")
        shot(page, "edit-inpaint")
        assert axe(page) == []
        page.get_by_role("button", name="Undo").click()
        page.locator(".edit-history [aria-current]", has_text="1").wait_for()
        page.get_by_role("button", name="Redo").click()
        page.locator(".edit-history [aria-current]", has_text="2").wait_for()
        with page.expect_download() as got:
            page.get_by_role("link", name="Download PNG").first.click()
        assert got.value.suggested_filename == "Fill-in-seed-0.png"
        with page.expect_download() as got:
            page.locator(".edit-files").get_by_role("link", name="Download record").click()
        record = json.loads(Path(got.value.path()).read_text())
        assert [step["record"]["kind"] for step in record["steps"]] == ["generate", "inpaint"]


def test_the_main_path_by_keyboard_alone_and_all_is_there_after_a_reload(browser, studio_url, page_for):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    with page_for(browser, studio_url, context=context) as page:
        keys = page.keyboard

        def reach(words, most=60):
            for _ in range(most):
                keys.press("Tab")
                here = page.evaluate(_HERE)
                if words in here:
                    return
            raise AssertionError(f"{words} cannot be reached by the Tab key")

        page.locator("#studio-tabs button[role=tab]").first.wait_for()
        reach("Generate")
        keys.press("Tab")
        keys.press("Enter")  # the second tab
        page.locator("#edit-use").wait_for()
        reach("Use this picture")
        keys.press("Enter")
        page.locator(".edit-canvas canvas").wait_for()
        reach("edit-canvas-title")
        for _ in range(4):
            keys.press("ArrowRight")
        for _ in range(3):
            keys.press("Shift+ArrowRight")
        for _ in range(7):
            keys.press("Shift+ArrowDown")
        keys.press("Enter")
        assert marked(page) == 32
        keys.press("Control+z")
        assert marked(page) == 0
        keys.press("Space")
        assert marked(page) >= 1
        reach("Rectangle by numbers")
        keys.press("Enter")
        reach("Mark the rectangle")
        keys.press("Enter")
        count = marked(page)
        assert count >= 32
        reach("Run")
        keys.press("Enter")
        page.locator("#edit-progress", has_text="took").wait_for()
        reach("edit-divider")
        keys.press("ArrowRight")
        assert "51 percent before" in page.locator("#edit-divider").get_attribute("aria-valuetext")
    with page_for(browser, studio_url, context=context, tab="Edit") as page:
        page.locator(".edit-result h3", has_text="Fill in").wait_for()
        assert history(page).count() == 2
        assert page.get_by_role("button", name="Undo").is_enabled()
    context.close()


def test_strokes_variations_and_between_two(browser, studio_url, page_for, shot):
    with page_for(browser, studio_url, tab="Edit") as page:
        begin(page, 1)
        task(page, "Strokes to picture")
        page.locator(".edit-canvas h3", has_text="Paint strokes").wait_for()
        drag(page, (0.5, 0.1), (0.5, 0.9))
        page.get_by_label("First noise level").fill("2")
        run(page, "Strokes to picture")
        task(page, "Variations")
        page.get_by_role("spinbutton", name="How many pictures").fill("4")
        run(page, "Variations")
        assert page.locator(".edit-strip button").count() == 4
        page.get_by_role("button", name="Picture 3 of 4").click()
        page.locator(".edit-strip [aria-pressed=true][data-number='2']").wait_for()
        task(page, "Between two")
        page.get_by_role("radio", name="two seeds").check()
        page.get_by_role("spinbutton", name="How many pictures").fill("6")
        run(page, "Between two, seeds 1 to 2")
        assert page.locator(".edit-strip button").count() == 6
        shot(page, "edit-between")
        task(page, "Colourise")
        page.get_by_text("it knows no colours").wait_for()
        assert page.locator("#edit-run").is_disabled()
        task(page, "Remove noise")
        run(page, "Remove noise")
        assert history(page).count() == 5


def test_upload_and_wrong_input(browser, studio_url, page_for):
    with page_for(browser, studio_url, tab="Edit") as page:
        page.get_by_role("radio", name="An upload").check()
        page.locator("#edit-upload input[type=file]").wait_for(state="attached")
        page.locator("#edit-upload input[type=file]").set_input_files(
            {"name": "words.png", "mimeType": "image/png", "buffer": b"these are words"}
        )
        page.locator("#edit-upload", has_text="words").wait_for()
        page.get_by_role("button", name="Use this picture").click()
        page.get_by_text("words.png is no picture in PNG, JPEG or WebP").first.wait_for()
        picture = io.BytesIO()
        Image.radial_gradient("L").save(picture, "PNG")
        page.reload()
        page.get_by_role("tab", name="Edit").first.click()
        page.get_by_role("radio", name="An upload").check()
        page.locator("#edit-upload input[type=file]").set_input_files(
            {"name": "round.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        )
        page.locator("#edit-upload", has_text="round").wait_for()
        page.get_by_role("button", name="Use this picture").click()
        page.locator(".edit-result h3", has_text="upload round.png").wait_for()
        page.locator("#edit-run").click()
        page.get_by_text("nothing is marked: paint what is to be made").first.wait_for()
        assert history(page).count() == 1


@pytest.mark.parametrize("dark", [False, True])
def test_at_phone_width_by_touch(browser, studio_url, page_for, shot, axe, dark):
    with page_for(browser, studio_url, width=390, dark=dark, tab="Edit") as page:
        begin(page)
        page.get_by_text("Rectangle by numbers, and keys").click()
        page.get_by_role("button", name="Mark the rectangle").tap()
        assert marked(page) == 32
        area = page.locator(".edit-canvas canvas")
        area.scroll_into_view_if_needed()
        area.tap(position={"x": 5, "y": 5})
        assert marked(page) >= 33
        run(page, "Fill in")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert axe(page) == []
        shot(page, f"edit-phone{'-dark' if dark else ''}")
