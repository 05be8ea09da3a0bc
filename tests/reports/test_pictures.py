"""Samples as files: the three forms, what comes back from them, and what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.reports.pictures import labelled_rows, save_samples, side_by_side


def images(n: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_gives_the_pixels_back(tmp_path: Path, channels: int) -> None:
    x = images(channels=channels)
    assert save_samples(x, tmp_path / "s.npz") == ["s.npz"]
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert np.array_equal(file["arr_0"], to_uint8(x).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_the_pixels_back_under_their_indices(tmp_path: Path, channels: int) -> None:
    x = images(channels=channels)
    assert save_samples(x, tmp_path / "s", first=7)[0] == "000007.png"
    for i, image in enumerate(to_uint8(x)):
        pixels = np.asarray(Image.open(tmp_path / "s" / f"{7 + i:06d}.png"))
        assert np.array_equal(pixels.reshape(8, 8, channels), image.permute(1, 2, 0).numpy())


def test_two_parts_of_one_set_go_to_one_folder(tmp_path: Path) -> None:
    save_samples(images(), tmp_path / "s", first=0)
    save_samples(images(), tmp_path / "s", first=5)
    assert len(list((tmp_path / "s").iterdir())) == 10


def test_a_grid_shows_each_image(tmp_path: Path) -> None:
    x = torch.full((4, 1, 8, 8), -1.0)
    x[3] = 1.0
    save_samples(x, tmp_path / "g.png")
    grid = np.asarray(Image.open(tmp_path / "g.png").convert("L"))
    h, w = grid.shape
    assert grid[h // 4, w // 4] == 0
    assert grid[3 * h // 4, 3 * w // 4] == 255


@pytest.mark.parametrize("name", ["s.png", "s.npz", "s"])
def test_the_same_command_works_twice(tmp_path: Path, name: str) -> None:
    first = save_samples(images(), tmp_path / name)
    assert save_samples(images(), tmp_path / name) == first


@pytest.mark.parametrize("name", ["s.png", "s.npz"])
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(InputError, match="not made by atonce"):
        save_samples(images(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("precious")
    with pytest.raises(InputError, match=r"letter\.txt"):
        save_samples(images(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("x", "name", "message"),
    [
        (images(), "s.jpg", r"\.jpg"),
        (images(0), "s.png", "no images"),
        (images(channels=4), "s.png", "4"),
        (images()[0], "s.png", r"\[n, C, H, W\]"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, x: torch.Tensor, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_samples(x, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_panels_and_rows_hold_all_their_images() -> None:
    pixels = to_uint8(images(16))
    two = side_by_side([("left", pixels), ("right", pixels)], columns=4, scale=2)
    assert two.shape[1] > 2 * 4 * 8 * 2
    rows = labelled_rows([("a", pixels[:4]), ("b", pixels[4:8])], scale=2)
    assert rows.shape[0] > 2 * 8 * 2
    assert rows.float().std() > 0
