"""Pictures of edits: what was known of an image, and input, known part and results beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

HOLE = (213, 94, 0)
"""The colour of pixels that are to be made; an orange that no grey picture has."""

_WANTED = 168  # pixels that the larger side of a picture becomes about
_MARGIN, _GAP, _FONT = 12, 4, 15


def known_picture(image: Tensor, mask: Tensor | None = None, *, grey: bool = False, factor: int = 1) -> Tensor:
    """What an edit is told of images, as pictures: holes are orange, known means are patches, known grey values are grey.

    Args:
        image: uint8 [N, C, H, W], C of 1 or 3.
        mask: bool [H, W], [1, H, W] or [N, 1, H, W], true where pixels are to be made.
        grey: Only the grey value is known.
        factor: Only the means of patches of this side are known.

    Returns:
        uint8 [N, 3, H, W].

    Raises:
        InputError: The factor does not divide the images.
    """
    n, _, height, width = image.shape
    if factor < 1 or height % factor or width % factor:
        raise InputError(f"factor {factor} does not divide images of {height} x {width}")
    shown = image.cpu()
    if factor > 1:
        means = shown.double().reshape(n, -1, height // factor, factor, width // factor, factor).mean((3, 5))
        shown = means.round().to(torch.uint8).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    if grey and shown.shape[1] == 3:
        weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64).reshape(1, 3, 1, 1)
        shown = (shown * weights).sum(1, keepdim=True).round().clamp(0, 255).to(torch.uint8)
    shown = shown.expand(n, 3, height, width)
    if mask is None:
        return shown.clone()
    hole = torch.tensor(HOLE, dtype=torch.uint8).reshape(1, 3, 1, 1)
    return torch.where(mask.cpu().reshape(-1, 1, height, width), hole, shown)


def before_after(columns: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Columns of pictures with a title each; row i is image i, and every picture is enlarged to the same height.

    Args:
        columns: Title and images uint8 [N, C, H, W] (C of 1 or 3) of each column; N is the same, sizes may differ.

    Returns:
        uint8 [H', W', 3], black on white.

    Raises:
        InputError: There is nothing to show, or the columns differ in their number of images.
    """
    from PIL import Image, ImageDraw, ImageFont

    counts = sorted({len(images) for _, images in columns})
    if len(counts) != 1 or counts == [0]:
        raise InputError(f"columns of pictures need one number of images, at least 1: got {counts or 'no columns'}")
    font = ImageFont.load_default(_FONT)
    largest = max(max(images.shape[2:]) for _, images in columns)
    height = largest * max(1, round(_WANTED / largest))
    parts = [_pictures(images, height) for _, images in columns]
    widths = [max(part[0].width, round(font.getlength(title))) for (title, _), part in zip(columns, parts, strict=True)]
    top = _MARGIN + _FONT + 8
    size = (sum(widths) + _MARGIN * (len(columns) + 1), top + counts[0] * (height + _GAP) - _GAP + _MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw, left = ImageDraw.Draw(canvas), _MARGIN
    for (title, _), part, width in zip(columns, parts, widths, strict=True):
        draw.text((left, _MARGIN // 2), title, fill="black", font=font)
        for row, picture in enumerate(part):
            canvas.paste(picture, (left, top + row * (height + _GAP)))
        left += width + _MARGIN
    return torch.from_numpy(np.array(canvas))


def _pictures(images: Tensor, height: int) -> list[Image.Image]:
    """Images uint8 [N, C, H, W] as pictures of a height, without smoothing."""
    from PIL import Image

    n, _, own, width = images.shape
    wide = max(1, round(width * height / own))
    rows = images.cpu().expand(n, 3, own, width).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(row).resize((wide, height), Image.Resampling.NEAREST) for row in rows]
