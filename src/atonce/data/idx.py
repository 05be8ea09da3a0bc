"""IDX files, the format of MNIST and its kin, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory, one_line

_IMAGES = re.compile(r"(?:.*\W)?(train|t10k|test).*images.*idx[34].*", re.IGNORECASE)
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# SHA-256 of the label bytes: the published files look like MNIST's in all but content.
_FASHION_LABELS = {
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def find_idx(folder: Path) -> dict[str, Path]:
    """Files of images in IDX format in a folder or its ``raw`` subfolder, by split (``train``, ``test``)."""
    found: dict[str, Path] = {}
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if (match := _IMAGES.fullmatch(path.name)) and path.is_file():
                found.setdefault("train" if match[1].lower() == "train" else "test", path)
    return found


def open_idx(path: Path) -> ImageData:
    """Read one file of images and, where it lies beside it, its file of labels.

    The labels of ``train-images-idx3-ubyte.gz`` are in ``train-labels-idx1-ubyte.gz``, and so on.

    Args:
        path: File of images, [N, H, W] or [N, C, H, W] unsigned bytes.

    Returns:
        The images, [N, 1, H, W] or [N, C, H, W].

    Raises:
        DataError: A file is truncated, is not IDX, or the counts differ.
    """
    images = read_idx(path, (3, 4))
    tensor = torch.from_numpy(images if images.ndim == 4 else images[:, None])
    partner = re.sub("images", "labels", re.sub("idx[34]", "idx1", path.name))
    beside = [path.with_name(name) for name in (partner, f"{partner}.gz", partner.removesuffix(".gz"))]
    labels_path = next((p for p in beside if p != path and p.is_file()), None)
    source = f"IDX file {path}: {len(images)} images"
    if labels_path is None:
        return ImageData(tensor, name=path.parent.name, source=source)
    labels = read_idx(labels_path, (1,))
    if len(labels) != len(images):
        raise DataError(f"{labels_path} has {len(labels)} labels, but {path.name} has {len(images)} images")
    fashion = hashlib.sha256(labels.tobytes()).hexdigest() in _FASHION_LABELS
    names = _FASHION if fashion else tuple(str(k) for k in range(int(labels.max(initial=0)) + 1))
    return ImageData(tensor, torch.from_numpy(labels.astype(np.int64)), names, path.parent.name, source)


def read_idx(path: Path, dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in IDX format (two zero bytes, type 8, rank, big-endian sides, content).

    Args:
        path: The file, gzipped or not (its content decides).
        dimensions: Ranks that are accepted.

    Returns:
        uint8 array.

    Raises:
        DataError: The file cannot be read, is truncated, too long, or of another kind.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4:
                raise DataError(f"{path} is truncated: it ends within its first four bytes")
            rank = magic[3]
            if magic[:3] != b"\0\0\x08" or rank not in dimensions:
                wanted = " or ".join(f"0000080{rank}" for rank in dimensions)
                raise DataError(f"{path} is not the expected IDX file: it begins with {magic.hex()}, not {wanted}")
            header = file.read(4 * rank)
            if len(header) < 4 * rank:
                raise DataError(f"{path} is truncated: it ends within its header")
            shape = tuple(int(side) for side in np.frombuffer(header, ">u4"))
            size = math.prod(shape)
            check_memory(size, f"{path}, which says it holds {'x'.join(map(str, shape))} bytes,")
            content = bytearray(file.read(size))
            surplus = file.read(1)
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or one_line(problem)}") from problem
    except (EOFError, zlib.error) as problem:
        raise DataError(f"{path} is truncated or damaged: {one_line(problem)}") from problem
    if len(content) != size or surplus:
        state = "truncated" if len(content) < size else "longer than it says"
        raise DataError(
            f"{path} is {state}: its header says {size} bytes ({'x'.join(map(str, shape))}), {len(content)} were found"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
