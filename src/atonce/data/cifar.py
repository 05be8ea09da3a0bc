"""CIFAR-10 as its authors distribute it: the Python batches and the binary version, as folders or as archives."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atonce.core.errors import DataError
from atonce.core.reading import ARRAYS, PickledArray, load_restricted_pickle
from atonce.data.dataset import ImageData
from atonce.data.limits import MAX_FILE_BYTES, one_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCH = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?")
_RECORD = 1 + 3 * 32 * 32  # one label byte, then the red, green and blue plane

Batches = Mapping[str, Callable[[], bytes]]  # file name -> content


def find_batches(folder: Path) -> dict[str, Callable[[], bytes]]:
    """The batch files of a folder, or of the folder the archive unpacks to inside it."""
    for place in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        files = sorted(place.iterdir()) if place.is_dir() else []
        found = {file.name: partial(_read, file) for file in files if _BATCH.fullmatch(file.name) and file.is_file()}
        if found:
            return dict(found)
    return {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def read_tar(path: Path) -> dict[str, Callable[[], bytes]]:
    """The batch files in a (compressed) tar archive; nothing is unpacked onto the disk.

    Args:
        path: The archive.

    Returns:
        As :func:`find_batches`.

    Raises:
        DataError: The archive is truncated or damaged, holds no batches or absurdly large ones.
    """
    found: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{path}: {member.name} unpacks to {member.size} bytes (limit {MAX_FILE_BYTES >> 20} MiB)")
                file = archive.extractfile(member) if member.isfile() and _BATCH.fullmatch(name) else None
                if file is not None:
                    found[name] = partial(bytes, file.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path} is a truncated or damaged archive: {one_line(problem)}") from problem
    if not found:
        raise DataError(f"{path} holds none of the files data_batch_1 ... data_batch_5, test_batch of CIFAR-10")
    return found


def open_batches(batches: Batches, split: str, where: str) -> ImageData:
    """Read the batches of a split, Python or binary.

    Args:
        batches: File name to content.
        split: ``"train"`` (five batches), ``"test"`` or ``"all"``.
        where: What to call the source.

    Returns:
        RGB images [N, 3, 32, 32] with labels and their names.

    Raises:
        DataError: A batch is missing, truncated, damaged or of another kind; the message names it.
    """
    suffix = ".bin" if any(name.endswith(".bin") for name in batches) else ""
    train, test = [f"data_batch_{k}{suffix}" for k in range(1, 6)], [f"test_batch{suffix}"]
    images, labels = [], []
    for name in {"train": train, "test": test, "all": train + test}[split]:
        if name not in batches:
            raise DataError(f"{where} lacks {name}, which the split {split!r} of CIFAR-10 needs")
        x, y = (read_binary if suffix else read_python)(batches[name](), f"{name} of {where}")
        images.append(x)
        labels.append(y)
    tensor, target = torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
    return ImageData(tensor, target, CLASSES, "cifar10", f"CIFAR-10 {split} from {where}: {len(tensor)} images")


def read_binary(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one label byte and 3072 pixel bytes.

    Args:
        content: The file.
        name: What to call it in messages.

    Returns:
        Images uint8 [n, 3, 32, 32] and labels int64 [n].

    Raises:
        DataError: It is not whole records, or a label is above 9.
    """
    if not content or len(content) % _RECORD:
        raise DataError(f"{name} is truncated or no CIFAR-10 batch: {len(content)} bytes are not whole records of {_RECORD}")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return _checked(records[:, 1:], records[:, 0].tolist(), name)


def read_python(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A pickled dictionary with ``data`` (uint8 [n, 3072]) and ``labels``; the pickle can name nothing but arrays.

    Args:
        content: The file.
        name: What to call it in messages.

    Returns:
        Images uint8 [n, 3, 32, 32] and labels int64 [n].

    Raises:
        DataError: It is damaged, names other globals, or has other content.
    """
    batch: Any = load_restricted_pickle(content, ARRAYS, name=name, error=DataError)
    if not isinstance(batch, dict):
        raise DataError(f"{name} is no CIFAR-10 batch: it holds a {type(batch).__name__}, not a dictionary")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = batch.get("data"), batch.get("labels")
    data = getattr(data, "array", None) if isinstance(data, PickledArray) else data
    labels = getattr(labels, "array", None) if isinstance(labels, PickledArray) else labels
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _RECORD - 1:
        raise DataError(f"{name} is no CIFAR-10 batch: its 'data' is not an array of bytes [n, {_RECORD - 1}]")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(numbers, list) or not numbers or len(numbers) != len(data) or any(type(k) is not int for k in numbers):
        raise DataError(f"{name} is no CIFAR-10 batch: its 'labels' are not {len(data)} whole numbers")
    return _checked(data, numbers, name)


def _checked(data: NDArray[np.uint8], labels: list[int], name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if foreign := [label for label in labels if not 0 <= label < len(CLASSES)]:
        raise DataError(f"{name} has the label {foreign[0]}: those of CIFAR-10 are 0 to {len(CLASSES) - 1}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)
