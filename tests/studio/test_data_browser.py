"""The Data tab in a real browser: upload, check, choose, pack, take it along; a folder with its subfolders; a reload."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atonce.data.sources import open_data


def smooth(seed, form="PNG", **options):
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).resize((24, 24), Image.Resampling.BICUBIC).save(content, form, **options)
    return content.getvalue()


@pytest.fixture
def faulty(tmp_path) -> Path:
    folder = tmp_path / "animals"
    files = {f"train/{c}/{i}.png": smooth(20 * k + i) for k, c in enumerate(("cat", "dog")) for i in range(4)}
    files |= {"train/cat/copy.png": smooth(0), "train/dog/like.jpg": smooth(21, "JPEG", quality=80)}
    files |= {
        "train/dog/cut.png": smooth(3)[:120],
        "test/cat/leak.png": smooth(2),
        "notes.txt": b"x",
        ".hidden/x.png": smooth(1),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def archive(faulty, tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "animals.zip", "w") as found:
        for path in sorted(faulty.rglob("*.*")):
            found.write(path, path.relative_to(faulty).as_posix())
    return tmp_path / "animals.zip"


def upload(page, path):
    page.locator("#data-upload input[type=file]").set_input_files(path)
    page.get_by_text("Uploaded. Now check it.").wait_for()


def check(page):
    page.locator("#data-check").click()
    page.locator("#data-progress", has_text="took").wait_for()


def test_upload_check_choose_pack_and_download(browser, studio_url, page_for, shot, axe, archive, tmp_path):
    with page_for(browser, studio_url, tab="Data") as page:
        upload(page, archive)
        check(page)
        report = page.locator("#data-report")
        for words in (
            "1 of 11 pictures cannot be read",
            "1 picture repeats",
            "1 pair looks alike",
            "1 picture is among the 1 test",
        ):
            assert report.get_by_text(words).count() == 1, words
        for summary in report.locator("summary").all():
            if not summary.evaluate("e => e.parentElement.open"):
                summary.click()
        assert report.get_by_role("img", name="dog/like.jpg (dog)").is_visible()
        assert report.get_by_role("img", name="test data: cat/leak.png (cat)").is_visible()
        shot(page, "data-report")
        assert axe(page) == []
        page.get_by_role("checkbox", name="look-alikes of an earlier picture (1)").check()
        page.get_by_text("7 of 11 pictures would be packed").wait_for()
        page.get_by_label("Name of the packed file").fill("clean")
        page.locator("#data-pack").click()
        page.get_by_text("Choose clean.zip in the Train tab").wait_for()
        with page.expect_download() as got:
            page.get_by_role("link", name="Download clean.zip").click()
        got.value.save_as(tmp_path / "clean.zip")
        data = open_data(tmp_path / "clean.zip")
        assert (len(data), data.label_names) == (7, ("cat", "dog"))
        with page.expect_download() as got:
            page.get_by_role("link", name="Save this report (JSON)").click()
        assert json.loads(Path(got.value.path()).read_text())["found"]["count"] == 11
        page.locator("#data-forget").click()
        page.get_by_text("clean.zip was removed.").wait_for()
        page.locator("#data-remove").click()
        page.get_by_text("animals.zip was removed from this server.").wait_for()
        assert page.get_by_text("Nothing was checked yet").is_visible()


def test_a_folder_comes_with_its_subfolders(browser, studio_url, page_for, faulty):
    with page_for(browser, studio_url, tab="Data") as page:
        page.locator("#data-folder input[type=file]").set_input_files(faulty)
        page.get_by_text("Uploaded. Now check it.").wait_for()
        check(page)
        assert page.locator("#data-report h3", has_text="animals.zip: 10 pictures").is_visible()
        assert page.get_by_text("2 classes, 5 pictures each.").count() == 1


def test_the_main_path_by_keyboard_alone_and_the_report_after_a_reload(browser, studio_url, page_for):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    with page_for(browser, studio_url, context=context, tab="Data") as page:
        page.locator("#data-data input").focus()
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "data-check":
                break
        page.keyboard.press("Enter")
        page.locator("#data-report h3", has_text="digits: 1,437 pictures").wait_for()
        page.get_by_text("Nothing is wrong.").wait_for()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "data-pack":
                break
        page.keyboard.press("Enter")
        page.get_by_text("Choose digits-clean.zip in the Train tab").wait_for()
    with page_for(browser, studio_url, context=context, tab="Data") as page:
        page.locator("#data-report h3", has_text="digits: 1,437 pictures").wait_for()
        assert page.get_by_role("link", name="Download digits-clean.zip").is_visible()
    context.close()


def test_wrong_uploads_are_named(browser, studio_url, page_for, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as found:
        found.writestr("../evil.png", smooth(1))
    (tmp_path / "text.zip").write_bytes(b"no zip")
    with page_for(browser, studio_url, tab="Data") as page:
        for name, words in (("evil.zip", "a name that leads out of the archive"), ("text.zip", "truncated or damaged archive")):
            page.locator("#data-upload input[type=file]").set_input_files(tmp_path / name)
            page.get_by_text(words).first.wait_for()
            page.reload()
            page.get_by_role("tab", name="Data").first.click()
            assert page.locator("#data-report h3", has_text=name).count() == 0, "nothing of it was taken in"


@pytest.mark.parametrize("dark", [False, True])
def test_at_phone_width(browser, studio_url, page_for, shot, axe, archive, dark):
    with page_for(browser, studio_url, width=390, dark=dark, tab="Data") as page:
        upload(page, archive)
        check(page)
        page.locator("#data-report summary", has_text="Look-alikes").tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert axe(page) == []
        shot(page, f"data-phone{'-dark' if dark else ''}")
