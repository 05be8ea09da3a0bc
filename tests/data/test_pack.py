"""Packing: what comes out is what open_data reads, originals stay as they are, and nothing half-done is left."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import DataError
from atonce.data.check import check_data
from atonce.data.dataset import ImageData
from atonce.data.pack import pack_data, report_path
from atonce.data.sources import open_data


def images(n=12, c=3, side=6):
    return torch.randint(0, 256, (n, c, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("suffix", [".zip", ".npz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_packed_data_are_the_same_data(tmp_path, suffix, channels):
    data = ImageData(images(c=channels), torch.arange(12) % 3, ("T-shirt/top", "b", "a"))
    packed = pack_data(data, tmp_path / f"d{suffix}")
    found = open_data(tmp_path / f"d{suffix}")
    assert torch.equal(found.images, data.images)
    assert torch.equal(found.labels, data.labels)
    assert found.label_names == (data.label_names if suffix == ".zip" else None)
    assert (packed.count, packed.shape, packed.class_counts) == (12, (channels, 6, 6), (4, 4, 4))
    assert packed.sigma_data == pytest.approx(data.statistics().std, abs=1e-12)


def test_without_labels(tmp_path):
    pack_data(ImageData(images()), tmp_path / "d.zip")
    assert open_data(tmp_path / "d.zip").labels is None
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        assert archive.namelist()[0] == "00000/img00000000.png"


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        for suffix in (".zip", ".npz"):
            pack_data(ImageData(images()), tmp_path / f"{name}{suffix}")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_is_left_out_is_in_the_report(tmp_path):
    x = images()
    data = ImageData(torch.cat([x, x[:2]]), torch.arange(14) % 2)
    found = check_data(data)
    packed = pack_data(data, tmp_path / "d.zip", leave_out=found.leave_out(["exact"]), found=found.as_dict())
    assert packed.count == 12
    assert packed.left_out == {"#12": "exact", "#13": "exact"}
    report = json.loads(report_path(tmp_path / "d.zip").read_text())
    assert report["left_out"] == packed.left_out
    assert report["found"]["exact"] == [["#0", "#12"], ["#1", "#13"]]
    assert report["sha256"] == packed.sha256
    assert torch.equal(open_data(tmp_path / "d.zip").images, x)


def test_pictures_are_shaped_as_open_data_shapes_them(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for i, size in enumerate([(20, 30), (16, 16), (40, 9)]):
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    with pytest.raises(DataError, match=r"differ in size \(0.png is 20x30, 1.png is 16x16\): give one size"):
        pack_data(folder, tmp_path / "d.zip")
    assert not list(tmp_path.glob("*d.zip*"))
    pack_data(folder, tmp_path / "d.zip", size=8, channels=1)
    assert torch.equal(open_data(tmp_path / "d.zip").images, open_data(folder, size=8, channels=1).images)


def test_nothing_is_written_over_and_bad_names_are_refused(tmp_path):
    (tmp_path / "d.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match="nothing is written over"):
        pack_data("digits", tmp_path / "d.zip")
    assert (tmp_path / "d.zip").read_bytes() == b"mine"
    with pytest.raises(DataError, match="neither a .zip nor an .npz"):
        pack_data("digits", tmp_path / "d.tar")
    with pytest.raises(DataError, match="'#9999' is to be left out but"):
        pack_data("digits", tmp_path / "e.zip", leave_out={"#9999": "exact"})
    with pytest.raises(DataError, match="would be left out: keep some"):
        pack_data(ImageData(images(2)), tmp_path / "e.zip", leave_out={"#0": "exact", "#1": "exact"})
    assert [path.name for path in tmp_path.iterdir()] == ["d.zip"]


def test_an_unreadable_picture_ends_the_packing_and_leaves_nothing(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    (folder / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="b.png .*leave it out as corrupt"):
        pack_data(folder, tmp_path / "d.zip")
    pack_data(folder, tmp_path / "ok.zip", leave_out={"b.png": "corrupt"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "ok.zip", "ok.zip.report.json"]


def test_it_can_be_stopped_and_leaves_nothing(tmp_path):
    def stop(stage, done, total):
        if stage == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_data("digits", tmp_path / "d.zip", tell=stop)
    assert not list(tmp_path.iterdir())
