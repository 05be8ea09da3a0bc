"""Opening data by name or path: what a path holds is recognised by its content."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from atonce.core.errors import DataError
from atonce.data.arrays import is_npz, open_npz
from atonce.data.bundled import LOCAL, NAMES, digits, local_path
from atonce.data.cifar import CLASSES, find_batches, open_batches, read_binary, read_tar
from atonce.data.dataset import ImageData, join
from atonce.data.folder import open_folder, open_zip
from atonce.data.idx import find_idx, open_idx
from atonce.data.packed import is_packed, open_packed
from atonce.data.pictures import Shaping, convert
from atonce.data.sheets import find_table, open_sheets

SPLITS = ("train", "test", "all")
_KINDS = "a folder or zip of pictures, IDX files, CIFAR-10 in its Python, binary or packed form, or an npz with arr_0"


def open_data(
    spec: ImageData | str | os.PathLike[str],
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    crop: str = "center",
    skip_bad: bool = False,
    labels: bool = True,
) -> ImageData:
    """Open a data set.

    Args:
        spec: A known name (``digits``, ``fashion-mnist``, ``cifar10``, ``emoji64``), a path, or images already in memory.
            A path may hold pictures (folder or zip), IDX files, CIFAR-10, sheets with a table, or an npz with ``arr_0``.
        split: ``"train"``, ``"test"`` or ``"all"``. A source without splits is all ``"train"``. Ignored for images in memory.
        size: Side of the square images in pixels; None keeps the size.
        channels: 1 for grey, 3 for RGB; None keeps them.
        crop: ``"center"`` crops to a square before resizing; ``"none"`` refuses what is not square.
        skip_bad: Leave unreadable pictures out, with a warning, instead of refusing.
        labels: False drops the labels.

    Returns:
        The images; the same object if images in memory need no change.

    Raises:
        DataError: The source is unknown, empty, damaged or does not fit what is asked.
    """
    shaping = Shaping(size, channels, crop)
    if split not in SPLITS:
        raise DataError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    if isinstance(spec, ImageData):
        data = spec
    elif isinstance(spec, str) and spec in NAMES:
        data = (
            digits(split) if spec not in LOCAL else replace(_open_path(local_path(spec), split, shaping, skip_bad), name=spec)
        )
    else:
        path = Path(spec).expanduser()
        if not path.exists():
            text = f"{os.fspath(spec)!r} is neither a known data set ({', '.join(NAMES)}) nor a path that exists"
            raise DataError(f"{text}; a path may be {_KINDS}")
        data = _open_path(path, split, shaping, skip_bad)
    data = convert(data, shaping)
    return data if labels else data.without_labels()


def holds_pictures(path: Path) -> bool:
    """Whether a path is a folder or a zip of picture files rather than another kind of data.

    Args:
        path: It exists.

    Returns:
        What :func:`open_data` would take it for.
    """
    if path.is_dir():
        others = (find_table(path), is_packed(path), find_batches(path), any(path.glob("cifar-10-*.tar.gz")), find_idx(path))
        return not any(others)
    with open(path, "rb") as file:
        head = file.read(4)
    return head in (b"PK\x03\x04", b"PK\x05\x06") and not is_npz(path)


def _open_path(path: Path, split: str, shaping: Shaping, skip_bad: bool) -> ImageData:
    try:
        opened = _open_folder if path.is_dir() else _open_file
        return opened(path, split, shaping, skip_bad)
    except OSError as problem:
        raise DataError(f"cannot read {problem.filename or path}: {problem.strerror or problem}") from problem


def _open_folder(path: Path, split: str, shaping: Shaping, skip_bad: bool) -> ImageData:
    if table := find_table(path):
        return _whole(open_sheets(table), split)
    if is_packed(path):
        return open_packed(path, split)
    if batches := find_batches(path):
        return open_batches(batches, split, str(path))
    if archives := sorted(path.glob("cifar-10-*.tar.gz")):
        return open_batches(read_tar(archives[0]), split, str(archives[0]))
    if found := find_idx(path):
        parts = [found.get(part) for part in (("train", "test") if split == "all" else (split,))]
        opened = [open_idx(part) for part in parts if part is not None]
        if len(opened) < len(parts):
            raise DataError(f"{path} has no IDX file of images of the split {split!r}: there is {', '.join(sorted(found))}")
        return join(opened)
    return open_folder(path, shaping, split=split, skip_bad=skip_bad)


def _open_file(path: Path, split: str, shaping: Shaping, skip_bad: bool) -> ImageData:
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if is_npz(path):
            return _whole(open_npz(path), split)
        return open_zip(path, shaping, split=split, skip_bad=skip_bad)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as unzipped:
                inner = unzipped.read(4)
        except (OSError, EOFError, zlib.error) as problem:
            raise DataError(f"{path} is a truncated or damaged gzip file: {problem}") from problem
    else:
        inner = head[:4]
    if inner[:3] == b"\0\0\x08":
        return _whole(open_idx(path), split)
    if path.suffix.lower() == ".bin" and head[:1] < b"\x0a":
        images, labels = read_binary(path.read_bytes(), str(path))
        parts = torch.from_numpy(images.copy()), torch.from_numpy(labels)
        return _whole(ImageData(*parts, CLASSES, path.stem, f"CIFAR-10 batch {path}: {len(images)} images"), split)
    if _is_tar(path):
        return open_batches(read_tar(path), split, str(path))
    raise DataError(f"{path} is of no kind that is read (it begins with {head[:4].hex() or 'nothing'}): data may be {_KINDS}")


def _whole(data: ImageData, split: str) -> ImageData:
    if split == "test":
        raise DataError(f"{data.source}: one set without a test split; ask for the split 'train' or 'all'")
    return data


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error):  # cut within its first block
        return False
