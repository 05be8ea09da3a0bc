"""What samples are compared with: a data set, or the file of its statistics."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import DataError
from atonce.core.files import sha256_file
from atonce.core.records import Source
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation.frechet import Moments


@dataclasses.dataclass(frozen=True)
class Reference:
    """The other side of a comparison: images, or only the moments of their features.

    Attributes:
        source: What a record says about it.
        images: uint8 [N, C, H, W], or None.
        moments: Given moments, or None where they are computed from the images.
    """

    source: Source
    images: Tensor | None = None
    moments: Moments | None = None


def open_images(data: str | Path | ImageData, split: str | None = None) -> ImageData:
    """A data set to compare with.

    Args:
        data: A name, a path, or data in memory, which is given back as it is.
        split: ``"train"``, ``"test"`` or ``"all"``; None is the set's own training images, and all of the digits, whose
            division into two parts is ours.

    Returns:
        The images.
    """
    if isinstance(data, ImageData):
        return data
    return open_data(data, split=split or ("all" if data == "digits" else "train"))


def data_source(data: ImageData) -> Source:
    """What a record says about a data set."""
    return Source(data.name, data.digest(), len(data))


def open_reference(reference: str | Path | ImageData, split: str | None = None) -> Reference:
    """A reference by name or path.

    Args:
        reference: Anything that names data, or an ``.npz`` file with ``mu`` [D] and ``sigma`` [D, D], as EDM's.
        split: See :func:`open_images`.

    Returns:
        The reference.

    Raises:
        DataError: The file is missing or damaged.
    """
    if not isinstance(reference, ImageData) and Path(reference).suffix == ".npz":
        path = Path(reference)
        if not path.is_file():
            raise DataError(f"reference {path} does not exist")
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: torch.from_numpy(np.array(file[name], np.float64)) for name in {"mu", "sigma"} & set(file.files)}
            if len(found) == 2:
                return Reference(Source(path.name, sha256_file(path)), moments=Moments(found["mu"], found["sigma"]))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"reference {path} cannot be used: {error}") from error
    data = open_images(reference, split)
    return Reference(data_source(data), data.images)
