"""What samples are compared with: a data set, a batch of images, or the file of its statistics."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import DataError, InputError
from atonce.core.files import sha256_file
from atonce.core.records import Source
from atonce.data.arrays import open_npz
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation.extractors import INCEPTION, Extractor
from atonce.evaluation.frechet import Moments

TOLERANCE = 1e-6
"""How far a given covariance may be from symmetric and from positive, of its largest entry and eigenvalue: float32 rounds."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The other side of a comparison: images, the moments of their features, or both.

    Attributes:
        source: What a record says about it.
        images: uint8 [N, C, H, W], or None.
        moments: Given moments, or None where they are computed from the images. Beside images (ADM's reference batches)
            they are moments of the Inception's features.
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
        reference: Anything that names data; or an ``.npz`` file: with ``mu`` [D] and ``sigma`` [D, D] (EDM's), or with
            ``arr_0`` uint8 [N, H, W, C] (a batch of ADM), beside which ``mu`` and ``sigma`` of the whole set may stand.
        split: See :func:`open_images`.

    Returns:
        The reference.

    Raises:
        DataError: The file is missing, damaged, holds something else, or is a pickle.
    """
    if isinstance(reference, ImageData):
        return Reference(data_source(reference), reference.images)
    path = Path(reference).expanduser()
    if _is_pickle(path):
        raise DataError(
            f"reference {path} is a pickle, which can run code when it is opened, so it is not: where it was made, save its "
            "mean and covariance with numpy.savez('reference.npz', mu=..., sigma=...) and give that file"
        )
    if path.suffix == ".npz":
        if not path.is_file():
            raise DataError(f"reference {path} does not exist")
        return _open_npz(path)
    data = open_images(reference, split)
    return Reference(data_source(data), data.images)


def usable_moments(reference: Reference, extractor: Extractor) -> Moments | None:
    """The given moments where they are those of an extractor's features.

    Args:
        reference: The reference.
        extractor: The extractor.

    Returns:
        The moments; None where they must be computed from the images.

    Raises:
        InputError: There are no images, and the statistics have another dimension.
    """
    given = reference.moments
    if reference.images is not None:
        fits = given is not None and extractor.name == INCEPTION and given.mean.shape[0] == extractor.dimension
        return given if fits else None
    if given is None:
        raise InputError(f"reference {reference.source.name} has neither images nor statistics")
    if given.mean.shape[0] != extractor.dimension:
        raise InputError(
            f"{reference.source.name} has {given.mean.shape[0]} features, extractor {extractor.name} gives "
            f"{extractor.dimension}: use the extractor it was made with"
        )
    return given


def _open_npz(path: Path) -> Reference:
    moments = None
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            if {"mu", "sigma"} <= names:
                mean, covariance = (torch.from_numpy(np.array(file[name], np.float64)) for name in ("mu", "sigma"))
                moments = Moments(mean, covariance)
                _check_moments(moments)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"reference {path} cannot be used: {' '.join(str(error).split())}") from error
    if "arr_0" in names:
        data = open_npz(path)
        return Reference(Source(path.name, sha256_file(path), len(data)), data.images, moments)
    if moments is None:
        found = ", ".join(sorted(names)) or "nothing"
        raise DataError(f"reference {path} must hold mu and sigma, or images as arr_0; it holds {found}")
    return Reference(Source(path.name, sha256_file(path)), moments=moments)


def _check_moments(given: Moments) -> None:
    """Refuse a mean and a covariance that belong to no features: a distance to them can be anything, 0 too."""
    covariance = given.covariance
    if not covariance.numel():
        raise ValueError("mu and sigma are empty")
    if not bool(torch.isfinite(given.mean).all() and torch.isfinite(covariance).all()):
        raise ValueError("mu or sigma hold values that are not finite")
    off, size = float((covariance - covariance.T).abs().max()), float(covariance.abs().max())
    if off > TOLERANCE * size:
        raise ValueError(f"sigma is not symmetric (entries differ by up to {off:.3g}): give the covariance of the features")
    values = torch.linalg.eigvalsh(covariance)
    smallest, largest = float(values[0]), float(values[-1])
    if smallest < -TOLERANCE * abs(largest):
        raise ValueError(f"sigma has the eigenvalue {smallest:.3g}, and a covariance has none below 0 (largest: {largest:.3g})")


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError:
        return False
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
