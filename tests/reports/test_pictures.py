"""Pictures of several images, and the mark by which our files are known."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atonce.core.images import to_uint8
from atonce.reports.pictures import (
    facts_of,
    grid,
    is_ours,
    labelled_rows,
    png_bytes,
    side_by_side,
    webp_bytes,
    write_png,
)


def images(n: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_grid_shows_each_image() -> None:
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    x[3] = 255
    shown = grid(x)
    h, w, _ = shown.shape
    assert h > 8 * 8
    assert int(shown[h // 4, w // 4].max()) == 0
    assert int(shown[3 * h // 4, 3 * w // 4].min()) == 255


def test_a_grid_of_many_images_is_not_enlarged() -> None:
    assert grid(torch.zeros(1024, 3, 64, 64, dtype=torch.uint8)).shape == (32 * 66 - 2, 32 * 66 - 2, 3)


def test_pictures_carry_a_mark_and_facts_and_lose_nothing(tmp_path: Path) -> None:
    shown = grid(to_uint8(images(6, channels=3)))
    for name, content in (("a.png", png_bytes(shown, '{"seed": 3}')), ("a.webp", webp_bytes(shown, '{"seed": 3}'))):
        (tmp_path / name).write_bytes(content)
        assert facts_of(tmp_path / name) == {"seed": 3}
        assert np.array_equal(np.asarray(Image.open(tmp_path / name).convert("RGB")), shown.numpy())
    write_png(tmp_path / "b.png", shown)
    (tmp_path / "b.webp").write_bytes(webp_bytes(shown))
    assert facts_of(tmp_path / "b.png") == facts_of(tmp_path / "b.webp") == {}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.zip", "a.npz"])
def test_what_others_made_is_not_ours(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert not is_ours(path)
    path.write_bytes(b"precious")
    assert not is_ours(path)
    if name.endswith(("z", "zip")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    else:
        Image.new("L", (4, 4)).save(path)
    assert not is_ours(path)


def test_panels_and_rows_hold_all_their_images() -> None:
    pixels = to_uint8(images(16))
    two = side_by_side([("left", pixels), ("right", pixels)], columns=4, scale=2)
    assert two.shape[1] > 2 * 4 * 8 * 2
    rows = labelled_rows([("a", pixels[:4]), ("b", pixels[4:8])], scale=2)
    assert rows.shape[0] > 2 * 8 * 2
    assert rows.float().std() > 0
