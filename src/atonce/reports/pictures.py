"""Samples as files, and labelled pictures of several grids. Files carry a mark, so that only what is ours is overwritten."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.files import write_atomic, write_bytes
from atonce.core.images import tile, to_uint8

MARK = "atonce"
_NUMBERED = re.compile(r"\d{6,}\.png")
_KINDS = "name.png (one grid), name.npz (arr_0, uint8 N H W C) or a folder without a suffix (one PNG each)"
_GAP = 2  # white pixels between the images of a grid


def save_samples(images: Tensor, out: Path | str, first: int = 0) -> list[str]:
    """Write images as one grid, as an array, or one file each; the suffix of ``out`` decides.

    ``.png`` is one grid, small images enlarged. ``.npz`` holds ``arr_0``, uint8 [N, H, W, C], the batch format of ADM's
    evaluation. No suffix (or an existing folder) means a folder of PNGs named by the index of the image, ``000012.png``;
    several parts of one set may go to the same folder. A file is overwritten only where it carries our mark (a text chunk in
    a PNG, the archive's comment in an npz), so the same command works twice and nothing else is lost.

    Args:
        images: float [n, C, H, W] in [-1, 1].
        out: Where they go.
        first: Index of the first image, for the names in a folder.

    Returns:
        Names of all files, relative to the folder they are in.

    Raises:
        InputError: The suffix or shape does not fit, or something that is not ours is in the way; nothing was written then.
        StorageError: Writing failed.
    """
    out = Path(out)
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images must be float [n, C, H, W] in [-1, 1], got {images.dtype} {list(images.shape)}")
    if not len(images):
        raise InputError("there are no images to save: ask for at least one")
    pixels = to_uint8(images).cpu()
    kind = "" if out.is_dir() and out.suffix not in (".png", ".npz") else out.suffix.lower()
    if kind not in (".png", ".npz", ""):
        raise InputError(f"images cannot be saved as {out.suffix!r} ({out}): give {_KINDS}")
    if kind != ".npz" and images.shape[1] not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, these have {images.shape[1]}: save them as .npz")
    if not kind:
        return _save_folder(pixels, out, first)
    _check_file(out)
    if kind == ".png":
        write_png(out, tile(pixels, gap=_GAP, scale=_scale(pixels)))
    else:
        _write_npz(out, np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()))
    return [out.name]


def write_png(path: Path | str, picture: Tensor) -> None:
    """Write a picture uint8 [H, W, 3] or [H, W] as PNG with our mark, whole or not at all."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: Tensor) -> bytes:
    """A picture uint8 [H, W, 3] or [H, W] as the content of a PNG file with our mark."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MARK)
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


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


def _scale(pixels: Tensor) -> int:
    """How many times to enlarge: images of about 64 pixels, a grid of about 2,048 at most."""
    n, _, h, w = pixels.shape
    side = max(h, w)
    return max(1, min(64 // side, 2048 // (max(1, round(n**0.5)) * side)))


def _save_folder(pixels: Tensor, out: Path, first: int) -> list[str]:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} exists and is no folder: choose another name, nothing was changed")
    names = [f"{first + i:06d}.png" for i in range(len(pixels))]
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if strangers := sorted(name for name in present if not _NUMBERED.fullmatch(name)):
        raise InputError(f"{out} holds other things ({strangers[0]}): choose a new folder, nothing was changed")
    for name in present.intersection(names):
        _check_file(out / name)
    for name, image in zip(names, pixels, strict=True):
        write_png(out / name, image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous())
    return names


def _check_file(path: Path) -> None:
    """Refuse to overwrite what we did not write.

    Raises:
        InputError: The file is there and carries no mark of ours, or it is a folder.
    """
    if path.exists() and not is_ours(path):
        raise InputError(f"{path} exists and was not made by atonce: choose another name, nothing was changed")


def is_ours(path: Path) -> bool:
    """Whether a PNG or npz file carries our mark."""
    from PIL import Image

    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.comment == MARK.encode()
        with Image.open(path) as picture:
            return bool(picture.info.get("Software") == MARK)
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):  # not even readable as such a file
        return False


def _write_npz(path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
            archive.comment = MARK.encode()

    write_atomic(path, write)
