"""The Edit tab's work with the digits model, through the service's engine: every edit, every way to begin, what is refused."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

import atonce
from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.data.sources import open_data
from atonce.serving.errors import ServiceError
from atonce.studio import edit_views as views
from atonce.studio.edit_desk import Desk, record_of
from atonce.studio.edit_wish import Wish
from atonce.studio.works import StoppedError


@pytest.fixture
def desk(client) -> Desk:
    return Desk(client.app.state.studio)


@pytest.fixture
def run(client, desk, someone):
    """Edits the picture that is shown, and waits for the end."""

    async def whole(wish, mask=None, drawing=None, other=None):
        work = await desk.begin(someone, wish, mask, drawing, other)
        while work.running:
            await asyncio.sleep(0.01)
        return work

    def edit(task, mask=None, drawing=None, other=None, **wish):
        work = client.portal.call(functools.partial(whole, Wish("digits", task, **wish), mask, drawing, other))
        if work.error is not None:
            raise work.error
        return work.result[0]

    return edit


def png(array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(content, "PNG")
    return content.getvalue()


def address(array) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(array)).decode()}"


def values(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


RIGHT = np.zeros((8, 8), np.uint8)
RIGHT[:, 4:] = 255


@pytest.fixture
def sample(desk, someone):
    return desk.from_sample(someone, "digits", 0)


def test_filling_in_is_the_librarys_and_keeps_every_other_pixel(run, desk, someone, sample):
    step = run("inpaint", address(RIGHT), seed=5, steps=3)
    album = desk.album(someone)
    before, after = values(album.picture(sample)), values(album.picture(step))
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.array_equal(before[:, 4:], after[:, 4:])
    x = from_uint8(open_data("digits", split="test").images[0])
    expected = atonce.to_uint8(atonce.edit.inpaint(atonce.load("digits"), x, torch.from_numpy(RIGHT > 0), seed=5, steps=3))
    assert np.abs(after.astype(int) - expected[0].numpy().astype(int)).max() <= 1
    assert (step.record["seed"], step.record["calls"], step.record["kind"]) == (5, 3, "inpaint")
    assert step.record["origin"]["step"] == sample.id
    assert album.chain().shown == step


@pytest.mark.parametrize(
    ("task", "wish", "count", "size"),
    [
        ("local", {"steps": 2}, 1, (8, 8)),
        ("outpaint", {"steps": 2, "size": (0, 12)}, 1, (12, 8)),
        ("upscale", {"steps": 2, "factor": 4}, 1, (8, 8)),
        ("denoise", {"sigma": 0.3}, 1, (8, 8)),
        ("denoise", {}, 1, (8, 8)),
        ("variations", {"n": 3}, 3, (8, 8)),
        ("interpolate", {"n": 5, "seeds": (1, 2)}, 5, (8, 8)),
    ],
)
def test_every_edit_gives_pictures_with_records(run, desk, someone, sample, task, wish, count, size):
    step = run(task, address(RIGHT) if task == "local" else None, **wish)
    assert (step.count, step.size, step.parent) == (count, size, sample.id)
    album = desk.album(someone)
    assert values(album.picture(step)).shape == (size[1], size[0])
    facts = json.loads(views.result(album, album.chain()))
    assert facts["before"].startswith("data:image/png;base64,")
    assert len(facts["pictures"]) == (count if count > 1 else 0)
    assert step.chosen == (2 if task == "interpolate" else 0)
    if task == "denoise" and not wish:
        assert ("Noise found" in dict(facts["facts"])) is True


def test_strokes_need_no_picture(run, desk, someone):
    drawing = np.zeros((8, 8), np.uint8)
    drawing[1:7, 3:5] = 255
    step = run("stroke", None, address(drawing), sigma=2.0)
    assert step.parent is None
    with pytest.raises(InputError, match="nothing is painted"):
        run("stroke")


def test_between_two_pictures_of_the_history(run, desk, someone, sample):
    other = desk.from_sample(someone, "digits", 1)
    step = run("interpolate", other=sample.id, n=4, iterations=5)
    assert step.count == 4
    assert len(step.record["origin"]["sha256"]) == 2
    facts = dict(json.loads(views.result(desk.album(someone), desk.album(someone).chain()))["facts"])
    assert "of a range of 2" in facts["The ends miss the pictures by"]
    with pytest.raises(InputError, match="the other picture is missing"):
        run("interpolate", n=4)
    with pytest.raises(InputError, match="both ends are the same"):
        run("interpolate", other=desk.album(someone).chain().current, n=4)
    assert other.id in [step.id for step in desk.album(someone).chain().steps]


def test_a_generated_picture_is_that_of_its_seed(client, desk, someone):
    step = client.portal.call(functools.partial(desk.from_seed, someone, "digits", 7, None, 1))
    expected = atonce.to_uint8(atonce.load("digits").sample(1, seed=7))[0, 0].numpy()
    assert np.abs(values(desk.album(someone).picture(step)).astype(int) - expected).max() <= 1


def test_uploads_are_checked_as_the_api_checks_them(desk, someone, tmp_path):
    def sent(name, content):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    small = np.arange(16).reshape(4, 4) * 16
    assert desk.from_upload(someone, sent("small.png", png(small)), "digits", "none").size == (4, 4)
    wide = np.tile(np.arange(40, dtype=np.uint8) * 6, (20, 1))
    step = desk.from_upload(someone, sent("wide.png", png(wide)), "digits", "crop")
    assert step.size == (8, 8)
    assert (step.record["width"], step.record["height"], step.record["fit"]) == (40, 20, "crop")
    assert not (tmp_path / "wide.png").exists()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    content = io.BytesIO()
    Image.fromarray(np.tile(np.arange(6, dtype=np.uint8) * 40, (3, 1))).save(content, "JPEG", exif=exif)
    assert desk.from_upload(someone, sent("turned.jpg", content.getvalue()), "digits", "none").size == (3, 6)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    for name, data, message in (
        ("a.txt", b"no picture", "is no picture in PNG, JPEG or WebP"),
        ("cut.png", png(wide)[:60], "cut.png"),
        ("bomb.png", bomb.getvalue(), "pixels"),
        ("wide.png", png(wide), "8x8 is needed"),
    ):
        with pytest.raises((ServiceError, InputError), match=message) as found:
            desk.from_upload(someone, sent(name, data), "digits", "none")
        assert "\n" not in str(found.value)
        assert not (tmp_path / name).exists()
    with pytest.raises(InputError, match="nothing was uploaded"):
        desk.from_upload(someone, None, "digits", "crop")


def test_samples_out_of_range_are_named(desk, someone):
    assert ("digits", "digits") in desk.samples()
    with pytest.raises(InputError, match="the number is 360, must be from 0 to 359"):
        desk.from_sample(someone, "digits", 360)
    with pytest.raises(InputError, match="there are no data"):
        desk.from_sample(someone, "/etc", 0)


def test_wrong_input_loses_nothing_and_is_one_line(run, desk, someone, sample):
    before = desk.album(someone).chain()
    for task, options, message in (
        ("inpaint", {}, "nothing is marked"),
        ("inpaint", {"mask": address(np.zeros((8, 8)))}, "no white pixel"),
        ("inpaint", {"mask": address(np.full((9, 9), 255))}, "must have one size"),
        ("inpaint", {"mask": "data:text/html,x"}, "without base64"),
        ("inpaint", {"mask": address(RIGHT), "steps": 10_000}, "steps"),
        ("colorize", {}, "knows no colours"),
        ("upscale", {"factor": 3}, "factor"),
        ("outpaint", {"size": (4, 4)}, "8"),
        ("variations", {"n": 1000}, "1,000 images"),
        ("denoise", {"sigma": 1e9}, "sigma"),
    ):
        with pytest.raises((ServiceError, InputError), match=message) as found:
            run(task, **options)
        assert "\n" not in str(found.value)
    assert desk.album(someone).chain() == before


def test_a_picture_of_another_size_is_cropped_padded_or_refused(run, desk, someone, tmp_path):
    (tmp_path / "p.png").write_bytes(png(np.arange(16).reshape(4, 4) * 16))
    desk.from_upload(someone, str(tmp_path / "p.png"), "digits", "none")
    assert run("variations", n=1, fit="crop").size == (8, 8)
    desk.album(someone).undo()
    with pytest.raises(ServiceError, match="is 4x4, and 8x8 is needed"):
        run("variations", n=1, fit="none")


def test_stopping_and_a_second_edit_meanwhile(client, desk, someone, sample):
    other = desk.from_sample(someone, "digits", 1)

    async def work():
        begun = await desk.begin(someone, Wish("digits", "interpolate", n=4, iterations=1000), None, None, sample.id)
        await asyncio.sleep(0.2)
        with pytest.raises(InputError, match="still under way"):
            await desk.begin(someone, Wish("digits", "variations"), None, None, None)
        assert desk.stop(someone)
        until = time.monotonic() + 30
        while begun.running and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return begun

    found = client.portal.call(work)
    assert isinstance(found.error, StoppedError)
    assert desk.album(someone).chain().current == other.id
    assert not desk.stop(someone)


def test_going_elsewhere_meanwhile_keeps_both(client, desk, someone, sample):
    async def work():
        begun = await desk.begin(someone, Wish("digits", "interpolate", n=2, iterations=30), None, None, first.id)
        desk.album(someone).go(first.id)
        while begun.running:
            await asyncio.sleep(0.02)
        return begun

    first = sample
    desk.from_sample(someone, "digits", 1)
    step, shown = client.portal.call(work).result
    assert not shown
    chain = desk.album(someone).chain()
    assert chain.current == first.id
    assert step in chain.steps


def test_the_record_says_the_whole_way_and_makes_it_again(run, desk, someone, sample):
    run("inpaint", address(RIGHT), seed=5, steps=2)
    step = run("variations", n=2, seed=9)
    record = json.loads(record_of(desk.album(someone).chain()))
    assert [each["record"]["kind"] for each in record["steps"]] == ["sample", "inpaint", "variations"]
    said = record["steps"][2]["record"]
    assert (said["seed"], said["request"]["n"], said["version"]) == (9, 2, step.record["version"])
    desk.album(someone).undo()
    again = run("variations", n=2, seed=9)
    album = desk.album(someone)
    assert [album.picture(again, i) for i in range(2)] == [album.picture(step, i) for i in range(2)]


def test_what_the_page_is_told(run, desk, someone, sample, client):
    album, model = desk.album(someone), atonce.load("digits")
    chain = album.chain()
    assert json.loads(views.canvas(album, chain, "variations", model)) == {"mode": "none"}
    mask = json.loads(views.canvas(album, chain, "inpaint", model))
    assert (mask["mode"], mask["width"], mask["height"]) == ("mask", 8, 8)
    assert json.loads(views.canvas(album, chain, "stroke", model))["mode"] == "paint"
    assert views.painted('{"mask": "", "drawing": null}') == (None, None)
    assert views.painted(json.dumps({"mode": "mask", "mask": "data:x"})) == ("data:x", None)
    for wrong in ("{", "[]", '{"mask": 3}'):
        with pytest.raises(InputError, match="paint it again"):
            views.painted(wrong)
    step = run("variations", n=1)
    told = json.loads(views.history(album, album.chain()))
    assert [(each["number"], each["from"], each["current"]) for each in told] == [(1, None, False), (2, 1, True)]
    assert views.others(album.chain()) == [(f"1: {sample.title}", sample.id)]
    assert step.title in views.result(album, album.chain())
