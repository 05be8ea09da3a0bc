"""What the editing verbs read and write: pictures that fit a model, masks, results that overwrite nothing of others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atonce.core.choices import Fit
from atonce.core.errors import DataError, InputError
from atonce.core.files import write_atomic, write_bytes
from atonce.core.images import tile
from atonce.data.arrays import is_npz, open_npz
from atonce.data.dataset import ImageData
from atonce.data.fitting import fitted, fitted_mask, see_through
from atonce.data.limits import MAX_FILE_BYTES
from atonce.data.pictures import read_picture
from atonce.reports.outputs import check_images, kind_of, picture_name, write_output
from atonce.reports.pictures import grid, is_ours, png_bytes

_ROW = 16


@dataclass(frozen=True)
class Pictures:
    """Pictures to be edited.

    Attributes:
        images: uint8 [N, C, H, W].
        size: Height and width that they had in the file.
        fit: How they were brought to size.
        made: bool [1, 1, H, W], true where a picture is not opaque, or ``None`` where all are.
        border: bool [1, H, W], true where :func:`fitted` laid a border around the pictures, or ``None``.
        labels: Classes that came with an archive, int64 [N].
    """

    images: Tensor
    size: tuple[int, int]
    fit: Fit
    made: Tensor | None = None
    border: Tensor | None = None
    labels: Tensor | None = None


def read_pictures(
    path: Path, channels: int, side: int | None, fit: Fit = "none", remedy: str = "", factor: int = 1
) -> Pictures:
    """Read one picture, or those of an npz (``arr_0``, uint8 [N, H, W, C]), as a model takes them.

    The orientation of EXIF is applied. Pixels of a picture that are not fully opaque are marked as to be made; their colour is
    laid on white.

    Args:
        path: The file.
        channels: 1 (colours become grey) or 3.
        side: Height and width that are wanted; ``None`` where any will do.
        fit: What to do with another size; see :func:`fitted`.
        remedy: Added to the message about a wrong size.
        factor: Pictures that are smaller than ``side`` by just this factor become patches of equal pixels.

    Returns:
        The pictures.

    Raises:
        DataError: The file is missing, damaged or no picture.
        InputError: The size does not fit.
    """
    content = _content(path)
    if content.startswith(b"PK") and is_npz(path):
        data: ImageData = open_npz(path)
        found = [Image.fromarray(a[0] if len(a) == 1 else a.transpose(1, 2, 0)) for a in data.images.numpy()]
        labels, clear = data.labels, None
    else:
        found, labels, clear = [_decoded(content, path)], None, see_through(content)
    size = (found[0].height, found[0].width)
    if side is not None and factor > 1 and size == (side // factor, side // factor):
        found = [picture.resize((side, side), Image.Resampling.NEAREST) for picture in found]
        fit = "crop"  # of a square nothing is cut off
    parts = [fitted(picture, channels, side, fit, str(path), remedy) for picture in found]
    made = None if clear is None else fitted_mask(clear, side, fit)[None, None]
    border = None
    if side is not None and fit == "pad":
        border = fitted_mask(torch.zeros(size, dtype=torch.bool), side, fit, True)[None]
        border = border if bool(border.any()) else None
    return Pictures(torch.from_numpy(np.stack(parts)), size, fit, made, border, labels)


def read_mask(path: Path, size: tuple[int, int], side: int | None = None, fit: Fit = "none") -> Tensor:
    """Read a mask: a black and white picture, white (above 127, or transparent) where pixels are to be made.

    Args:
        path: The picture.
        size: Height and width of the image as it came, which the mask must have.
        side: Height and width that the image was fitted to.
        fit: How.

    Returns:
        bool [1, H, W].

    Raises:
        DataError: The file is missing, damaged or no picture.
        InputError: The mask has another size, or nothing in it is white.
    """
    picture = _decoded(_content(path), path).convert("L")
    if (picture.height, picture.width) != size:
        raise InputError(
            f"the mask {path} is {picture.width}x{picture.height}, the image {size[1]}x{size[0]}: they must have one size"
        )
    mask = torch.from_numpy(np.asarray(picture, dtype=np.uint8) > 127)
    if not bool(mask.any()):
        raise InputError(f"the mask {path} has no white pixel, so nothing is to be made: paint white what is to be made")
    return fitted_mask(mask, side, fit)[None]


def check_out(out: Path, shape: tuple[int, int, int], n: int, inputs: Sequence[Path]) -> None:
    """Refuse a place for results that cannot take them, before any work is done.

    Args:
        out: Where they are to go.
        shape: (C, H, W) of the results.
        n: How many there are.
        inputs: Files that are read and must stay as they are.

    Raises:
        InputError: The suffix means nothing, the file is an input, or something that is not ours is in the way.
    """
    kind = kind_of(out) if out.is_dir() or out.suffix.lower() in ("", ".png", ".npz") else ""
    if kind not in ("png", "npz", "folder"):
        raise InputError(f"an edit cannot be saved as {out.suffix!r} ({out}): give a .png, an .npz or a folder")
    check_images(kind, shape, n)
    targets = [out / picture_name(i) for i in range(n)] if kind == "folder" else [out]
    if out.exists() and kind == "folder" and not out.is_dir():
        raise InputError(f"{out} is a file, and a name without a suffix means a folder: choose another name")
    for target in targets:
        _check_free(target, inputs)


def check_picture(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place for a picture of input and result. Arguments and errors as in :func:`check_out`."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"{path} must be a .png: the picture of input and result is one")
    _check_free(path, inputs)


def write_results(out: Path, results: Tensor, facts: Mapping[str, Any], each: int = 1) -> list[str]:
    """Write results as one picture, a grid of several, an array, or one file each.

    Args:
        out: A ``.png`` (a single result is written pixel for pixel), an ``.npz`` (``arr_0``, uint8 [N, H, W, C]), or a folder.
        results: uint8 [n, C, H, W].
        facts: How they were made, kept in the files.
        each: Results that belong together: a row of the grid where there are at most 16.

    Returns:
        Names of the files, relative to the folder they are in.
    """
    kind, text = kind_of(out), json.dumps(dict(facts))
    if kind == "folder":
        names = [picture_name(i) for i in range(len(results))]
        for name, image in zip(names, results, strict=True):
            write_bytes(out / name, png_bytes(_picture(image), text))
        return names
    if kind == "png":
        row = each if 1 < each <= _ROW else None
        picture = _picture(results[0]) if len(results) == 1 else grid(results) if row is None else _rows(results, row)
        write_bytes(out, png_bytes(picture, text))
    else:
        n, c, h, w = results.shape
        write_atomic(out, lambda temporary: write_output(temporary, kind, [results], (n, c, h, w), facts=facts))
    return [out.name]


def _picture(image: Tensor) -> Tensor:
    """One image uint8 [C, H, W] as [H, W] or [H, W, 3]."""
    return image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous()


def _rows(images: Tensor, columns: int) -> Tensor:
    """A grid with a number of columns, small images enlarged: uint8 [n, C, H, W] to uint8 [H', W', 3]."""
    side = max(images.shape[2:])
    return tile(images, columns, gap=2, scale=max(1, min(64 // side, 2048 // (columns * side))))


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give one picture (PNG, JPEG, WebP) or an npz")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is absurdly large for a picture (limit {MAX_FILE_BYTES >> 20} MiB)")
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def _decoded(content: bytes, path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused at the same limit
        return read_picture(content, str(path))


def _check_free(target: Path, inputs: Sequence[Path]) -> None:
    if any(target.exists() and path.exists() and target.samefile(path) for path in inputs):
        raise InputError(f"{target} is an input of this edit and stays as it is: choose another name for the result")
    if target.is_dir() or (target.exists() and not is_ours(target)):
        raise InputError(f"{target} exists and was not made by atonce: choose another name or remove it")
