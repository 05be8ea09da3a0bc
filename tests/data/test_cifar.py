"""CIFAR-10 in its Python, binary and packed forms, made small here."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from atonce.core.errors import DataError
from atonce.data import cifar
from atonce.data.cifar import CLASSES
from atonce.data.packed import decode_planes
from atonce.data.sources import open_data

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (18, 3, 32, 32)).astype(np.uint8)  # three for each of six batches
LABELS = RNG.integers(0, 10, 18)
NAMES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]


def python_batch(k, protocol=2, **changes):
    part = slice(3 * k, 3 * k + 3)
    content = {"batch_label": "x", "labels": LABELS[part].tolist(), "data": IMAGES[part].reshape(3, -1), "filenames": ["a"] * 3}
    return pickle.dumps(content | changes, protocol)


def binary_batch(k):
    return b"".join(bytes([LABELS[i]]) + IMAGES[i].tobytes() for i in range(3 * k, 3 * k + 3))


def write(root, make=python_batch, suffix=""):
    root.mkdir(exist_ok=True)
    for k, name in enumerate(NAMES):
        (root / f"{name}{suffix}").write_bytes(make(k))
    return root


def check(path):
    train, test, both = (open_data(path, split=split) for split in ("train", "test", "all"))
    for data, part in ((train, slice(0, 15)), (test, slice(15, 18)), (both, slice(0, 18))):
        np.testing.assert_array_equal(data.images, IMAGES[part])
        np.testing.assert_array_equal(data.labels, LABELS[part])
        assert data.label_names == CLASSES


def test_python_batches(tmp_path):
    check(write(tmp_path / "cifar-10-batches-py"))
    check(tmp_path)  # the folder around it


def test_python_batches_of_newer_pickles(tmp_path):
    check(write(tmp_path, lambda k: python_batch(k, 5)))
    check(write(tmp_path, lambda k: python_batch(k, 4, labels=LABELS[3 * k : 3 * k + 3])))  # labels as an array


def test_binary_batches(tmp_path):
    check(write(tmp_path, binary_batch, ".bin"))
    one = open_data(tmp_path / "data_batch_2.bin")
    np.testing.assert_array_equal(one.images, IMAGES[3:6])
    np.testing.assert_array_equal(one.labels, LABELS[3:6])


@pytest.mark.parametrize("make", [python_batch, binary_batch])
def test_archives_are_read_without_unpacking(tmp_path, make):
    suffix = ".bin" if make is binary_batch else ""
    root = write(tmp_path / "cifar-10-x", make, suffix)
    for mode, name in (("w:gz", "cifar-10-python.tar.gz"), ("w", "plain.tar")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(root, "cifar-10-x")
        before = sorted(p.name for p in tmp_path.iterdir())
        check(tmp_path / name)
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    check(tmp_path)  # a folder that holds the archive


def test_damaged_archives_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(write(tmp_path / "x"), "x")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    for keep in (len(whole) // 2, 30):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:keep])
        with pytest.raises(DataError, match="cut.tar.gz is (a truncated|of no kind)"):
            open_data(tmp_path / "cut.tar.gz")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(DataError, match="holds none of the files data_batch_1"):
        open_data(tmp_path / "other.tar")


def test_absurd_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 1000)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(write(tmp_path / "x"), "x")
    with pytest.raises(DataError, match="unpacks to .* bytes"):
        open_data(tmp_path / "a.tar")


class Hostile:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (python_batch(1)[:-40], "data_batch_2 of .* is truncated, damaged"),
        (b"", "data_batch_2 of .* is truncated, damaged"),
        (python_batch(1, labels=Hostile()), r"data_batch_2 of .* asks for the global \w+\.system"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (pickle.dumps({"labels": [1]}), "'data' is not an array"),
        (python_batch(1, data=np.zeros((3, 3072), np.int32)), "'data' is not an array of bytes"),
        (python_batch(1, data=np.zeros((3, 100), np.uint8)), "'data' is not an array of bytes"),
        (python_batch(1, labels=[1, 2]), "'labels' are not 3 whole numbers"),
        (python_batch(1, labels=[1, 2, "x"]), "'labels' are not 3 whole numbers"),
        (python_batch(1, labels=[1, 2, 10]), "label 10: those of CIFAR-10 are 0 to 9"),
        (python_batch(1, labels=[1, 2, -1]), "label -1"),
    ],
    ids=range(11),
)
def test_broken_python_batches_are_named(tmp_path, content, text):
    root = write(tmp_path)
    (root / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=text):
        open_data(root)
    assert len(open_data(root, split="test")) == 3


def test_broken_binary_batches_are_named(tmp_path):
    root = write(tmp_path, binary_batch, ".bin")
    for content, text in ((binary_batch(0)[:-1], "truncated"), (b"", "truncated"), (b"\x0b" + binary_batch(0)[1:], "label 11")):
        (root / "data_batch_1.bin").write_bytes(content)
        with pytest.raises(DataError, match=f"data_batch_1.bin of .*{text}"):
            open_data(root)


def test_a_missing_batch_is_named(tmp_path):
    root = write(tmp_path)
    (root / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3, which the split 'train'"):
        open_data(root)


def planes(images):
    """The packed form, written the slow way: one value after another, as the format is defined."""
    image = images.astype(int)
    stack = [image[:, 1], image[:, 0] - image[:, 1], image[:, 2] - image[:, 1]]
    out = bytearray()
    for plane in stack:
        for picture in plane:
            for y in range(32):
                for x in range(32):
                    a = picture[y, x - 1] if x else 0
                    b = picture[y - 1, x] if y else 0
                    c = picture[y - 1, x - 1] if x and y else 0
                    guess = sorted((a, b, a + b - c))[1] if x and y else a + b  # on the edges only one neighbour is not 0
                    rest = (picture[y, x] - guess + 128) % 256 - 128
                    out.append(2 * rest if rest >= 0 else -2 * rest - 1)
    return bytes(out)


def smooth(n):
    """Pictures in which prediction works, and pictures in which differences wrap around."""
    ramp = np.add.outer(np.arange(32), 2 * np.arange(32))
    first = np.stack([np.stack([ramp + k, 255 - ramp, ramp * 3 % 256]) for k in range(n)])
    return np.concatenate([first % 256, IMAGES[:n], np.full((1, 3, 32, 32), 255)]).astype(np.uint8)


def test_packed_planes_against_the_definition():
    images = smooth(2)
    np.testing.assert_array_equal(decode_planes(planes(images)), images)


def write_packed(root):
    labels = "".join(f"train {LABELS[k]} a_{k}.png\n" for k in range(3)) + f"test {LABELS[3]} b.png\n"
    for name, part in (("train-0", slice(0, 1)), ("train-1", slice(1, 3)), ("test", slice(3, 4))):
        (root / f"cifar10-{name}.xz").write_bytes(lzma.compress(planes(IMAGES[part])))
    (root / "cifar10-labels.txt.xz").write_bytes(lzma.compress(labels.encode()))
    return root


def test_packed_folder(tmp_path):
    root = write_packed(tmp_path)
    for split, part in (("train", slice(0, 3)), ("test", slice(3, 4)), ("all", slice(0, 4))):
        data = open_data(root, split=split)
        np.testing.assert_array_equal(data.images, IMAGES[part])
        np.testing.assert_array_equal(data.labels, LABELS[part])


def test_broken_packed_files_are_named(tmp_path):
    path = write_packed(tmp_path) / "cifar10-test.xz"
    whole = path.read_bytes()
    bent = bytearray(whole)
    bent[len(bent) // 2] ^= 255
    for content, text in (
        (whole[:-50], "is truncated"),
        (bytes(bent), "is damaged"),
        (b"nothing", "is damaged"),
        (lzma.compress(bytes(3071)), "whole images"),
        (lzma.compress(b""), "whole images"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"cifar10-test.xz.* {text}|cifar10-test.xz does not hold {text}"):
            open_data(tmp_path, split="test")
    path.write_bytes(lzma.compress(planes(IMAGES[:2])))
    with pytest.raises(DataError, match="has 1 labels of the split 'test', but there are 2 images"):
        open_data(tmp_path, split="test")
    path.unlink()
    with pytest.raises(DataError, match="no packed CIFAR-10 files of the split 'test'"):
        open_data(tmp_path, split="test")
    (tmp_path / "cifar10-labels.txt.xz").unlink()
    with pytest.raises(DataError, match="cannot read .*cifar10-labels"):
        open_data(tmp_path)


@pytest.mark.data
@pytest.mark.slow
def test_the_real_cifar10(data_root, monkeypatch):
    if not (data_root / "cifar10").is_dir():
        pytest.skip(f"no {data_root / 'cifar10'}")
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    data = open_data("cifar10", split="all")
    assert (len(data), data.shape, data.name) == (60_000, (3, 32, 32), "cifar10")
    names = [data.label_names[k] for k in data.labels[50_000:50_008].tolist()]
    assert names == ["cat", "ship", "ship", "airplane", "frog", "frog", "automobile", "frog"]
    assert data.labels[50_000:].bincount().tolist() == [1000] * 10
    train = data.subset(torch.arange(50_000))
    published = ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))  # mean and std of the channels, in [0, 1]
    for found, (mean, std) in zip(train.channel_statistics(), published, strict=True):
        assert found == pytest.approx((2 * mean - 1, 2 * std), abs=2e-4)
