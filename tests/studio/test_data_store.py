"""Uploads: taken in under limits, unsafe archives named, removed on request."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.studio import data_store
from atonce.studio.data_store import Limits, check_zip, leads_out, take, uploads

LIMITS = Limits(bytes=1 << 20, unpacked=4 << 20, files=50, pixels=10_000, all_pixels=100_000, kept=3 << 20)


def png(seed=0, side=8):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def sent(tmp_path: Path, name: str, content: bytes) -> Path:
    """A file as Gradio leaves it: in a folder of its own."""
    folder = tmp_path / "cache" / f"{len(list(tmp_path.rglob('*')))}"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder / name


def zipped(tmp_path: Path, files: dict[str, bytes], name="data.zip", **options) -> Path:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as archive:
        for inner, data in files.items():
            archive.writestr(inner, data)
    return sent(tmp_path, name, content.getvalue())


def test_a_zip_is_moved_in_and_can_be_opened_and_removed(tmp_path):
    me = tmp_path / "me"
    path = zipped(tmp_path, {f"{c}/{i}.png": png(10 * c + i) for c in (0, 1) for i in range(3)})
    found = take(me, [path], LIMITS)
    assert (found.name, found.files) == ("data.zip", 6)
    assert not path.exists()
    assert len(open_data(found.place)) == 6
    assert uploads(me) == [found]
    assert oct((me / "uploads" / found.id).stat().st_mode & 0o777) == "0o700"
    data_store.remove_upload(me, found.id)
    assert uploads(me) == []
    assert not list((me / "uploads").iterdir())
    with pytest.raises(InputError, match="not there any more"):
        data_store.remove_upload(me, found.id)


def test_pictures_of_one_name_from_several_folders_are_all_kept(tmp_path):
    files = [sent(tmp_path, "a.png", png(k)) for k in range(3)] + [sent(tmp_path, "b.jpg", png(9))]
    found = take(tmp_path / "me", files, LIMITS)
    assert sorted(path.name for path in found.place.iterdir()) == ["a-2.png", "a-3.png", "a.png", "b.jpg"]
    assert found.name == "4 pictures (a.png ...)"
    assert len(open_data(found.place)) == 4


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png", "\\evil.png"]
)
def test_names_that_lead_out_are_named_and_nothing_is_kept(tmp_path, name):
    path = zipped(tmp_path, {"a.png": png(), name: png()})
    with pytest.raises(InputError, match="a name that leads out of the archive"):
        take(tmp_path / "me", [path], LIMITS)
    assert not path.exists()
    assert not list((tmp_path / "me" / "uploads").iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_plain_names_do_not_lead_out():
    assert not any(leads_out(name) for name in ("a.png", "a/b.png", "a..b/c.png", "ünï/日本.png", "a b.png"))


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path):
    bomb = zipped(tmp_path, {"a.png": b"\0" * (5 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"unpacks to 5.0 MiB, at most 4.0 MiB may be \(a zip bomb"):
        take(tmp_path / "me", [bomb], LIMITS)


def test_picture_bombs_are_refused(tmp_path):
    content = io.BytesIO()
    Image.new("1", (1000, 1000)).save(content, "PNG")
    with pytest.raises(InputError, match="have over 100,000 pixels together"):
        take(tmp_path / "me", [zipped(tmp_path, {"big.png": content.getvalue()})], LIMITS)
    with pytest.raises(InputError, match="have over 100,000 pixels together"):
        take(tmp_path / "me", [sent(tmp_path, "big.png", content.getvalue())], LIMITS)


def test_what_is_damaged_or_locked_is_one_line(tmp_path):
    whole = zipped(tmp_path, {"a.png": png()})
    cut = sent(tmp_path, "cut.zip", whole.read_bytes()[:-30])
    with pytest.raises(InputError, match="cut.zip is a truncated or damaged archive"):
        take(tmp_path / "me", [cut], LIMITS)
    with pytest.raises(InputError, match="text.zip is a truncated or damaged archive"):
        take(tmp_path / "me", [sent(tmp_path, "text.zip", b"hello")], LIMITS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "nothing was uploaded"),
        ([("a.exe", b"MZ")], "a.exe is neither a zip, an npz nor a picture"),
        ([("a.zip", b"x"), ("b.png", b"x")], "a.zip comes with 1 other files"),
        ([(f"{k}.png", b"x") for k in range(51)], "51 files were uploaded, at most 50"),
        ([("a.png", b"x" * (1 << 20) + b"y")], "the upload has 1.0 MiB, at most 1.0 MiB"),
    ],
)
def test_the_wrong_kind_or_number_is_refused(tmp_path, files, message):
    paths = [sent(tmp_path, name, content) for name, content in files]
    with pytest.raises(InputError, match=message):
        take(tmp_path / "me", paths, LIMITS)


def test_all_uploads_together_have_a_limit(tmp_path):
    me = tmp_path / "me"
    (me / "packs").mkdir(parents=True)
    (me / "packs" / "a.zip").write_bytes(b"x" * (3 << 20))
    with pytest.raises(InputError, match="you have 3.0 MiB here"):
        take(me, [zipped(tmp_path, {"a.png": png()})], LIMITS)


def test_too_many_members_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 51 files, at most 50"):
        check_zip(zipped(tmp_path, {f"{k}.txt": b"" for k in range(51)}), LIMITS)


def test_taking_in_can_be_stopped_and_leaves_nothing(tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "me", [zipped(tmp_path, {"a.png": png()})], LIMITS, stop)
    assert not list((tmp_path / "me" / "uploads").iterdir())


def test_people_do_not_see_each_other(tmp_path):
    found = take(tmp_path / "me", [zipped(tmp_path, {"a.png": png()})], LIMITS)
    assert uploads(tmp_path / "you") == []
    with pytest.raises(InputError):
        data_store.upload_of(tmp_path / "you", found.id)
