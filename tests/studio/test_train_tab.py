"""The Train tab in a real browser: a run by mouse and by keyboard alone, wrong input, runs side by side, after a reload."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atonce.core.files import write_json
from atonce.training.presets import PRESETS

TITLE = "Train"
PATIENCE = 240_000  # milliseconds; a start of a process takes seconds, and a minute beside much other work


def write_run(runs: Path, name: str, **changes: Any) -> None:
    """A finished run, as the loop leaves it."""
    recipe = PRESETS["digits"](images=640, batch=64, **changes)
    (runs / name / "model").mkdir(parents=True)
    write_json(runs / name / "recipe.json", recipe.as_dict())
    facts = {"name": "digits", "count": 1437, "shape": [1, 8, 8], "digest": "d"}
    write_json(runs / name / "run.json", {"data": facts, "versions": {}, "started": "2026-01-01T00:00:00+00:00"})
    lines = [{"images": 64 * k, "loss": 5.0 / k, "seconds": float(k), "rate": 64.0} for k in range(1, 11)]
    lines += [{"images": 640, "frechet-pixels-1": 0.5, "best": True, "seconds": 11.0, "rate": 64.0}]
    (runs / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def place(serve_studio, browser, tmp_path_factory, repository) -> Iterator[tuple[str, Path]]:
    """A studio with two finished runs, and its folder."""
    folder = tmp_path_factory.mktemp("train")
    write_run(folder / "runs", "first")
    write_run(folder / "runs", "deep/second", lr=5e-4)
    with serve_studio(folder, "--no-browser", root=repository) as (url, _):
        yield url, folder


def ready(page: Any) -> None:
    """The page has been filled: the lists are there."""
    page.wait_for_function("() => document.querySelector('#train-run input')?.value", timeout=60_000)


def fill(page: Any, field: str, value: str) -> None:
    box = page.locator(f"#train-{field} input, #train-{field} textarea").first
    box.fill(value)
    box.press("Tab")


def told(page: Any) -> str:
    """The error that is shown."""
    page.wait_for_selector(".toast-body", timeout=60_000)
    return str(page.locator(".toast-body").last.inner_text())


@pytest.mark.slow  # a browser and a server
@pytest.mark.timeout(900)
def test_runs_are_listed_watched_and_compared_by_mouse(place, browser, page_for, shot):
    url, _ = place
    with page_for(browser, url, tab=TITLE) as page:
        ready(page)
        page.wait_for_selector("#train-shown svg.ev-chart")
        assert page.locator("#train-shown .ev-status strong").inner_text() in ("first: finished", "deep/second: finished")
        page.locator("#train-run input").click()
        page.get_by_role("option", name="deep/second").click()
        page.wait_for_selector("text=deep/second: finished")
        page.locator("#train-compare button").first.click()
        for name in ("first", "deep/second"):
            page.locator("#train-several").get_by_label(name, exact=True).check()
        page.locator("#train-compared table.ev-table").last.wait_for()
        assert page.locator("#train-compared svg.ev-chart").count() == 2
        assert "0.0005" in page.locator("#train-compared table.ev-table").last.inner_text()
        page.locator("#train-all button").first.click()
        assert page.locator("#train-list tbody tr").count() == 2
        shot(page, "train-compare")
        page.reload()
        page.get_by_role("tab", name=TITLE, exact=True).first.click()
        page.wait_for_selector("text=deep/second: finished")  # the same run is watched


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wrong_input_is_named_and_starts_nothing(place, browser, page_for):
    url, folder = place
    with page_for(browser, url, tab=TITLE) as page:
        ready(page)
        for field, value, said in (
            ("name", "../up", "'../up'"),
            ("images", "-3", "images is -3"),
            ("lr", "50", "learning rate is 50"),
            ("name", "first", "is not overwritten"),
        ):
            fill(page, field, value)
            page.locator("#train-start").click()
            page.wait_for_function(
                "t => [...document.querySelectorAll('.toast-body')].some(e => e.innerText.includes(t))", arg=said
            )
            fill(page, field, {"name": "good", "images": "640", "lr": "0"}[field])
    assert not (folder / "runs" / ".studio").exists() or not list((folder / "runs" / ".studio").glob("*.json"))
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.name[0] != ".") == ["deep", "first"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_is_shown_and_what_was_typed_survives_a_reload(place, browser, page_for):
    url, _ = place
    with page_for(browser, url, tab=TITLE) as page:
        ready(page)
        fill(page, "name", "typed")
        fill(page, "images", "1280")
        fill(page, "batch", "32")
        page.locator("#train-recipe").click()
        page.wait_for_selector("#train-before pre", timeout=60_000)
        recipe = json.loads(page.locator("#train-before pre").first.inner_text())
        assert (recipe["images"], recipe["batch"], recipe["method"]) == (1280, 32, "ict")
        assert re.fullmatch(r"[0-9a-f]{64}", recipe["digest"])
        assert "atonce train digits --data digits" in page.locator("#train-before pre").last.inner_text()
        page.wait_for_timeout(500)
        page.reload()
        page.get_by_role("tab", name=TITLE, exact=True).first.click()
        ready(page)
        assert page.locator("#train-name input, #train-name textarea").first.input_value() == "typed"
        assert page.locator("#train-images input").input_value() == "1280"
        assert page.locator("#train-batch input").input_value() == "32"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_by_keyboard_alone_is_watched_stopped_and_continued(place, browser, page_for, shot):
    url, folder = place
    with page_for(browser, url, tab=TITLE) as page:
        ready(page)
        page.locator("#train-name input, #train-name textarea").first.focus()

        def type_over(text: str) -> None:
            page.keyboard.press("Control+A")
            page.keyboard.type(text)

        def to(target: str) -> None:
            """Tab on until the focus is there."""
            for _ in range(60):
                if page.evaluate("s => !!document.activeElement.closest(s)", target):
                    return
                page.keyboard.press("Tab")
                page.wait_for_timeout(50)  # as fast as hands are
            raise AssertionError(f"{target} cannot be reached by the keyboard")

        type_over("keys")
        to("#train-images")
        type_over("60000")
        to("#train-batch")
        type_over("16")
        to("#train-start")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=/^keys: (starting|running)/", timeout=60_000)
        page.wait_for_selector("#train-shown svg.ev-chart", timeout=PATIENCE)  # its first log line
        assert page.locator("#train-shown [role=progressbar]").get_attribute("aria-valuenow") is not None
        shot(page, "train-running")
        page.locator("#train-start").focus()
        to("#train-stop")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=/^keys: stopped; it can be continued/", timeout=PATIENCE)
        assert list((folder / "runs" / "keys" / "checkpoints").iterdir())
        before = len((folder / "runs" / "keys" / "log.jsonl").read_text().splitlines())
        page.reload()  # what runs and what ran is read from its folder
        page.get_by_role("tab", name=TITLE, exact=True).first.click()
        page.wait_for_selector("text=/^keys: stopped/", timeout=60_000)
        page.locator("#train-continue button, button#train-continue").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("text=/^keys: (starting|running)/", timeout=60_000)
        end = time.monotonic() + PATIENCE / 1000
        while len((folder / "runs" / "keys" / "log.jsonl").read_text().splitlines()) <= before:
            assert time.monotonic() < end
            time.sleep(0.3)
        page.locator("#train-stop").click()
        page.wait_for_selector("text=/^keys: stopped/", timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_is_cut_off_and_axe_finds_nothing(place, browser, page_for, axe, shot, width: int, dark: bool):
    url, _ = place
    with page_for(browser, url, width=width, dark=dark, tab=TITLE) as page:
        ready(page)
        page.wait_for_selector("#train-shown svg.ev-chart")
        page.locator("#train-all button").first.click()
        page.locator("#train-compare button").first.click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(page) == []
        shot(page, f"train-{width}-{'dark' if dark else 'light'}")
