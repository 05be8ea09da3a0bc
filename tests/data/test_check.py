"""What a check finds in data whose faults are known, on real and on made pictures."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import DataError, InputError
from atonce.data.check import check_data
from atonce.data.checked import Checked
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data


def smooth(seed, side=32, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def content(picture, form="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format=form, **options)
    return out.getvalue()


@pytest.fixture
def faulty(tmp_path):
    """Ten good pictures of two classes, and one of every fault."""
    folder = tmp_path / "faulty"
    files = {f"cat/{i}.png": content(smooth(i)) for i in range(5)} | {f"dog/{i}.png": content(smooth(10 + i)) for i in range(5)}
    files |= {
        "cat/copy.png": content(smooth(0)),  # exact
        "cat/copy.webp": content(smooth(0), "WEBP", lossless=True),  # exact in another format
        "dog/again.png": content(smooth(1)),  # exact, with another label
        "dog/like.jpg": content(smooth(11), "JPEG", quality=75),  # near
        "dog/cut.png": content(smooth(12))[:200],  # corrupt
        "dog/text.png": b"this is no picture",  # corrupt
        "readme.md": b"# data",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def by_key(found):
    return {finding.key: finding for finding in found.findings()}


def test_every_fault_is_found_and_nothing_is_changed(faulty):
    before = {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    found = check_data(faulty)
    assert before == {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    assert (found.count, found.readable, found.others) == (16, 14, 1)
    assert [name for name, _ in found.bad] == ["dog/cut.png", "dog/text.png"]
    assert found.exact == (("cat/0.png", "cat/copy.png", "cat/copy.webp"), ("cat/1.png", "dog/again.png"))
    assert found.repeats == 3
    assert [pair[:2] for pair in found.near] == [("dog/1.png", "dog/like.jpg")]
    assert found.conflicts == (("cat/1.png", "dog/again.png"),)
    assert (found.classes, found.class_counts) == (("cat", "dog"), (7, 7))
    assert dict(found.kinds) == {"PNG, RGB": 12, "WEBP, RGB": 1, "JPEG, RGB": 1}
    levels = {key: finding.level for key, finding in by_key(found).items()}
    assert levels["corrupt"] == levels["exact"] == levels["conflicts"] == "fix"
    assert levels["near"] == "look"
    assert levels["sizes"] == levels["balance"] == levels["leak"] == "fine"
    text = "\n".join(found.describe())
    for part in (
        "2 of 16 pictures cannot be read",
        "dog/cut.png",
        "cat/0.png = cat/copy.png",
        "dog/1.png ~ dog/like.jpg",
        "0.1",
    ):
        assert part in text
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["findings"][0]["count"] == 2
    assert Checked.from_dict(plain) == found
    with pytest.raises(InputError, match="no report of a check"):
        Checked.from_dict({"name": "x"})


def test_what_is_left_out_for_each_reason(faulty):
    found = check_data(faulty)
    assert set(found.leave_out(["corrupt"])) == {"dog/cut.png", "dog/text.png"}
    assert set(found.leave_out(["exact"])) == {"cat/copy.png", "cat/copy.webp", "dog/again.png"}
    assert set(found.leave_out(["near"])) == {"dog/like.jpg"}
    assert set(found.leave_out(["conflicts"])) == {"cat/1.png", "dog/again.png"}
    assert found.leave_out(["conflicts", "exact"])["dog/again.png"] == "exact"
    assert found.leave_out([]) == {}
    with pytest.raises(InputError, match="'ugly' is no reason"):
        found.leave_out(["ugly"])


def test_leaks_between_two_sources(tmp_path):
    for name, picture, options in (
        ("train/a.png", smooth(1), {}),
        ("train/b.png", smooth(2), {}),
        ("train/c.png", smooth(3), {}),
        ("test/same.png", smooth(2), {}),
        ("test/other.png", smooth(9), {}),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content(picture, **options))
    (tmp_path / "test/near.jpg").write_bytes(content(smooth(3), "JPEG", quality=80))
    for found in (check_data(tmp_path), check_data(tmp_path / "train", against=tmp_path / "test")):
        assert found.leak.count == 3
        assert found.leak.exact == (("b.png", "same.png"),)
        assert [pair[:2] for pair in found.leak.near] == [("c.png", "near.jpg")]
        assert found.leave_out(["leak"]) == {"b.png": "leak", "c.png": "leak"}
        assert by_key(found)["leak"].level == "fix"
    alone = check_data(tmp_path / "train")
    assert alone.leak.source is None
    assert "name test data" in by_key(alone)["leak"].text
    with pytest.raises(DataError, match="neither a known data set"):
        check_data(tmp_path / "train", against="nowhere")


def test_digits_are_clean_and_their_numbers_are_those_of_open_data():
    found = check_data("digits")
    data = open_data("digits")
    assert (found.mean, found.sigma_data) == pytest.approx((data.statistics().mean, data.statistics().std), abs=1e-12)
    assert sum(found.class_counts) == found.count == len(data)
    assert (found.exact, found.bad, found.leak.exact, found.leak.count) == ((), (), (), 360)
    assert found.shape == (1, 8, 8)
    assert {finding.level for finding in found.findings()} == {"fine"}


def test_fashion_mnist_has_look_alikes_in_training_and_test(data_root):
    train = open_data(data_root / "fashion-mnist").subset([753, 29413, 13360, 0, 1, 2])
    test = open_data(data_root / "fashion-mnist", split="test").subset([4998, 0])
    found = check_data(train, against=test)
    assert [pair[:2] for pair in found.near] == [("#0", "#1")]
    assert [pair[:2] for pair in found.leak.near] == [("#2", "#0")]


def test_statistics_follow_the_wanted_size_and_channels(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(content(smooth(i)))
    for options in ({}, {"size": 8}, {"channels": 1}, {"size": 16, "channels": 3}):
        found, data = check_data(tmp_path, **options), open_data(tmp_path, **options)
        assert found.shape == data.shape
        assert (found.mean, found.sigma_data) == pytest.approx((data.statistics().mean, data.statistics().std), abs=1e-12)


def test_mixed_sizes_and_kinds_are_findings_and_not_errors(tmp_path):
    for i, (side, mode) in enumerate([(32, "RGB"), (32, "L"), (32, "RGB"), (20, "RGB"), (64, "L")]):
        (tmp_path / f"{i}.png").write_bytes(content(smooth(i, side, mode)))
    found = check_data(tmp_path)
    assert found.sizes == (("32 x 32", 3), ("20 x 20", 1), ("64 x 64", 1))
    assert found.shape == (3, 32, 32)
    data = open_data(tmp_path, size=32)
    assert found.sigma_data == pytest.approx(data.statistics().std, abs=1e-12)
    assert {key: by_key(found)[key].level for key in ("sizes", "kinds")} == {"sizes": "look", "kinds": "look"}


def test_uneven_classes_are_said(tmp_path):
    images = torch.stack([torch.from_numpy(np.asarray(smooth(i, 8, "L")).copy())[None] for i in range(12)])
    found = check_data(ImageData(images, torch.tensor([0] * 11 + [1]), ("often", "rare")))
    assert by_key(found)["balance"].level == "look"
    even = check_data(ImageData(images, torch.arange(12) % 2))
    assert by_key(even)["balance"].text == "2 classes, 6 pictures each"
    assert "from 1 (rare) to 11 (often)" in by_key(found)["balance"].text
    empty = check_data(ImageData(images, torch.tensor([0] * 12), ("all", "none")))
    assert "from 0 (none)" in by_key(empty)["balance"].text


def test_grey_and_equal_channels_are_one_picture(tmp_path):
    grey = smooth(1, 16, "L")
    (tmp_path / "a.png").write_bytes(content(grey))
    (tmp_path / "b.png").write_bytes(content(grey.convert("RGB")))
    assert check_data(tmp_path).exact == (("a.png", "b.png"),)


def test_near_can_be_left_out_and_its_limit_is_checked(faulty):
    assert check_data(faulty, near=0).near == ()
    with pytest.raises(InputError, match="limit of near-duplicates is 2"):
        check_data(faulty, near=2)


def test_a_source_without_one_readable_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 1 pictures"):
        check_data(tmp_path)
    with pytest.raises(DataError, match="size must be between"):
        check_data("digits", size=0)


def test_progress_is_told_and_can_end_the_check(faulty):
    told = []
    check_data(faulty, tell=lambda stage, done, total: told.append((stage, done, total)))
    assert ("reading", 16, 16) in told
    assert [stage for stage, *_ in told] == sorted([stage for stage, *_ in told], key=["reading", "comparing"].index)

    def stop(stage, done, total):
        raise KeyboardInterrupt(stage)

    with pytest.raises(KeyboardInterrupt, match="reading"):
        check_data(faulty, tell=stop)


@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_a_zip_with_split_folders_is_checked_like_a_folder(tmp_path, top):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name, seed in (("train/a/1.png", 1), ("train/b/2.png", 2), ("test/a/3.png", 2)):
            archive.writestr(top + name, content(smooth(seed)))
    found = check_data(tmp_path / "d.zip")
    assert (found.count, found.classes, found.leak.count) == (2, ("a", "b"), 1)
    assert found.leak.exact == (("b/2.png", "a/3.png"),)
    assert len(open_data(tmp_path / "d.zip", split="all")) == 3
    assert open_data(tmp_path / "d.zip", split="test").label_names == ("a",)


def test_pictures_above_a_limit_are_not_decoded(tmp_path):
    for side in (16, 40):
        (tmp_path / f"{side}.png").write_bytes(content(smooth(side, side)))
    found = check_data(tmp_path, pixels=1000)
    assert [name for name, _ in found.bad] == ["40.png"]
    assert "40x40 pixels, the limit is 1000" in found.bad[0][1]
