"""Pictures of edits: what was known, and columns of before and after."""

from __future__ import annotations

import pytest
import torch

from atonce.core.errors import InputError
from atonce.reports.edit_pictures import HOLE, before_after, known_picture


def images(n: int, channels: int = 1, height: int = 4, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + channels)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(torch.uint8)


def test_holes_are_orange_and_the_rest_is_the_image() -> None:
    x = images(2)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    shown = known_picture(x, mask)
    assert shown.shape == (2, 3, 4, 4)
    assert (shown[:, :, ~mask] == x.expand(2, 3, 4, 4)[:, :, ~mask]).all()
    assert shown[0, :, 1, 1].tolist() == list(HOLE)
    each = torch.stack([mask, ~mask])[:, None]
    assert known_picture(x, each)[1, :, 0, 0].tolist() == list(HOLE)
    assert (known_picture(x) == x).all()


def test_only_means_are_shown_where_only_they_are_known() -> None:
    x = torch.tensor([[0, 4, 10, 10], [4, 8, 10, 10]], dtype=torch.uint8).repeat(2, 1)[None, None]
    assert known_picture(x, factor=2)[0, 0].tolist() == [[4, 4, 10, 10]] * 4
    with pytest.raises(InputError, match="factor 3 does not divide"):
        known_picture(x, factor=3)


def test_only_grey_is_shown_where_only_it_is_known() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert (known_picture(red, grey=True) == 76).all()  # .2989 x 255
    assert (known_picture(red) == red).all()


def test_before_and_after_holds_every_pixel_of_every_column() -> None:
    """Small pictures are enlarged by whole numbers to the height of the others, so each colour is found again."""
    small, large = images(3, 3, 2, 2), images(3, 1, 4, 8)
    sheet = before_after([("small", small), ("large", large)])
    assert sheet.dtype == torch.uint8
    assert sheet.shape[2] == 3
    found = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    for x in (small, large.expand(3, 3, 4, 8)):
        assert {tuple(pixel) for pixel in x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} <= found


@pytest.mark.parametrize("columns", [[], [("none", images(1)[:0])], [("one", images(1)), ("two", images(2))]])
def test_columns_that_do_not_fit_are_refused(columns: list[tuple[str, torch.Tensor]]) -> None:
    with pytest.raises(InputError, match="one number of images"):
        before_after(columns)
