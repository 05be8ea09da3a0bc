"""Pictures and masks brought to the size and the channels of a model: refused, cropped or bordered."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from atonce.core.choices import Fit
from atonce.core.errors import InputError
from atonce.data.pictures import Shaping, pixels, shape_picture

_TRANSPARENT = ("PNG", "WEBP", "GIF", "TIFF", "BMP")  # the formats among those that we read that know transparency


def fitted(
    picture: Image.Image,
    channels: int,
    side: int | None,
    fit: Fit,
    name: str,
    remedy: str = "",
    option: str = "--fit {}",
) -> Any:
    """A picture of mode ``L`` or ``RGB`` in the size and the channels of a model.

    Args:
        picture: The picture.
        channels: 1 or 3.
        side: Height and width; ``None`` keeps those it has.
        fit: ``"none"`` demands the size, and then no pixel changes. ``"crop"`` takes the largest square in the middle and
            resizes it. ``"pad"`` shrinks what is larger, keeping its proportions, and lays it in the middle of its outermost
            pixels, repeated.
        name: What to call it in messages.
        remedy: Added to the message about a wrong size.
        option: How the caller gives ``fit``, for the message about a wrong size.

    Returns:
        uint8 array [C, H, W].

    Raises:
        InputError: The size does not fit.
    """
    if side is not None and picture.size != (side, side):
        if fit == "none":
            crop, pad = option.format("crop"), option.format("pad")
            how = f"give {crop} (the middle square, resized) or {pad} (shrunk whole, with a border)"
            found = f"{name} is {picture.width}x{picture.height}, and {side}x{side} is needed"
            raise InputError(f"{found}{remedy}: {how}")
        if fit == "crop":
            picture = shape_picture(picture, Shaping(side, None, "center"), name)
        else:
            inner = picture.resize(_inside(picture.size, side), Image.Resampling.LANCZOS, reducing_gap=None)
            top, left = (side - inner.height) // 2, (side - inner.width) // 2
            edges = ((top, side - inner.height - top), (left, side - inner.width - left))
            array = np.asarray(inner)
            picture = Image.fromarray(np.pad(array, edges if array.ndim == 2 else (*edges, (0, 0)), mode="edge"))
    return pixels(shape_picture(picture, Shaping(None, channels), name))


def fitted_mask(mask: Tensor, side: int | None, fit: Fit, border: bool = False) -> Tensor:
    """A mask bool [h, w] brought to size as its image was: a pixel is true where any part of it was.

    Args:
        mask: The mask.
        side: Height and width; ``None`` keeps those it has.
        fit: As for :func:`fitted`.
        border: What the border of ``"pad"`` becomes.

    Returns:
        bool [H, W].
    """
    height, width = mask.shape
    if side is None or (height, width) == (side, side):
        return mask
    if fit != "pad":
        small = min(height, width)
        top, left = (height - small) // 2, (width - small) // 2
        return _any(mask[top : top + small, left : left + small], side, side)
    inner_width, inner_height = _inside((width, height), side)
    out = torch.full((side, side), border)
    top, left = (side - inner_height) // 2, (side - inner_width) // 2
    out[top : top + inner_height, left : left + inner_width] = _any(mask, inner_height, inner_width)
    return out


def see_through(content: bytes) -> Tensor | None:
    """Which pixels of a picture that has been read before (so it is sound) are not opaque, bool [H, W]; ``None`` for none."""
    try:
        with Image.open(io.BytesIO(content), formats=_TRANSPARENT) as picture:
            if not set(picture.getbands()) & {"A", "a"} and "transparency" not in picture.info:
                return None
            alpha = np.asarray(ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A"))
    except UnidentifiedImageError:  # a JPEG
        return None
    clear = torch.from_numpy(alpha < 255)
    return clear if bool(clear.any()) else None


def _inside(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a picture that is shrunk, where it must be, to lie within a square."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _any(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask of another size: each new pixel looks at all old pixels that it touches."""
    rows = _touching(mask.shape[0], height)
    columns = _touching(mask.shape[1], width)
    return ((rows @ mask.float() @ columns.T) > 0).to(torch.bool)


def _touching(old: int, new: int) -> Tensor:
    """1 where a new pixel [new] and an old one [old] of one length overlap."""
    begin = torch.arange(new)[:, None] * old
    place = torch.arange(old)[None] * new
    return ((place < begin + old) & (place + new > begin)).float()
