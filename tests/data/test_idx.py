"""IDX files: MNIST's kin, gzipped or not, whole or broken."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from atonce.core.errors import DataError
from atonce.data import limits
from atonce.data.sources import open_data


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4)).astype(np.uint8)
LABELS = np.array([3, 1, 0, 3, 2])


def write(root, zipped=True, images=IMAGES, labels=LABELS, part="train"):
    root.mkdir(exist_ok=True)
    for kind, rank, array in (("images", 3, images), ("labels", 1, labels)):
        content = idx(array)
        name = f"{part}-{kind}-idx{rank}-ubyte"
        (root / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder(tmp_path, zipped):
    root = write(write(tmp_path / "set", zipped), zipped, IMAGES[:2], LABELS[:2], "t10k")
    data = open_data(root)
    np.testing.assert_array_equal(data.images.numpy()[:, 0], IMAGES)
    np.testing.assert_array_equal(data.labels, LABELS)
    assert data.label_names == ("0", "1", "2", "3")
    assert len(open_data(root, split="test")) == 2
    everything = open_data(root, split="all")
    np.testing.assert_array_equal(everything.labels, [*LABELS, *LABELS[:2]])
    assert everything.label_names == ("0", "1", "2", "3")
    assert open_data(root, size=6, channels=3).shape == (3, 6, 6)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file(tmp_path, zipped):
    root = write(tmp_path, zipped)
    path = next(root.glob("train-images*"))
    data = open_data(path)
    np.testing.assert_array_equal(data.labels, LABELS)
    path = path.rename(root / "renamed.dat")  # its content tells what it is
    alone = open_data(path)
    np.testing.assert_array_equal(alone.images, data.images)
    assert alone.labels is None
    with pytest.raises(DataError, match="without a test split"):
        open_data(path, split="test")


def test_the_raw_folder_of_others(tmp_path):
    write(tmp_path / "raw", zipped=False)
    assert len(open_data(tmp_path)) == 5


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(DataError, match="no IDX file of images of the split 'test': there is train"):
        open_data(write(tmp_path), split="test")
    with pytest.raises(DataError, match="split 'all'"):
        open_data(write(tmp_path), split="all")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (idx(IMAGES)[:-1], "truncated: its header says 60 bytes .5x3x4., 59 were found"),
        (idx(IMAGES) + b"x", "longer than it says"),
        (idx(IMAGES)[:10], "ends within its header"),
        (b"\0\0", "ends within its first four bytes"),
        (b"\0\0\x0d\x03" + idx(IMAGES)[4:], "begins with 00000d03, not 00000803"),
        (idx(LABELS), "begins with 00000801"),
        (idx(IMAGES[:0]), "5 labels, but train-images-idx3-ubyte has 0 images"),
        (gzip.compress(idx(IMAGES))[:-9], "train-images-idx3-ubyte is truncated or damaged"),
        (gzip.compress(idx(IMAGES))[:14], "train-images-idx3-ubyte is truncated or damaged"),
        (b"\x1f\x8bnonsense", "cannot read|truncated or damaged"),
    ],
    ids=range(10),  # the bytes of a gzip hold the time, so they cannot name a test
)
def test_broken_images_are_named(tmp_path, content, text):
    root = write(tmp_path, zipped=False)
    (root / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=text):
        open_data(root)


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path):
    root = write(tmp_path)
    path = root / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="train-images"):
        open_data(root)


def test_counts_must_agree(tmp_path):
    with pytest.raises(DataError, match="has 4 labels, but train-images.* has 5 images"):
        open_data(write(tmp_path, labels=LABELS[:4]))


def test_an_absurd_header_is_refused_before_it_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 1 << 30)
    root = write(tmp_path, zipped=False)
    (root / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 31, 1 << 31, 1 << 31))
    with pytest.raises(DataError, match="2147483648x2147483648x2147483648 bytes, would need"):
        open_data(root)


@pytest.mark.data
def test_fashion_mnist(data_root):
    folder = data_root / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    test = open_data(folder, split="test")
    assert (len(test), test.shape) == (10_000, (1, 28, 28))
    assert test.label_names[test.labels[0]] == "Ankle boot"
    assert test.labels[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]
    assert test.labels.bincount().tolist() == [1000] * 10
    train = open_data(folder)
    assert (len(train), train.shape) == (60_000, (1, 28, 28))
    assert train.labels[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]
    assert train.statistics() == pytest.approx((2 * 0.2860 - 1, 2 * 0.3530), abs=2e-4)  # the published mean and std, in [0, 1]
