"""Folders and zips of pictures: order, labels, splits, and everything that can be wrong with them."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from atonce.core.errors import DataError
from atonce.data import folder, limits
from atonce.data.sources import open_data

DAMAGED = b"\x89PNG\r\n\x1a\nhardly"


def png(value, size=(4, 4), mode="L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return file.getvalue()


def fill(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def zipped(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """A source of the given files, as a folder or as a zip."""

    def build(files):
        return fill(tmp_path / "set", files) if request.param == "folder" else zipped(tmp_path / "set.zip", files)

    return build


def values(data):
    return data.images[:, 0, 0, 0].tolist()


def test_flat_pictures_in_sorted_order(make):
    data = open_data(make({"b.png": png(2), "a.PNG": png(1), "c/d.png": png(3), "notes.txt": b"x", ".hidden.png": b"x"}))
    assert values(data) == [1, 2, 3]
    assert data.labels is None
    assert data.shape == (1, 4, 4)
    assert data.name == "set"
    assert "3 pictures" in data.source


def test_first_level_subfolders_are_classes(make):
    data = open_data(make({"dog/1.png": png(1), "cat/9.png": png(2), "cat/deep/0.png": png(3)}))
    assert data.label_names == ("cat", "dog")
    assert list(zip(values(data), data.labels.tolist(), strict=True)) == [(2, 0), (3, 0), (1, 1)]
    assert open_data(make({"dog/1.png": png(1), "cat/9.png": png(2)}), labels=False).labels is None


def test_suffix_and_content_may_differ(make):
    file = io.BytesIO()
    Image.new("L", (4, 4), 7).save(file, "BMP")
    assert values(open_data(make({"a.jpg": file.getvalue()}))) == [7]


def test_a_folder_around_everything_in_a_zip_is_no_class(tmp_path):
    files = {"set/cat/1.png": png(1), "set/dog/1.png": png(2), "__MACOSX/set/._1.png": b"x"}
    assert open_data(zipped(tmp_path / "a.zip", files)).label_names == ("cat", "dog")
    assert open_data(zipped(tmp_path / "b.zip", {"cat/1.png": png(1)})).label_names == ("cat",)


def test_edm_labels_are_respected(make):
    files = {f"00000/img{k:08d}.png": png(k) for k in range(3)}
    labels = [[name, 6 - k] for k, name in enumerate(files)]
    data = open_data(make(files | {"dataset.json": json.dumps({"labels": labels[::-1]}).encode()}))
    assert data.labels.tolist() == [6, 5, 4]
    assert data.num_classes == 7


@pytest.mark.parametrize("labels", [None, [["00000/a.png", None]], [["00000\\a.png", None]]])
def test_edm_null_labels(make, labels):
    data = open_data(make({"00000/a.png": png(1), "dataset.json": json.dumps({"labels": labels}).encode()}))
    assert data.labels is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "not of the form"),
        (b'{"other": 1}', "not of the form"),
        (b'{"labels": 3}', "not of the form"),
        (b'{"labels": [["b.png", 0]]}', "no entry for a.png"),
        (b'{"labels": [["a.png", 0.5]]}', "label of a.png is 0.5"),
        (b'{"labels": [["a.png", -1]]}', "label of a.png is -1"),
        (b'{"labels": [["a.png", [1, 0]]]}', "whole numbers"),
    ],
    ids=range(7),
)
def test_wrong_edm_labels_are_named(make, content, text):
    with pytest.raises(DataError, match=text):
        open_data(make({"a.png": png(1), "dataset.json": content}))


def test_split_folders(tmp_path):
    files = {"train/cat/1.png": png(1), "train/dog/1.png": png(2), "val/cat/1.png": png(3), "val/ant/1.png": png(4)}
    root = fill(tmp_path / "set", files)
    assert values(open_data(root)) == [1, 2]
    assert values(open_data(root, split="test")) == [4, 3]
    everything = open_data(root, split="all")
    assert everything.label_names == ("ant", "cat", "dog")
    assert sorted(zip(values(everything), everything.labels.tolist(), strict=True)) == [(1, 1), (2, 2), (3, 1), (4, 0)]


def test_a_class_may_be_called_train(tmp_path):
    root = fill(tmp_path / "set", {"train/1.png": png(1), "ship/1.png": png(2)})
    assert open_data(root).label_names == ("ship", "train")


def test_there_is_no_invented_test_split(make, tmp_path):
    with pytest.raises(DataError, match="test split"):
        open_data(make({"a.png": png(1)}), split="test")
    root = fill(tmp_path / "other", {"train/1.png": png(1)})
    with pytest.raises(DataError, match="no folder for the split 'test'"):
        open_data(root, split="test")


def test_grey_and_rgb_together_become_rgb(make):
    data = open_data(make({"a.png": png(9), "b.png": png((1, 2, 3), mode="RGB"), "c.png": png(4)}))
    assert data.images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3], [4, 4, 4]]
    grey = open_data(make({"a.png": png(9), "b.png": png((5, 5, 5), mode="RGB"), "c.png": png(4)}), channels=1)
    assert grey.shape == (1, 4, 4)
    assert values(grey) == [9, 5, 4]


def test_mixed_sizes_need_a_size(make):
    source = make({"a.png": png(1), "b.png": png(2, (6, 5))})
    with pytest.raises(DataError, match=r"a.png is 4x4, b.png is 6x5.*--size"):
        open_data(source)
    data = open_data(source, size=3)
    assert data.shape == (1, 3, 3)
    assert values(data) == [1, 2]
    with pytest.raises(DataError, match="b.png.* is 6x5, not square"):
        open_data(source, size=3, crop="none")


@pytest.mark.parametrize("damaged", [DAMAGED, b"", png(5)[:-20]], ids=["garbage", "empty", "truncated"])
def test_a_bad_picture_is_named_or_left_out(make, damaged):
    source = make({"a.png": png(1), "cat/bad.png": damaged, "z.png": png(3)})
    with pytest.raises(DataError, match=r"cat/bad\.png .*skip_bad") as found:
        open_data(source)
    assert "\n" not in str(found.value)
    with pytest.warns(UserWarning, match=r"1 of 3 pictures left out: cat/bad\.png"):
        data = open_data(source, skip_bad=True)
    assert values(data) == [1, 3]
    assert "2 pictures, 1 unreadable ones left out" in data.source


def test_labels_stay_with_their_pictures_when_one_is_left_out(make):
    source = make({"a/1.png": DAMAGED, "b/1.png": png(2), "b/2.png": DAMAGED, "c/1.png": png(3)})
    with pytest.warns(UserWarning, match="2 of 4"):
        data = open_data(source, skip_bad=True)
    assert list(zip(values(data), data.labels.tolist(), strict=True)) == [(2, 1), (3, 2)]


def test_only_bad_pictures(make):
    with pytest.raises(DataError, match="none of the 1 pictures .*can be read: a.png"):
        open_data(make({"a.png": DAMAGED}), skip_bad=True)


def test_nothing_to_read(make, tmp_path):
    with pytest.raises(DataError, match="holds no pictures .png, jpg"):
        open_data(make({"notes.txt": b"x"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no pictures"):
        open_data(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no pictures"):
        open_data(zipped(tmp_path / "empty.zip", {}))


def test_damaged_zips_are_named(tmp_path):
    whole = zipped(tmp_path / "whole.zip", {"a.png": png(1), "b.png": png(2)}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with pytest.raises(DataError, match="cut.zip is a truncated or damaged zip"):
        open_data(tmp_path / "cut.zip")
    (tmp_path / "bent.zip").write_bytes(whole.replace(b"IDAT", b"IDAX", 1))
    with pytest.raises(DataError, match=r"bent.zip: a.png cannot be unpacked: Bad CRC"):
        open_data(tmp_path / "bent.zip")
    with pytest.warns(UserWarning, match="a.png cannot be unpacked"):
        assert values(open_data(tmp_path / "bent.zip", skip_bad=True)) == [2]


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 1000)
    source = zipped(tmp_path / "bomb.zip", {"a.png": bytes(100_000)}, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="a.png unpacks to 100000 bytes"):
        open_data(source)


def test_absurd_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DataError, match="absurdly large for one picture"):
        open_data(fill(tmp_path / "set", {"a.png": bytes(1001)}))


def test_more_than_the_memory_is_refused_before_it_is_read(make, monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 39)
    with pytest.raises(DataError, match="2 pictures like a.png would need .* GiB of memory: give a smaller --size"):
        open_data(make({"a.png": png(1), "b.png": png(2)}))


def test_links_in_circles_and_to_classes(tmp_path):
    root = fill(tmp_path / "set", {"cat/1.png": png(1)})
    fill(tmp_path / "elsewhere", {"1.png": png(2)})
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    data = open_data(root)
    assert list(zip(values(data), data.labels.tolist(), strict=True)) == [(1, 0), (2, 1)]


def test_many_pictures_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_AHEAD", 16)
    root = fill(tmp_path / "set", {f"{k:03d}.png": png(k) for k in range(50)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(values(open_data(root)), np.arange(50))
