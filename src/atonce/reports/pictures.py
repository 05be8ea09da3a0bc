"""Pictures: grids of images, several of them with labels, and the mark by which our files are known."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atonce.core.files import write_bytes
from atonce.core.images import tile

MARK = "atonce"
_SOFTWARE, _DESCRIPTION = 0x0131, 0x010E  # tags of EXIF
_GAP = 2  # white pixels between the images of a grid


def write_png(path: Path | str, picture: Tensor) -> None:
    """Write a picture uint8 [H, W, 3] or [H, W] as PNG with our mark, whole or not at all."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: Tensor, facts: str = "") -> bytes:
    """A picture as the content of a PNG file with our mark.

    Args:
        picture: uint8 [H, W, 3] or [H, W].
        facts: JSON that the file is to carry about how it was made (see :func:`facts_of`).

    Returns:
        The content.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MARK)
    if facts:
        info.add_text("Comment", facts)
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def webp_bytes(picture: Tensor, facts: str = "") -> bytes:
    """A picture as the content of a lossless WebP file with our mark. Arguments as in :func:`png_bytes`."""
    from PIL import Image

    exif = Image.Exif()
    exif[_SOFTWARE] = MARK
    if facts:
        exif[_DESCRIPTION] = facts
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, format="WEBP", lossless=True, exif=exif)
    return content.getvalue()


def grid(images: Tensor) -> Tensor:
    """One picture of many images, small ones enlarged: uint8 [n, C, H, W] to uint8 [H', W', 3]."""
    n, _, h, w = images.shape
    side = max(h, w)  # images of about 64 pixels, a picture of about 2,048 at most
    scale = max(1, min(64 // side, 2048 // (max(1, round(n**0.5)) * side)))
    return tile(images, gap=_GAP, scale=scale)


def side_by_side(panels: Sequence[tuple[str, Tensor]], columns: int = 8, scale: int = 8) -> Tensor:
    """Grids beside each other, each with its title; pixels stay squares.

    Args:
        panels: Title and images uint8 [n, C, H, W] of each grid.
        columns: Images in a row of a grid.
        scale: Each pixel becomes a square of this side.

    Returns:
        uint8 [H', W', 3], black on white.
    """
    from PIL import Image, ImageDraw, ImageFont

    grids = [tile(images, columns, _GAP, scale) for _, images in panels]
    margin, head, size = 2 * scale, 5 * scale, 3 * scale
    width = sum(grid.shape[1] for grid in grids) + margin * (len(grids) + 1)
    canvas = Image.new("RGB", (width, max(grid.shape[0] for grid in grids) + head + margin), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    left = margin
    for (title, _), grid in zip(panels, grids, strict=True):
        draw.text((left, margin // 2), title, fill="black", font=font)
        canvas.paste(Image.fromarray(grid.numpy()), (left, head))
        left += grid.shape[1] + margin
    return torch.from_numpy(np.array(canvas))


def labelled_rows(rows: Sequence[tuple[str, Tensor]], scale: int = 8) -> Tensor:
    """Rows of images, each with a label at its left.

    Args:
        rows: Label and pictures uint8 [n, C, H, W] of each row, all of one shape.
        scale: Each pixel becomes a square of this side.

    Returns:
        uint8 [H', W', 3], black on white.
    """
    from PIL import Image, ImageDraw, ImageFont

    strips = [tile(images, len(images), _GAP, scale) for _, images in rows]
    font = ImageFont.load_default(3 * scale)
    space, margin = 4 * _GAP, 2 * scale
    indent = margin * 2 + round(max(font.getlength(label) for label, _ in rows))
    height, width = strips[0].shape[0], max(strip.shape[1] for strip in strips)
    canvas = Image.new("RGB", (indent + width + margin, len(rows) * (height + space) - space + 2 * margin), "white")
    draw = ImageDraw.Draw(canvas)
    for i, ((label, _), strip) in enumerate(zip(rows, strips, strict=True)):
        top = margin + i * (height + space)
        draw.text((indent - margin, top + height // 2), label, fill="black", font=font, anchor="rm")
        canvas.paste(Image.fromarray(strip.numpy()), (indent, top))
    return torch.from_numpy(np.array(canvas))


def facts_of(path: Path) -> dict[str, Any] | None:
    """What a file of ours says about how it was made.

    The mark is a text chunk in a PNG, a tag of EXIF in a WebP, and the comment of an archive (zip, npz).

    Args:
        path: The file.

    Returns:
        The facts, empty where it carries the mark alone; ``None`` where it is not ours.
    """
    from PIL import Image

    mark: object
    try:
        if path.suffix.lower() in (".npz", ".zip"):
            with zipfile.ZipFile(path) as archive:
                mark, _, text = archive.comment.decode().partition(" ")
        else:
            with Image.open(path, formats=("PNG", "WEBP")) as picture:
                exif = picture.getexif() if picture.format == "WEBP" else {}
                mark = picture.info.get("Software") or exif.get(_SOFTWARE)
                text = picture.info.get("Comment") or exif.get(_DESCRIPTION) or ""
        facts = json.loads(text) if mark == MARK and text else {}
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):  # not even readable as such a file
        return None
    return facts if mark == MARK and isinstance(facts, dict) else None


def is_ours(path: Path) -> bool:
    """Whether a PNG, WebP, zip or npz file carries our mark."""
    return facts_of(path) is not None
