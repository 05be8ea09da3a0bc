"""CIFAR-10 packed without loss to 97 MB: predicted planes, compressed with xz.

Each file holds bytes [3][n][32][32]: the planes green, red - green and blue - green, all modulo 256. Every value is predicted
from its left, upper and upper-left neighbours (the median predictor of LOCO-I, Weinberger et al. 2000, eq. 1; outside of the
plane is 0), and the remainder, as a signed byte, is stored in zigzag order 0, -1, 1, -2, 2, ... The neighbours in the two
difference planes are the true differences, -255 to 255.
"""

from __future__ import annotations

import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from atonce.core.errors import DataError
from atonce.data.cifar import CLASSES
from atonce.data.dataset import ImageData
from atonce.data.limits import one_line

_LABELS = "cifar10-labels.txt.xz"
_SIDE = 32
_IMAGE = 3 * _SIDE * _SIDE
_MAX_BYTES = 60_000 * _IMAGE + 1


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed CIFAR-10."""
    return any(folder.glob("cifar10-*.xz"))


def open_packed(folder: Path, split: str) -> ImageData:
    """Read packed CIFAR-10: ``cifar10-train-*.xz``, ``cifar10-test.xz`` and ``cifar10-labels.txt.xz``.

    Args:
        folder: Where the files are.
        split: ``"train"``, ``"test"`` or ``"all"``.

    Returns:
        RGB images [N, 3, 32, 32] in the official order with labels and their names.

    Raises:
        DataError: A file is missing, truncated or damaged, or the labels do not fit.
    """
    splits = ("train", "test") if split == "all" else (split,)
    paths = [path for part in splits for path in sorted(folder.glob(f"cifar10-{part}*.xz"))]
    if not paths:
        raise DataError(f"{folder} holds no packed CIFAR-10 files of the split {split!r} (cifar10-{split}*.xz)")
    with ThreadPoolExecutor(2) as pool:  # xz and numpy both let other threads run
        images = np.concatenate(list(pool.map(_read_images, paths)))
    rows = [line.split(" ") for line in _unpack(folder / _LABELS).decode("utf-8", "replace").splitlines()]
    words = [row[1] for part in splits for row in rows if len(row) > 1 and row[0] == part]
    if len(words) != len(images) or not set(words) <= {str(k) for k in range(len(CLASSES))}:
        raise DataError(
            f"{folder / _LABELS} has {len(words)} labels of the split {split!r}, but there are {len(images)} images"
        )
    labels = torch.tensor([int(word) for word in words])
    source = f"CIFAR-10 {split}, packed, from {folder}: {len(images)} images"
    return ImageData(torch.from_numpy(images), labels, CLASSES, "cifar10", source)


def _unpack(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        unpacker = lzma.LZMADecompressor(memlimit=1 << 28)
        result = unpacker.decompress(content, max_length=_MAX_BYTES)
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except lzma.LZMAError as problem:
        raise DataError(f"{path} is damaged: {one_line(problem)}") from problem
    if not unpacker.eof:
        raise DataError(f"{path} is truncated, or unpacks to more than {_MAX_BYTES} bytes")
    return result


def _read_images(path: Path) -> NDArray[np.uint8]:
    content = _unpack(path)
    if not content or len(content) % _IMAGE:
        raise DataError(f"{path} does not hold whole images: {len(content)} bytes are not a multiple of {_IMAGE}")
    return decode_planes(content)


def decode_planes(content: bytes) -> NDArray[np.uint8]:
    """Undo the prediction and the differences of the packed form.

    Args:
        content: Bytes [3][n][32][32] as the module describes them.

    Returns:
        RGB images, uint8 [n, 3, 32, 32].
    """
    zigzag = np.frombuffer(content, np.uint8).reshape(3, -1, _SIDE, _SIDE)
    image = np.empty((zigzag.shape[1], 3, _SIDE, _SIDE), np.uint8)
    green: NDArray[np.uint8] | None = None
    for source, target in ((0, 1), (1, 0), (2, 2)):
        # Images last: each step then works on the same pixel of all images, side by side in memory.
        plane = np.ascontiguousarray(zigzag[source].transpose(1, 2, 0))
        restored = _restore(((plane >> 1) ^ np.negative(plane & 1)).view(np.int8), green)
        image[:, target] = restored.transpose(2, 0, 1)
        green = restored if green is None else green
    return image


def _restore(remainder: NDArray[np.int8], green: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """One plane [32, 32, n] from its remainders; ``green`` is what was subtracted from it."""
    result = np.empty(remainder.shape, np.uint8)
    above = np.zeros((_SIDE + 1, remainder.shape[2]), np.int16)  # column 0 is the outside of the plane
    row = np.zeros_like(above)
    for y in range(_SIDE):
        for x in range(_SIDE):
            left, up, corner = row[x], above[x + 1], above[x]
            guess = np.maximum(np.minimum(left, up), np.minimum(left + up - corner, np.maximum(left, up)))
            value = (guess + remainder[y, x]).astype(np.uint8)
            if green is None:
                result[y, x] = value
                row[x + 1] = value
            else:
                value += green[y, x]
                result[y, x] = value
                np.subtract(value, green[y, x], out=row[x + 1], dtype=np.int16)
        above, row = row, above
    return result
