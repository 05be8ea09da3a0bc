"""The one place where [-1, 1] becomes 0..255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import atonce
from atonce.core.errors import StorageError
from atonce.core.images import from_uint8, save_png, tile, to_uint8


def test_known_values() -> None:
    """EDM's rounding. The other convention, 127.5 (x + 1), would give 127, 63 and 254 for the first three."""
    x = torch.tensor([0.0, -0.5, 0.999, 1.0, -1.0, 1.7, -3.0])
    assert to_uint8(x).tolist() == [128, 64, 255, 255, 0, 255, 0]


def test_every_level_comes_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).dtype == torch.float32
    assert (float(from_uint8(levels)[0]), float(from_uint8(levels)[255])) == (-1.0, 1.0)


@given(st.floats(-2, 2, width=32))
def test_within_half_a_level(x: float) -> None:
    back = float(from_uint8(to_uint8(torch.tensor([x])))[0])
    assert abs(back - min(max(x, -1.0), 1.0)) <= 0.5 / 127.5 + 1e-6


def test_it_takes_any_shape_type_and_gradient() -> None:
    x = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert to_uint8(x).shape == (2, 3, 4)
    assert to_uint8(torch.zeros(3, dtype=torch.bfloat16)).tolist() == [128] * 3
    assert atonce.to_uint8 is to_uint8


def test_tile_places_images_row_by_row() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    sheet = tile(images, columns=3, gap=1)
    assert sheet.shape == (5, 8, 3)
    assert [int(sheet[0, column, 0]) for column in (0, 3, 6)] == [0, 1, 2]
    assert [int(sheet[3, column, 0]) for column in (0, 3, 6)] == [3, 4, 255]
    assert torch.equal(sheet[2], torch.full((8, 3), 255, dtype=torch.uint8))
    assert tile(images).shape == (8, 5, 3)  # two columns by itself


def test_tile_enlarges_and_takes_grey() -> None:
    images = torch.tensor([[[[7, 9]]]], dtype=torch.uint8)
    assert torch.equal(tile(images, scale=2)[..., 1], torch.tensor([[7, 7, 9, 9]] * 2, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6)])
def test_png_is_exact(tmp_path: Path, shape: tuple[int, ...]) -> None:
    picture = (torch.arange(int(np.prod(shape))) % 251).to(torch.uint8).reshape(shape)
    save_png(tmp_path / "deep" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), picture.numpy())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_png_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", torch.zeros(2, 2, 3, dtype=torch.uint8))
