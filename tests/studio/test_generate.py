"""The tab Generate: its images are those of the model, their records say how, and what is kept stays kept."""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

import atonce
from atonce.core.errors import InputError
from atonce.reports.pictures import facts_of
from atonce.serving.errors import ServiceError
from atonce.studio import generate_kept as kept
from atonce.studio import generate_work as work
from atonce.studio.generate_work import SEEDS, Wish


@pytest.fixture
def make(client: Any, someone: Any) -> Any:
    """Makes pieces in the studio's own loop."""
    return lambda wish, n=1: client.portal.call(functools.partial(work.make, client.app.state.studio, someone, wish, n))


def pixels(png: bytes) -> list[int]:
    return list(Image.open(io.BytesIO(png)).convert("L").tobytes())


def test_an_image_is_that_of_the_model_with_its_record(make: Any) -> None:
    (piece,) = make(Wish("digits", seed=7, steps=2))
    model = atonce.load("digits")
    expected = atonce.to_uint8(model.sample(1, steps=2, seed=7))
    assert piece.size == (8, 8)
    assert max(abs(a - b) for a, b in zip(pixels(piece.png), expected.flatten().tolist(), strict=True)) <= 1
    record = piece.record
    assert (record["model"], record["seed"], record["index"], record["label"], record["calls"]) == ("digits", 7, 0, None, 2)
    assert record["sigmas"] == list(work.resolved(model, 2))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["time"])
    assert record["guidance"] is None
    assert piece.title == "digits, seed 7, 2 network calls"


def test_the_file_carries_its_record(make: Any, tmp_path: Path) -> None:
    (piece,) = make(Wish("digits", seed=3))
    (tmp_path / "a.png").write_bytes(piece.png)
    assert facts_of(tmp_path / "a.png") == piece.record
    assert piece.address.startswith("data:image/png;base64,")


def test_a_wall_has_the_images_of_the_next_seeds_and_begins_again_after_the_last(make: Any) -> None:
    wall = make(Wish("digits", seed=SEEDS - 2), 4)
    assert [piece.record["seed"] for piece in wall] == [SEEDS - 2, SEEDS - 1, 0, 1]
    (alone,) = make(Wish("digits", seed=1))
    assert max(abs(a - b) for a, b in zip(pixels(wall[3].png), pixels(alone.png), strict=True)) <= 1


def test_levels_set_by_hand_are_used(make: Any) -> None:
    (piece,) = make(Wish("digits", sigmas=(40.0, 1.5, 0.4)))
    assert piece.record["sigmas"] == [40.0, 1.5, 0.4]
    assert piece.record["calls"] == 3


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("nothing"), "there is no model 'nothing'"),
        (Wish("digits", sigmas=(500.0,)), "sigmas is .500.*at most 80"),
        (Wish("digits", sigmas=(1.0, 2.0)), "must descend"),
        (Wish("digits", steps=0), "steps is 0"),
        (Wish("digits", steps=101), "the limit is 100"),
    ],
)
def test_what_cannot_be_is_named(make: Any, wish: Wish, said: str) -> None:
    with pytest.raises((ServiceError, InputError), match=said):
        make(wish)


def test_a_wall_beyond_the_limit_is_refused(studio_inside: Any, tmp_path: Path) -> None:
    from atonce.serving.access import principal_of
    from atonce.studio.context import Person

    with studio_inside(tmp_path, image_rate="10/hour", max_images=12) as client:
        studio = client.app.state.studio
        who = Person("b" * 32, principal_of(None, studio.service.settings, "127.0.0.1"), tmp_path / "b")
        with pytest.raises(ServiceError, match="one request may have 12"):
            client.portal.call(functools.partial(work.make, studio, who, Wish("digits"), 16))
        client.portal.call(functools.partial(work.make, studio, who, Wish("digits"), 9))
        with pytest.raises(Exception, match="try again in"):
            client.portal.call(functools.partial(work.make, studio, who, Wish("digits"), 9))


@pytest.mark.parametrize(
    ("seed", "steps", "said"), [(1.5, 1, "the seed is 1.5"), (None, 1, "the seed is None"), (0, 2.5, "steps is 2.5")]
)
def test_values_of_controls_that_are_none(seed: Any, steps: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        work.wish_of("digits", seed, None, steps, None, None)


def test_a_wish_is_fitted_to_another_model() -> None:
    digits, fashion = atonce.load("digits"), atonce.load("fashion-mnist")
    wish = Wish("fashion-mnist", seed=5, label="Bag", steps=30, guidance=2.0)
    assert work.fitted(wish, fashion) == Wish("fashion-mnist", seed=5, label="Bag", steps=8)
    assert work.fitted(wish, digits).label is None


def test_a_browser_remembers_a_wish() -> None:
    wish = Wish("digits", seed=12, steps=2, sigmas=(80.0, 0.5))
    assert work.from_memory(json.loads(json.dumps(work.memory_of(wish)))) == wish
    with pytest.raises((InputError, TypeError, ValueError)):
        work.from_memory({"model": "digits", "seed": "x", "steps": 1})


def test_a_record_leads_back_to_its_wish(make: Any) -> None:
    model = atonce.load("digits")
    for wish in (Wish("digits", seed=4, steps=2), Wish("digits", seed=4, steps=2, sigmas=(70.0, 2.0))):
        (piece,) = make(wish)
        again = work.wish_again(piece.record, model)
        assert (again.seed, again.steps, again.sigmas) == (4, 2, wish.sigmas)


def test_what_is_kept_can_be_listed_packed_and_dropped(make: Any, someone: Any) -> None:
    one, two = make(Wish("digits", seed=1), 2)
    assert kept.keep(someone.folder, one)
    assert kept.keep(someone.folder, two)
    assert not kept.keep(someone.folder, make(Wish("digits", seed=1))[0])  # the same image at another time
    found = kept.listed(someone.folder)
    assert [each.record["seed"] for each in found] == [1, 2]
    assert found[0].png == one.png
    with zipfile.ZipFile(io.BytesIO(kept.archive(someone.folder))) as pack:
        records = json.loads(pack.read("records.json"))
        assert set(pack.namelist()) == {"records.json", *(each.file for each in found)}
        assert pack.read(found[1].file) == two.png
    assert records[found[1].file] == two.record
    kept.drop(someone.folder, found[0].id)
    assert [each["title"] for each in json.loads(kept.strip(someone.folder))] == ["digits, seed 2, 1 network call"]


@pytest.mark.parametrize("name", ["../../secret", "", "0000000000000-000000000000"])
def test_only_kept_images_can_be_dropped(someone: Any, name: str) -> None:
    someone.folder.parent.mkdir(exist_ok=True)
    (someone.folder.parent / "secret.png").write_bytes(b"x")
    with pytest.raises(InputError, match="not kept any more"):
        kept.drop(someone.folder, name)
    assert (someone.folder.parent / "secret.png").exists()


def test_too_many_kept_images_are_refused(make: Any, someone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT", 1)
    one, two = make(Wish("digits"), 2)
    kept.keep(someone.folder, one)
    with pytest.raises(InputError, match="1 images are kept already, 1 may be"):
        kept.keep(someone.folder, two)
    with pytest.raises(InputError, match="nothing is kept yet"):
        kept.archive(someone.folder / "other")


def test_the_zip_is_for_its_person_only(client: Any) -> None:
    client.cookies.clear()
    assert client.get("/studio/kept.zip").status_code == 401
    client.get("/studio/")
    answer = client.get("/studio/kept.zip")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


# ---- in a browser

IMAGE = "#generate-picture img[src^=data]"


def src(page: Any) -> str:
    return str(page.get_attribute(IMAGE, "src"))


def changed(page: Any, before: str) -> str:
    page.wait_for_function("([q, b]) => document.querySelector(q).src !== b", arg=[IMAGE, before])
    return src(page)


def test_by_mouse(browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any, tmp_path: Path) -> None:
    with page_for(browser, studio_url) as page:
        page.wait_for_selector(IMAGE)
        first = src(page)
        # the image follows the slider
        box = page.locator("#generate-seed input[type=range]").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
        second = changed(page, first)
        # steps bring their noise levels, which can be moved
        page.locator("#generate-steps input[type=number]").fill("2")
        page.locator("#generate-steps input[type=number]").press("Enter")
        page.wait_for_selector("#generate-sigma-1")
        third = changed(page, second)
        level = page.locator("#generate-sigma-1").bounding_box()
        page.mouse.click(level["x"] + level["width"] * 0.8, level["y"] + level["height"] / 2)
        fourth = changed(page, third)
        assert "Set by hand" in page.inner_text(".generate-sigmas")
        page.get_by_role("button", name="Back to the model's own").click()
        changed(page, fourth)
        page.wait_for_selector("text=The model's own for this number of steps")
        # a wall, one of it becomes the image, and is kept
        page.get_by_role("button", name="Show variations").click()
        page.wait_for_selector("#generate-wall button:nth-child(16)")
        before = src(page)
        page.locator("#generate-wall button").nth(5).click()
        changed(page, before)
        page.get_by_role("button", name="Keep", exact=True).click()
        page.wait_for_selector("#generate-kept li[data-id]")
        assert axe(page) == []
        shot(page, "generate-1280-wall")
        # files
        with page.expect_download() as png:
            page.get_by_role("link", name="Download PNG").click()
        png.value.save_as(tmp_path / "image.png")
        facts = facts_of(tmp_path / "image.png")
        assert facts is not None
        assert facts["calls"] == 2
        with page.expect_download() as record:
            page.get_by_role("link", name="Download record").click()
        record.value.save_as(tmp_path / "record.json")
        assert json.loads((tmp_path / "record.json").read_text()) == facts
        with page.expect_download() as pack:
            page.get_by_role("link", name="Download all (zip)").click()
        pack.value.save_as(tmp_path / "kept.zip")
        with zipfile.ZipFile(tmp_path / "kept.zip") as found:
            assert len(found.namelist()) == 2
        # nothing is lost on reload
        page.reload()
        page.wait_for_selector("#generate-kept li[data-id]")
        assert page.input_value("#generate-steps input[type=number]") == "2"
        assert facts_src(page)["seed"] == facts["seed"]
        page.get_by_role("button", name=re.compile("^Remove")).click()
        page.wait_for_selector("#generate-kept li[data-id]", state="detached")


def facts_src(page: Any) -> dict[str, Any]:
    from urllib.parse import unquote

    page.wait_for_selector("#generate-picture a[data-file=json][href]")
    href = page.get_attribute("#generate-picture a[data-file=json]", "href")
    found: dict[str, Any] = json.loads(unquote(href.partition(",")[2]))
    return found


def test_by_keyboard_at_phone_width(browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any) -> None:
    with page_for(browser, studio_url, width=390, dark=True) as page:
        page.wait_for_selector(IMAGE)
        before = src(page)
        page.locator("#generate-seed input[type=range]").focus()
        page.keyboard.press("ArrowRight")
        changed(page, before)
        assert facts_src(page)["seed"] == 1
        page.get_by_role("button", name="Show variations").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate-wall button:nth-child(16)")
        before = src(page)
        page.locator("#generate-wall button").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        changed(page, before)
        assert facts_src(page)["seed"] == 2
        assert page.locator("#generate-wall [aria-current]").count() == 1
        page.get_by_role("button", name="Keep", exact=True).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate-kept li[data-id]")
        assert axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        shot(page, "generate-390-dark-wall")


def test_another_model_brings_its_labels(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url) as page:
        page.wait_for_selector(IMAGE)
        before = src(page)
        page.locator("#generate-model input").click()
        page.get_by_role("option", name="fashion-mnist").click()
        before = changed(page, before)
        page.locator("#generate-label input").click()
        page.get_by_role("option", name="Bag").click()
        changed(page, before)
        assert facts_src(page)["class"] == "Bag"
        assert "Bag" in page.get_attribute(IMAGE, "alt")


def test_wrong_levels_are_named_on_the_page(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url) as page:
        page.wait_for_selector(IMAGE)
        page.locator("#generate-sigmas [data-field='0']").fill("500")
        page.locator("#generate-sigmas [data-field='0']").press("Enter")
        said = page.locator("#generate-picture [role=alert]")
        page.wait_for_function("() => document.querySelector('#generate-picture [role=alert]').textContent !== ''")
        assert "sigmas is [500.0]" in said.inner_text()
        assert "at most 80" in said.inner_text()
        page.locator("#generate-sigmas [data-field='0']").fill("60")
        page.locator("#generate-sigmas [data-field='0']").press("Enter")
        page.wait_for_function("() => document.querySelector('#generate-picture [role=alert]').textContent === ''")
        assert facts_src(page)["sigmas"] == [60.0]
