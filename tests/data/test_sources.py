"""Opening by name, path or object; sheets, npz and digits; and the unknown."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import DataError
from atonce.data import limits
from atonce.data.bundled import NAMES
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data


def test_digits():
    everything = open_data("digits", split="all")
    assert (len(everything), everything.shape, everything.name) == (1797, (1, 8, 8), "digits")
    assert everything.labels[:10].tolist() == list(range(10))
    # the first row of the first digit is 0 0 5 13 9 1 0 0 of 16
    assert everything.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert everything.statistics() == pytest.approx((-0.389, 0.752), abs=1e-3)
    train, test = open_data("digits"), open_data("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    rows = {image.numpy().tobytes() for image in everything.images}
    assert len(rows) == 1797  # no repeats, so the splits can be told apart by their pixels
    found = [{image.numpy().tobytes() for image in part.images} for part in (train, test)]
    assert found[0] | found[1] == rows
    assert not found[0] & found[1]
    assert min(train.labels.bincount()) > 100
    assert open_data("digits").digest() == train.digest()


def test_images_in_memory():
    data = ImageData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2))
    assert open_data(data) is data
    assert open_data(data, size=8).shape == (1, 8, 8)
    assert open_data(data, labels=False).labels is None


def test_digits_can_be_resized():
    assert open_data("digits", size=16, channels=3).shape == (3, 16, 16)


def test_unknown_names_list_the_known_and_say_that_paths_are_accepted():
    with pytest.raises(DataError, match="'cifar100' is neither a known data set .*path") as found:
        open_data("cifar100")
    assert all(name in str(found.value) for name in NAMES)
    assert "\n" not in str(found.value)
    with pytest.raises(DataError, match="'digits' is neither"):
        open_data(Path("digits"))  # a path is a path


def test_unknown_splits_are_named():
    with pytest.raises(DataError, match="train, test, all, not 'dev'"):
        open_data("digits", split="dev")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_absent_local_data_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ATONCE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{name} is not in .*put .* into"):
        open_data(name)
    monkeypatch.delenv("ATONCE_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="set the environment variable ATONCE_DATA"):
        open_data(name)


def test_local_data_beside_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("ATONCE_DATA", raising=False)
    folder = tmp_path / "shared" / "data" / "emoji64"
    folder.mkdir(parents=True)
    Image.new("L", (3, 3), 9).save(folder / "a.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = open_data("emoji64")
    assert (len(data), data.name) == (1, "emoji64")


@pytest.mark.parametrize("content", [b"", b"hello, this is no data set", pickle.dumps([1])], ids=["empty", "text", "pickle"])
def test_files_of_no_kind_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="x is of no kind that is read .*data may be a folder"):
        open_data(tmp_path / "x")


# sheets


def write_sheets(root):
    sheet = np.random.default_rng(0).integers(0, 256, (128, 4096, 3)).astype(np.uint8)  # two rows of 64 tiles
    Image.fromarray(sheet).save(root / "noto.webp", lossless=True, quality=0, method=0)
    rows = ["style\tindex\tcategory\tcodepoints\tname"] + [
        f"noto\t{k}\t{'Food' if k % 2 else 'Animals'}\t-\tN{k}" for k in range(70)
    ]
    (root / "small.tsv").write_text("\n".join(rows) + "\n")
    return sheet


def test_sheets(tmp_path):
    sheet = write_sheets(tmp_path)
    data = open_data(tmp_path)
    assert (len(data), data.shape, data.name) == (70, (3, 64, 64), "small")
    np.testing.assert_array_equal(data.images[1].permute(1, 2, 0), sheet[:64, 64:128])
    np.testing.assert_array_equal(data.images[66].permute(1, 2, 0), sheet[64:, 128:192])
    assert data.label_names == ("Animals", "Food")
    assert data.labels.tolist() == [0, 1] * 35
    assert open_data(tmp_path, size=16).shape == (3, 16, 16)
    with pytest.raises(DataError, match="without a test split"):
        open_data(tmp_path, split="test")


def test_broken_sheets_are_named(tmp_path):
    write_sheets(tmp_path)
    table = tmp_path / "small.tsv"
    head, *rows = table.read_text().splitlines()
    for text, expected in (
        (f"{head}\nnoto\t128\tFood\t-\tN", "tile 128 of noto, whose sheet has 128"),
        (f"{head}\nnoto\tx\tFood\t-\tN", "not a table of tiles"),
        (f"{head}\nnoto\t1", "lacks its style or category"),
        (head, "names no tiles"),
        (f"{head}\nother\t0\tFood\t-\tN", "cannot read the sheet .*other.webp"),
        (f"{head}\n../noto\t0\tFood\t-\tN\n", None),  # a style is a name, not a way out of the folder
    ):
        table.write_text(text)
        if expected is None:
            assert len(open_data(tmp_path)) == 1
        else:
            with pytest.raises(DataError, match=expected):
                open_data(tmp_path)
    table.write_text("\n".join([head, *rows]))
    whole = (tmp_path / "noto.webp").read_bytes()
    (tmp_path / "noto.webp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="noto.webp is truncated or damaged"):
        open_data(tmp_path)
    Image.new("RGB", (64, 65)).save(tmp_path / "noto.webp", lossless=True)
    with pytest.raises(DataError, match="64x65, not whole tiles"):
        open_data(tmp_path)


@pytest.mark.data
def test_the_real_emoji(data_root, monkeypatch):
    if not (data_root / "emoji64").is_dir():
        pytest.skip(f"no {data_root / 'emoji64'}")
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    data = open_data("emoji64")
    assert (len(data), data.shape, data.name) == (10_963, (3, 64, 64), "emoji64")
    assert {"Food & Drink", "Flags", "Symbols"} < set(data.label_names)
    assert data.label_names[data.labels[0]] == "Symbols"
    assert data.images[:, :, 0, 0].float().mean() > 240  # drawn on white


# npz

ARRAY = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)


def test_npz(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", ARRAY, np.array([3, 1, 0, 1]))
        data = open_data(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.images.permute(0, 2, 3, 1), ARRAY)
        assert data.labels.tolist() == [3, 1, 0, 1]
        assert data.num_classes == 4
    np.savez(tmp_path / "b.npz", ARRAY[..., :1])
    assert open_data(tmp_path / "b.npz").shape == (1, 5, 6)
    assert open_data(tmp_path / "b.npz").labels is None
    (tmp_path / "b.npz").rename(tmp_path / "c.dat")  # its content tells what it is
    assert len(open_data(tmp_path / "c.dat")) == 4


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "has no arr_0 with images; it holds mu, sigma .statistics"),
        ({"arr_0": ARRAY / 255}, r"uint8 \[N, H, W, C\].*float64"),
        ({"arr_0": ARRAY[0]}, r"uint8 \[5, 6, 3\]"),
        ({"arr_0": ARRAY.transpose(0, 3, 1, 2)}, "1 or 3 channels"),
        ({"arr_0": ARRAY, "arr_1": np.zeros(3, int)}, r"arr_1 must be whole numbers \[4\].*\[3\]"),
        ({"arr_0": ARRAY, "arr_1": np.zeros(4)}, "arr_1 .*float64"),
        ({"arr_0": ARRAY, "arr_1": np.array([0, 1, -1, 0])}, "from -1 to 1"),
        ({"arr_0": ARRAY[:0]}, "no images"),
        ({"arr_0": np.array([{}, None], dtype=object)}, "pickled objects"),
    ],
)
def test_other_npz_are_refused(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=text):
        open_data(tmp_path / "a.npz")


def test_broken_npz_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", ARRAY)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a.npz is truncated or damaged"):
        open_data(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with pytest.raises(DataError, match="a.npz is truncated or damaged"):
        open_data(tmp_path / "a.npz")


def test_npz_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 1000)
    file = io.BytesIO()
    np.save(file, np.zeros((10, 20, 20, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", file.getvalue())
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="would need"):
        open_data(tmp_path / "a.npz")
