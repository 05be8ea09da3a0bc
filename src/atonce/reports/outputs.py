"""Generated images as files: one grid, a zip of PNGs as EDM keeps data sets, an array as ADM evaluates it.

Images come in parts, so that no more than one of them is in memory (a grid, which is small, excepted).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.reports.pictures import MARK, grid, png_bytes, webp_bytes

Kind = Literal["png", "webp", "zip", "npz", "folder"]

_KINDS = "a grid (.png, .webp), a .zip of PNGs, an .npz array, or a folder (a name without a suffix)"
_GRID_IMAGES = 4096
_GRID_PIXELS = 1 << 26  # half of what image viewers and Pillow take without complaint


def kind_of(out: Path) -> Kind:
    """What a name asks for: by its suffix; a folder that is there, or a name without a suffix, is a folder.

    Args:
        out: Where images are to go.

    Returns:
        The kind.

    Raises:
        InputError: The suffix means nothing to us, or a folder stands where a file should be.
    """
    suffix = out.suffix.lower().removeprefix(".")
    for kind in get_args(Kind):
        if kind == suffix and kind != "folder":
            if out.is_dir():
                raise InputError(f"{out} is a folder, and {out.suffix} means a file: choose another name")
            return kind
    if suffix and not out.is_dir():
        raise InputError(f"images cannot be saved as {out.suffix!r} ({out}): give {_KINDS}")
    return "folder"


def check_images(kind: Kind, shape: tuple[int, int, int], n: int) -> None:
    """Refuse images that a kind of output cannot hold.

    Args:
        kind: The kind of output.
        shape: (C, H, W) of the images.
        n: How many there are.

    Raises:
        InputError: Pictures would have another number of channels than 1 or 3, or a grid would be too large.
    """
    from PIL import features

    channels, height, width = shape
    if kind == "webp" and not features.check("webp"):
        raise InputError("this Pillow was built without WebP: save as .png, or install Pillow from its wheel")
    if kind != "npz" and channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, these have {channels}: save them as .npz")
    limit = min(_GRID_IMAGES, max(1, _GRID_PIXELS // ((height + 2) * (width + 2))))
    if kind in ("png", "webp") and n > limit:
        raise InputError(
            f"n is {n:,}, and a grid of {width}x{height} images holds at most {limit:,}: give a folder, .zip or .npz as --out"
        )


def picture_name(index: int) -> str:
    """Name of an image in a folder: ``000012.png``."""
    return f"{index:06d}.png"


def member_name(index: int) -> str:
    """Name of an image in a zip, as EDM's ``dataset_tool.py`` gives it: ``00000/img00000012.png``."""
    return f"{index // 1000:05d}/img{index:08d}.png"


def picture(image: Tensor) -> bytes:
    """One image uint8 [C, H, W], C of 1 or 3, as the content of a PNG file."""
    return png_bytes(image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous())


def dataset_json(labels: Mapping[str, int] | None) -> bytes:
    """EDM's ``dataset.json``: names of images and their classes; null for those without (a negative label), or for all."""
    entries = None if labels is None else [[name, label if label >= 0 else None] for name, label in labels.items()]
    return json.dumps({"labels": entries}).encode()


def write_output(
    path: Path,
    kind: Kind,
    parts: Iterable[Tensor],
    shape: tuple[int, int, int, int],
    *,
    first: int = 0,
    labels: Tensor | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write images as one file.

    ``png`` and ``webp`` (lossless) are one grid, small images enlarged. ``zip`` holds PNGs and ``dataset.json`` as EDM's data
    sets do. ``npz`` holds ``arr_0``, uint8 [N, H, W, C], and, where each image has a class, ``arr_1``, int64 [N]: the batch
    format of ADM's evaluation, without pickle. Equal images give equal bytes.

    Args:
        path: The file, overwritten.
        kind: Any kind but a folder.
        parts: uint8 [k, C, H, W], one after the other.
        shape: (N, C, H, W) of all parts together.
        first: Index of the first image, for the names in a zip.
        labels: Classes int64 [N]; negative means none.
        facts: How they were made, kept in the file.
    """
    text = json.dumps(facts) if facts else ""
    if kind in ("png", "webp"):
        whole = grid(torch.cat(list(parts)))
        path.write_bytes(png_bytes(whole, text) if kind == "png" else webp_bytes(whole, text))
        return
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        if kind == "zip":
            _write_pictures(archive, parts, first, labels)
        else:
            _write_arrays(archive, parts, shape, labels)
        archive.comment = f"{MARK} {text}".strip().encode()


def npz_bytes(images: Tensor, labels: Tensor | None = None, facts: Mapping[str, Any] | None = None) -> bytes:
    """Images as the content of an npz file, as :func:`write_output` writes it.

    Args:
        images: uint8 [N, C, H, W].
        labels: Classes int64 [N]; negative means none.
        facts: How they were made, kept in the file.

    Returns:
        The content.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", allowZip64=True) as archive:
        n, c, h, w = images.shape
        _write_arrays(archive, [images], (n, c, h, w), labels)
        archive.comment = f"{MARK} {json.dumps(facts) if facts else ''}".strip().encode()
    return content.getvalue()


def _write_pictures(archive: zipfile.ZipFile, parts: Iterable[Tensor], first: int, labels: Tensor | None) -> None:
    count = 0
    for part in parts:
        for image in part:
            archive.writestr(zipfile.ZipInfo(member_name(first + count)), picture(image))  # stored: PNGs are compressed
            count += 1
    # Without it, the folders of a thousand images each would be taken for classes.
    classes = None if labels is None else {member_name(first + i): label for i, label in enumerate(labels.tolist())}
    archive.writestr(zipfile.ZipInfo("dataset.json"), dataset_json(classes))


def _write_arrays(
    archive: zipfile.ZipFile, parts: Iterable[Tensor], shape: tuple[int, int, int, int], labels: Tensor | None
) -> None:
    n, c, h, w = shape
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, h, w, c)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    if labels is not None and bool((labels >= 0).all()):
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, labels.numpy(), allow_pickle=False)
