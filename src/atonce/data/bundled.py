"""Data known by name: the digits that come with scikit-learn, and data sets looked up in the folder ATONCE_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from atonce.core.errors import DataError
from atonce.core.streams import permutation
from atonce.data.dataset import ImageData

_TRAIN_DIGITS = 1437  # four fifths of 1797

# name -> places below the data folder, and what belongs there
LOCAL = {
    "fashion-mnist": (("fashion-mnist", "FashionMNIST"), "its files train-images-idx3-ubyte.gz, ... (MIT licence)"),
    "cifar10": (
        ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        "cifar-10-python.tar.gz from the authors' page",
    ),
    "emoji64": (("emoji64",), "its sheets and emoji64.tsv"),
}
NAMES = ("digits", *LOCAL)


def digits(split: str) -> ImageData:
    """Scikit-learn's digits: 1,797 grey 8x8 pictures of handwritten figures, values 0..16 scaled to 0..255.

    Args:
        split: ``"train"``, a fixed random 1,437 of them, ``"test"``, the other 360, or ``"all"``.

    Returns:
        The images with labels 0 to 9.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # v * 255 / 16 never ends in .5 for whole v below 16, except at v = 8 (127.5), which rounds to the even 128.
    images = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]
    names = tuple(str(k) for k in range(10))
    data = ImageData(images, torch.from_numpy(bunch.target.astype(np.int64)), names, "digits", "scikit-learn's digits")
    if split == "all":
        return data
    order = permutation(0, 0, len(data))
    return data.subset(order[:_TRAIN_DIGITS] if split == "train" else order[_TRAIN_DIGITS:])


def data_folder() -> Path | None:
    """The folder of local data sets: the environment variable ATONCE_DATA, else ``../shared/data`` where it exists."""
    if chosen := os.environ.get("ATONCE_DATA"):
        return Path(chosen).expanduser()
    default = Path("../shared/data")
    return default if default.is_dir() else None


def local_path(name: str) -> Path:
    """Where a known data set lies.

    Args:
        name: A name of :data:`LOCAL`.

    Returns:
        Its file or folder.

    Raises:
        DataError: It is not there; the message says what to put where.
    """
    places, content = LOCAL[name]
    folder = data_folder()
    if folder is None:
        place = f"FOLDER/{places[0]} and set the environment variable ATONCE_DATA to FOLDER"
        raise DataError(f"{name} does not come with the package: put {content} into {place}, or give the path as data")
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise DataError(
        f"{name} is not in {folder} (ATONCE_DATA): put {content} into {folder / places[0]}, or give the path as data"
    )
