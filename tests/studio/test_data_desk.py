"""The Data tab's work on real and made data: checks in the background, what is left out, packs that training reads."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.serving.access import Principal
from atonce.serving.settings import ServeSettings
from atonce.studio import data_packs, data_store, data_views
from atonce.studio.context import Person, Studio
from atonce.studio.data_desk import NO_TEST, Asked, Desk
from atonce.studio.train_sources import DISK, sources
from atonce.studio.works import StoppedError


def smooth(seed, side=24):
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def content(picture, form="PNG", **options):
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def somebody(folder: Path, name: str = "me") -> Person:
    return Person(name, Principal(f"ip:{name}", name, frozenset({"generate"})), folder / "private" / name)


def desk_on(folder: Path, host: str = "127.0.0.1") -> Desk:
    settings = ServeSettings(models=("digits",), host=host, state=folder / "state")
    service: Any = SimpleNamespace(settings=settings, keys=None, hosts=None)
    return Desk(Studio(service, folder / "runs", (), folder / "private"))


@pytest.fixture
def desk(tmp_path) -> Desk:
    return desk_on(tmp_path)


@pytest.fixture
def me(tmp_path) -> Person:
    return somebody(tmp_path)


@pytest.fixture
def key(tmp_path, desk, me) -> str:
    """A zip with two classes and every fault, uploaded."""
    path = tmp_path / "cache" / "x" / "animals.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(5):
            archive.writestr(f"train/cat/{i}.png", content(smooth(i)))
            archive.writestr(f"train/dog/{i}.png", content(smooth(10 + i)))
        archive.writestr("train/cat/copy.png", content(smooth(0)))
        archive.writestr("train/dog/like.jpg", content(smooth(11), "JPEG", quality=80))
        archive.writestr("train/dog/bad.png", b"broken")
        archive.writestr("test/cat/leak.png", content(smooth(2)))
    return desk.take(me, [str(path)])


def finished(desk: Desk, me: Person):
    until = time.monotonic() + 60
    while (work := desk.works.get(me.id)).running and time.monotonic() < until:
        time.sleep(0.02)
    assert not work.running
    return work


def checked(desk, me, **changes):
    desk.check(me, Asked(**changes))
    work = finished(desk, me)
    if work.error is not None:
        raise work.error
    return work.result


def test_a_check_finds_all_and_is_kept(desk, me, key):
    shown = checked(desk, me, data=key)
    found = shown.found
    assert (found.count, len(found.bad), found.repeats, len(found.near), len(found.leak.exact)) == (13, 1, 1, 1, 1)
    assert shown.label == found.source == "animals.zip"
    assert found.leak.source == "animals.zip, test"
    assert set(shown.pictures) >= {"cat/0.png", "cat/copy.png", "dog/1.png", "dog/like.jpg", ">cat/leak.png"}
    assert shown.pictures["cat/copy.png\n"] == "cat"
    again = desk.last(me)
    assert again == shown
    assert str(me.folder) not in json.dumps(found.as_dict())


def test_the_page_shows_pairs_bars_and_what_can_be_left_out(desk, me, key):
    shown = checked(desk, me, data=key)
    page = data_views.report_html(shown)
    for part in (
        "animals.zip: 12 pictures",
        "dog/bad.png",
        "test data: cat/leak.png (cat)",
        'alt="dog/like.jpg (dog)"',
        "sigma_data",
    ):
        assert part in page
    assert page.count("<img") == 6
    assert 'style="width:100.0%"' in page
    choices, first = data_views.reasons(shown)
    assert [value for _, value in choices] == ["corrupt", "exact", "near", "leak"]
    assert first == ["corrupt", "exact", "leak"]
    _, out = desk.leave_out(me, first, [])
    assert "10 of 13 pictures would be packed" in data_views.packing_html(shown, out)
    _, none = desk.leave_out(me, [], [])
    assert "1 picture of these cannot be read" in data_views.packing_html(shown, none)


def test_names_are_escaped():
    import torch

    from atonce.data.check import check_data
    from atonce.data.dataset import ImageData
    from atonce.studio.data_desk import Shown

    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    found = check_data(ImageData(images, torch.tensor([0, 1]), ("<script>", "b")))
    page = data_views.report_html(Shown(Asked("x"), "<img onerror=x>", found, {}))
    assert "<script>" not in page
    assert "<img onerror" not in page


def test_packing_leaves_out_what_is_chosen_and_training_finds_it(desk, me, key):
    before = data_store.upload_of(me.folder, key.partition(":")[2]).place.read_bytes()
    checked(desk, me, data=key)
    desk.pack(me, "clean", ".zip", ["corrupt", "exact", "leak"], ["cat/copy.png"], 16, None)
    pack = finished(desk, me).result
    assert pack.report["left_out"] == {"dog/bad.png": "corrupt", "cat/2.png": "leak"}
    data = open_data(pack.path)
    assert (len(data), data.shape, data.label_names) == (11, (3, 16, 16), ("cat", "dog"))
    assert ("clean.zip (yours)", "pack:clean.zip") in [(each.label, each.key) for each in sources(me.folder, False)]
    assert before == data_store.upload_of(me.folder, key.partition(":")[2]).place.read_bytes()
    assert not (me.folder / "making").exists() or not list((me.folder / "making").iterdir())
    assert str(me.folder) not in json.dumps(pack.report)
    assert checked(desk, me, data="pack:clean.zip").found.bad == ()
    page = data_views.packs_html(data_packs.packs(me.folder))
    assert 'href="packs/clean.zip"' in page


def test_packs_are_fetched_by_their_owner_only_and_removed(desk, me, tmp_path):
    checked(desk, me, data="digits")
    desk.pack(me, "d", ".npz", ["exact"], [], None, None)
    pack = finished(desk, me).result
    assert data_packs.file_of(me.folder, "/packs/d.npz") == pack.path
    assert json.loads(data_packs.file_of(me.folder, "/packs/d.npz.json").read_text())["count"] == 1437
    assert data_packs.file_of(me.folder, "/check.json").is_file()
    for address in ("/packs/../d.npz", "/packs/x.npz", "/packs/", "/check", "/data/check.json", "/packs/a/d.npz"):
        assert data_packs.file_of(me.folder, address) is None
    assert data_packs.file_of(somebody(tmp_path, "you").folder, "/packs/d.npz") is None
    data_packs.remove_pack(me.folder, "d.npz")
    assert data_packs.packs(me.folder) == []
    with pytest.raises(InputError, match="not there"):
        data_packs.remove_pack(me.folder, "d.npz")


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a" * 61, "ü", None])
def test_names_that_cannot_be_used_are_refused(desk, me, name):
    checked(desk, me, data="digits", against=NO_TEST)
    with pytest.raises(InputError, match="use 1 to 60 letters"):
        desk.pack(me, name, ".zip", [], [], None, None)
    assert not (me.folder / "packs").exists()


def test_a_taken_name_and_an_unreadable_picture_that_is_kept_are_refused(desk, me, key):
    with pytest.raises(InputError, match="no data were checked yet"):
        desk.pack(me, "d", ".zip", [], [], None, None)
    checked(desk, me, data=key, near=0.0)
    with pytest.raises(InputError, match="cannot be read, so it cannot be kept"):
        desk.pack(me, "d", ".zip", [], ["dog/bad.png"], None, None)
    desk.pack(me, "d", ".zip", [], [], None, None)
    assert "leave it out as corrupt" in str(finished(desk, me).error)
    assert data_packs.packs(me.folder) == []
    desk.pack(me, "d", ".zip", ["corrupt"], [], None, None)
    assert finished(desk, me).error is None
    with pytest.raises(InputError, match="d.zip is there already"):
        desk.pack(me, "d", ".zip", ["corrupt"], [], None, None)


def test_work_can_be_stopped(desk, me, data_root, monkeypatch):
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    work = desk.check(me, Asked(data="fashion-mnist"))
    until = time.monotonic() + 30
    while work.done == 0 and work.running and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(InputError, match="still under way"):
        desk.check(me, Asked(data="digits"))
    desk.works.stop(me.id)
    assert isinstance(finished(desk, me).error, StoppedError)
    assert desk.last(me) is None


def test_the_disk_is_for_the_owner(tmp_path, desk, me):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(content(smooth(i)))
    shown = checked(desk, me, data=DISK, place=str(folder))
    assert (shown.found.count, shown.label) == (3, "pictures")
    public = desk_on(tmp_path, "0.0.0.0")
    with pytest.raises(gr.Error, match="admin"):
        public.check(me, Asked(data=DISK, place=str(folder)))
    assert DISK not in [value for _, value in public.data(me)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nothing"}, "are not there"),
        ({"data": "upload:0123456789abcdef"}, "not there any more"),
        ({"data": "digits", "near": 2.0}, "limit of near-duplicates is 2"),
        ({"data": "digits", "size": 0}, "the side is 0, must be from 1 to 4096"),
        ({"data": DISK, "place": "/no/such/place"}, "does not exist"),
    ],
)
def test_wrong_input_is_named_before_any_work(desk, me, changes, message):
    with pytest.raises(InputError, match=message):
        desk.check(me, Asked(**changes))
    assert desk.works.get(me.id) is None


def test_removing_an_upload_removes_what_was_kept_of_it(desk, me, key):
    checked(desk, me, data=key)
    assert desk.remove(me, key) == "animals.zip"
    assert desk.last(me) is None
    assert not (me.folder / "data" / "pictures.json").exists()
    with pytest.raises(InputError, match="were not uploaded"):
        desk.remove(me, "digits")


def test_two_people_do_not_mix(desk, me, key, tmp_path):
    you = somebody(tmp_path, "you")
    checked(desk, me, data=key)
    checked(desk, you, data="digits")
    assert (desk.last(me).label, desk.last(you).label) == ("animals.zip", "digits")
    with pytest.raises(InputError):
        desk.check(you, Asked(data=key))
