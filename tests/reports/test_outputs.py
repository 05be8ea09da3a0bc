"""Images as files: what each form holds, what our readers and numpy get back, and what is refused."""

from __future__ import annotations

import json
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.reports.outputs import check_images, dataset_json, kind_of, member_name, picture, write_output
from atonce.reports.pictures import facts_of


def pixels(n: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "png"), ("a.PNG", "png"), ("a.webp", "webp"), ("a.zip", "zip"), ("a.npz", "npz"), ("a", "folder")],
)
def test_the_suffix_decides(tmp_path: Path, name: str, kind: str) -> None:
    assert kind_of(tmp_path / name) == kind


def test_a_folder_that_is_there_may_have_a_dot_but_not_the_suffix_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    assert kind_of(tmp_path / "v1.2") == "folder"
    (tmp_path / "a.zip").mkdir()
    with pytest.raises(InputError, match=r"is a folder, and \.zip means a file"):
        kind_of(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.jpg", "a.npy", "a.tar.gz", "v1.2"])
def test_a_suffix_that_means_nothing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"cannot be saved as '{Path(name).suffix}'.*\.zip of PNGs"):
        kind_of(tmp_path / name)


def test_what_a_kind_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    check_images("npz", (4, 8, 8), 10**6)
    check_images("png", (1, 8, 8), 4096)
    with pytest.raises(InputError, match="these have 4: save them as .npz"):
        check_images("zip", (4, 8, 8), 1)
    with pytest.raises(InputError, match=r"n is 100,000, and a grid of 8x8 images holds at most 4,096: give a folder"):
        check_images("png", (1, 8, 8), 100_000)
    with pytest.raises(InputError, match="256x256 images holds at most 1,008"):
        check_images("webp", (3, 256, 256), 1009)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(InputError, match="without WebP"):
        check_images("webp", (3, 8, 8), 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_is_a_batch_as_adm_writes_it(tmp_path: Path, channels: int) -> None:
    x, labels, path = pixels(channels=channels), torch.tensor([3, 1, 0, 2, 3]), tmp_path / "s.npz"
    write_output(path, "npz", [x], tuple(x.shape), labels=labels)
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["arr_0", "arr_1"]
        assert (file["arr_0"].dtype, file["arr_1"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(file["arr_0"], x.permute(0, 2, 3, 1).numpy())
        assert file["arr_1"].tolist() == [3, 1, 0, 2, 3]
    data = open_data(path)
    assert torch.equal(data.images, x)
    assert torch.equal(data.labels, labels)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, -1, 0, 0])])
def test_an_array_without_a_class_for_each_image_has_no_labels(tmp_path: Path, labels: torch.Tensor | None) -> None:
    x = pixels()
    write_output(tmp_path / "s.npz", "npz", [x], tuple(x.shape), labels=labels)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_zip_is_a_data_set_as_edm_keeps_it(tmp_path: Path, channels: int) -> None:
    x, labels, path = pixels(channels=channels), torch.tensor([3, 1, 0, 2, 3]), tmp_path / "s.zip"
    write_output(path, "zip", [x], tuple(x.shape), first=998, labels=labels)
    names = ["00000/img00000998.png", "00000/img00000999.png", *(f"00001/img0000100{i}.png" for i in range(3))]
    assert [member_name(998 + i) for i in range(5)] == names
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [*names, "dataset.json"]
        assert json.loads(archive.read("dataset.json")) == {"labels": [[n, k] for n, k in zip(names, labels.tolist())]}
    data = open_data(path)
    assert torch.equal(data.images, x)
    assert torch.equal(data.labels, labels)


def test_the_folders_of_an_unconditional_zip_are_no_classes(tmp_path: Path) -> None:
    x = pixels()
    write_output(tmp_path / "s.zip", "zip", [x], tuple(x.shape), first=998)
    assert open_data(tmp_path / "s.zip").labels is None


def test_a_negative_label_means_no_class() -> None:
    assert json.loads(dataset_json({"a.png": 2, "b.png": -1})) == {"labels": [["a.png", 2], ["b.png", None]]}


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_sheet_is_lossless(tmp_path: Path, kind: str) -> None:
    x = pixels(4, 3, 64)  # large enough not to be enlarged
    write_output(tmp_path / f"s.{kind}", kind, [x[:1], x[1:]], tuple(x.shape))
    sheet = np.asarray(Image.open(tmp_path / f"s.{kind}").convert("RGB"))
    assert sheet.shape == (130, 130, 3)
    assert np.array_equal(sheet[66:, 66:], x[3].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kind", ["png", "webp", "zip", "npz"])
def test_files_carry_facts_and_equal_images_give_equal_bytes(tmp_path: Path, kind: str) -> None:
    x, facts = pixels(), {"seed": 3, "labels": None}
    one, other = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    write_output(one, kind, [x], tuple(x.shape), facts=facts)
    write_output(other, kind, x.split(2), tuple(x.shape), facts=facts)
    assert facts_of(one) == facts
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_only_one_part_is_held_at_a_time(tmp_path: Path, kind: str) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def parts() -> Iterator[torch.Tensor]:
        for seed in range(6):
            assert sum(ref() is not None for ref in alive) <= 1
            part = pixels(3) ^ seed
            alive.append(weakref.ref(part))
            yield part
            del part

    write_output(tmp_path / f"s.{kind}", kind, parts(), (18, 1, 8, 8))
    assert len(alive) == 6


def test_one_picture_is_grey_or_rgb(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        (tmp_path / "a.png").write_bytes(picture(pixels(1, channels)[0]))
        assert Image.open(tmp_path / "a.png").mode == mode
