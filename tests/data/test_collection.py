"""Pictures one by one and by name, against what open_data reads at once."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import DataError
from atonce.data.collection import Loaded, open_collection
from atonce.data.dataset import ImageData
from atonce.data.pictures import pixels
from atonce.data.sources import open_data


def png(seed=0, side=6, mode="RGB"):
    channels = {"RGB": 3, "L": 1}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values[..., 0] if channels == 1 else values).save(content, format="PNG")
    return content.getvalue()


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_read_as_open_data_reads_it(tmp_path):
    put(tmp_path, {f"{c}/{i}.png": png(10 * c + i) for c in (1, 2) for i in range(3)} | {"notes.txt": b"hello"})
    data = open_data(tmp_path)
    with open_collection(tmp_path) as found:
        assert found.names == ("1/0.png", "1/1.png", "1/2.png", "2/0.png", "2/1.png", "2/2.png")
        assert found.others == ("notes.txt",)
        assert found.class_names() == ("1", "2")
        assert torch.equal(found.labels, data.labels)
        pictures = [picture for _, picture in found.stream()]
        assert [picture.kind for picture in pictures] == ["PNG, RGB"] * 6
        assert np.array_equal(np.stack([pixels(picture.picture) for picture in pictures]), data.images.numpy())


def test_splits_keep_their_folders_in_the_names_and_match_classes_by_name(tmp_path):
    put(tmp_path, {"train/b/1.png": png(1), "train/c/2.png": png(2), "test/a/3.png": png(3)})
    with open_collection(tmp_path, "all") as found:
        assert set(found.names) == {"train/b/1.png", "train/c/2.png", "test/a/3.png"}
        names = dict(zip(found.names, (found.class_names()[k] for k in found.labels.tolist()), strict=True))
        assert names == {"train/b/1.png": "b", "train/c/2.png": "c", "test/a/3.png": "a"}
    with open_collection(tmp_path, "test") as found:
        assert found.names == ("a/3.png",)


def test_damage_is_found_where_it_is_and_not_before(tmp_path):
    put(tmp_path, {"a.png": png(1), "b.png": png(2)[:60], "c.png": b"", "d.png": png(3, mode="L")})
    with open_collection(tmp_path) as found:
        read = dict(found.stream())
    assert [isinstance(read[k], Loaded) for k in range(4)] == [True, False, False, True]
    assert "b.png" in str(read[1])
    assert read[3].kind == "PNG, grey"


def test_a_zip_keeps_edm_labels_and_names_of_classes(tmp_path):
    # Hidden folders, and what archivers of a Mac add, are no classes.
    table = {"labels": [["00000/img0.png", 1], ["00000/img1.png", 0]], "names": ["shoe/boot", "hat"]}
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("00000/img0.png", png(1))
        archive.writestr("00000/img1.png", png(2))
        archive.writestr(".cache/x.png", png(3))
        archive.writestr("__MACOSX/00000/._img0.png", b"")
        archive.writestr("dataset.json", json.dumps(table))
    with open_collection(tmp_path / "d.zip") as found:
        assert found.labels.tolist() == [1, 0]
        assert found.class_names() == ("shoe/boot", "hat")
    data = open_data(tmp_path / "d.zip")
    assert data.label_names == ("shoe/boot", "hat")
    with pytest.raises(DataError, match="without a test split"), open_collection(tmp_path / "d.zip", "test"):
        pass


@pytest.mark.parametrize("names", ["shoe", ["only one"], [1, 2]])
def test_names_of_classes_that_do_not_fit_are_refused(tmp_path, names):
    put(tmp_path, {"a.png": png(1), "dataset.json": json.dumps({"labels": [["a.png", 1]], "names": names}).encode()})
    with pytest.raises(DataError, match="names must be a list of at least 2"):
        open_data(tmp_path)


def test_images_in_memory_have_numbers_for_names():
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with open_collection(ImageData(images, torch.tensor([0, 2, 1]))) as found:
        assert found.names == ("#0", "#1", "#2")
        assert found.class_names() == ("0", "1", "2")
        assert np.array_equal(pixels(found.load(1).picture), images[1].numpy())
    with pytest.raises(DataError, match="2 channels are no pictures"), open_collection(ImageData(images.view(3, 2, 2, 4))):
        pass


def test_unknown_sources_and_splits_are_named():
    with pytest.raises(DataError, match="neither a known data set"), open_collection("nothing/here"):
        pass
    with pytest.raises(DataError, match="the split must be one of"), open_collection("digits", "training"):
        pass
