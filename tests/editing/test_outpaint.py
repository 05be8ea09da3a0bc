"""Outpainting: windows, their order, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce import editing as edit
from atonce.core.errors import InputError
from atonce.editing.outpaint import window_order
from atonce.model import ConsistencyModel


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_within_the_frame_it_is_one_inpainting(model: ConsistencyModel) -> None:
    x = images(2, 4, 6)
    out = edit.outpaint(model, x, (8, 8), place=(3, 1), steps=3, seed=2)
    canvas = torch.zeros(2, 1, 8, 8)
    canvas[:, :, 3:7, 1:7] = x
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[3:7, 1:7] = False
    assert torch.equal(out, edit.inpaint(model, canvas, mask, steps=3, seed=2))
    assert torch.equal(out[:, :, 3:7, 1:7], x)


@given(st.integers(1, 14), st.integers(1, 14), st.integers(8, 22), st.integers(8, 22), st.data())
def test_the_image_keeps_every_bit_wherever_it_is(
    model: ConsistencyModel, height: int, width: int, rows: int, columns: int, data: Any
) -> None:
    rows, columns = max(rows, height), max(columns, width)
    top, left = data.draw(st.integers(0, rows - height)), data.draw(st.integers(0, columns - width))
    x = images(1, height, width)
    out = edit.outpaint(model, x, (rows, columns), place=(top, left), steps=1)
    assert out.shape == (1, 1, rows, columns)
    assert torch.equal(out[:, :, top : top + height, left : left + width], x)
    assert bool(torch.isfinite(out).all())
    made = torch.ones(rows, columns, dtype=torch.bool)
    made[top : top + height, left : left + width] = False
    assert not bool((out[0, 0][made] == 0).any())  # the canvas' filling is nowhere left


def test_the_centre(model: ConsistencyModel) -> None:
    x = images(2, 4, 5)
    out = edit.outpaint(model, x, (9, 8), steps=1)
    assert torch.equal(out[:, :, 2:6, 1:6], x)
    assert torch.equal(edit.outpaint(model, x, (9, 8), place=(2, 1), steps=1), out)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.integers(1, 30), st.integers(0, 999))
def test_windows_cover_what_is_missing(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    rows, columns = max(rows, height), max(columns, width)
    missing = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    left = missing.clone()
    for row, column in window_order(missing, height, width):
        window = left[row : row + height, column : column + width]
        assert window.shape == (height, width)
        assert bool(window.any())
        window[:] = False
    assert not bool(left.any())


def test_the_window_that_knows_most_comes_first() -> None:
    """An image of 8 x 8 in a row of 24: first the neighbours that hold half of it, then outward."""
    missing = torch.ones(8, 24, dtype=torch.bool)
    missing[:, 8:16] = False
    assert window_order(missing, 8, 8) == [(0, 4), (0, 0), (0, 12), (0, 16)]


def test_windows_have_noise_of_their_own(model: ConsistencyModel) -> None:
    """With a mask that hides nothing else two equal windows would else be equal images."""
    seen: list[dict[str, Any]] = []
    x = torch.zeros(1, 1, 8, 8)
    edit.outpaint(model, x, (8, 24), steps=2, callback=seen.append)
    assert [(s["window"], s["windows"], s["step"]) for s in seen] == [(w, 4, k) for w in range(4) for k in range(2)]
    left, right = seen[1]["x0"], seen[5]["x0"]  # both know one half, of zeros
    assert not torch.allclose(left[..., :4], right[..., 4:], atol=1e-2)


def test_a_guess_holds_for_all_windows(classes: ConsistencyModel) -> None:
    seen: list[dict[str, Any]] = []
    edit.outpaint(classes, images(3, 8, 8), (8, 16), steps=1, callback=seen.append)
    assert len(seen) == 2
    assert seen[0]["calls"] == 1 + 3 * 3
    assert seen[1]["calls"] == 1
    assert torch.equal(seen[0]["labels"], seen[1]["labels"])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: edit.outpaint(m, images(1, 4, 4), (7, 8)), r"size is \(7, 8\), must be \(height, width\) of at least"),
        (lambda m: edit.outpaint(m, images(1, 4, 12), (8, 8)), "size is"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), 8), "size is 8"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), (8.0, 8)), "size is"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), (8, 8), place=(5, 0)), r"place is \(5, 0\), must be"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), (8, 8), place=(-1, 0)), "place is"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), (8, 8), place="left"), "place is 'left'"),
        (lambda m: edit.outpaint(m, images(1, 4, 4).expand(1, 3, 4, 4), (8, 8)), "this model takes"),
        (lambda m: edit.outpaint(m, 3 * images(1, 4, 4), (8, 8)), "must be within -1 and 1"),
        (lambda m: edit.outpaint(m, images(1, 4, 4), (8, 8), steps=0), "steps is 0"),
    ],
)
def test_refused_in_one_line(model: ConsistencyModel, call: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call(model)
    assert "\n" not in str(caught.value)
