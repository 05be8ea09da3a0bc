"""The one place where [-1, 1] becomes 0..255, the way back, and pictures made of several images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from atonce.core.files import write_atomic


def to_uint8(x: Tensor) -> Tensor:
    """Quantise images: uint8 = floor(clip(127.5 x + 128, 0, 255)), the convention of EDM's evaluation.

    Args:
        x: Images in [-1, 1], any shape; values outside are clipped.

    Returns:
        uint8 tensor of the same shape. :func:`from_uint8` inverts it exactly for values that came from it.
    """
    return (x.detach().to(torch.float32) * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """Images 0..255 as float32 in [-1, 1]: x / 127.5 - 1."""
    return x.to(torch.float32) / 127.5 - 1.0


def tile(images: Tensor, columns: int | None = None, gap: int = 1, scale: int = 1) -> Tensor:
    """A grid of images as one picture.

    Args:
        images: uint8 [N, C, H, W], C of 1 or 3.
        columns: Images in a row; default: about as many as rows.
        gap: White pixels between images.
        scale: Each pixel becomes a square of this side.

    Returns:
        uint8 [H', W', 3].
    """
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    big = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3).expand(n, 3, h * scale, w * scale)
    step_h, step_w = h * scale + gap, w * scale + gap
    sheet = torch.full((rows * step_h - gap, columns * step_w - gap, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(big):
        top, left = i // columns * step_h, i % columns * step_w
        sheet[top : top + h * scale, left : left + w * scale] = image.permute(1, 2, 0)
    return sheet


def save_png(path: Path | str, picture: Tensor) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: The file.
        picture: uint8 [H, W, 3], or [H, W] for grey.

    Raises:
        StorageError: It could not be written.
    """
    from PIL import Image

    write_atomic(path, lambda temporary: Image.fromarray(picture.cpu().numpy()).save(temporary, format="PNG"))
