"""Numpy archives of images in ADM's form: ``arr_0`` [N, H, W, C] bytes and, optionally, ``arr_1`` labels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData
from atonce.data.limits import check_memory, one_line


def is_npz(path: Path) -> bool:
    """Whether a zip archive holds numpy arrays and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return path.suffix.lower() == ".npz"
    return bool(names) and all(name.endswith(".npy") for name in names)


def open_npz(path: Path) -> ImageData:
    """Read a batch of images; pickled objects inside are refused.

    Args:
        path: The ``.npz`` file.

    Returns:
        The images; labels where ``arr_1`` is there, which must then be whole numbers [N] from 0.

    Raises:
        DataError: The file is truncated or damaged, or the arrays are of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        if "arr_0" not in sizes:
            text = f"{path} has no arr_0 with images; it holds {', '.join(sorted(sizes)) or 'nothing'}"
            raise DataError(f"{text} (statistics are no images)" if {"mu", "sigma"} <= set(sizes) else text)
        check_memory(2 * (sizes["arr_0"] + sizes.get("arr_1", 0)), str(path))
        with np.load(path, allow_pickle=False) as file:
            images: NDArray[Any] = file["arr_0"]
            labels: NDArray[Any] | None = file["arr_1"] if "arr_1" in file.files else None
    except DataError:
        raise
    except Exception as problem:  # damaged archives and array headers fail in many ways
        raise DataError(f"{path} is truncated or damaged, or holds pickled objects: {one_line(problem)}") from problem
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise DataError(f"{path}: arr_0 must be uint8 [N, H, W, C] with 1 or 3 channels, not {found}")
    target = None
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            found = f"{labels.dtype} {list(labels.shape)}"
            raise DataError(f"{path}: arr_1 must be whole numbers [{len(images)}], one label for each image, not {found}")
        target = torch.from_numpy(labels.astype(np.int64))
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageData(tensor, target, None, path.stem, f"npz {path}: {len(images)} images")
