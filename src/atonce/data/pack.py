"""Writes chosen pictures of a data set into one file that training reads: a zip of PNGs in EDM's form, or an npz."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from atonce.core.errors import DataError
from atonce.core.files import sha256_file, write_atomic, write_json
from atonce.data.check import Sums, Tell
from atonce.data.collection import Collection, Loaded, open_collection
from atonce.data.limits import check_memory
from atonce.data.pictures import Shaping, shape_picture
from atonce.data.pictures import pixels as values_of

if TYPE_CHECKING:
    import os

    from atonce.data.dataset import ImageData

_DATE = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal pictures give equal files
KINDS = (".zip", ".npz")


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        file: Name of the file.
        sha256: Of the file.
        source: Where the pictures came from.
        split: Which of them.
        count: Pictures in the file.
        shape: (C, H, W) of each.
        classes: Names of the classes; empty without labels.
        class_counts: Pictures of each.
        mean: In [-1, 1] units.
        sigma_data: Standard deviation over all values, in [-1, 1] units.
        left_out: Name and reason of each picture that was left out.
        report: Name of the report beside it.
    """

    file: str
    sha256: str
    source: str
    split: str
    count: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    mean: float
    sigma_data: float
    left_out: dict[str, str]
    report: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def report_path(out: Path) -> Path:
    """The report beside a packed file."""
    return out.with_name(out.name + ".report.json")


def check_out(out: Path) -> None:
    """Refuse a file that cannot be packed into.

    Args:
        out: The new file.

    Raises:
        DataError: Its suffix is of another kind, or something is there already.
    """
    if out.suffix.lower() not in KINDS:
        raise DataError(f"{out.name} is neither a .zip nor an .npz: choose one of these suffixes")
    if (there := next((path for path in (out, report_path(out)) if path.exists()), None)) is not None:
        raise DataError(f"{there} exists, and nothing is written over: choose another name, or remove it first")


def pack_data(
    spec: ImageData | str | os.PathLike[str],
    out: Path,
    *,
    split: str = "train",
    leave_out: Mapping[str, str] | None = None,
    size: int | None = None,
    channels: int | None = None,
    crop: str = "center",
    found: Mapping[str, Any] | None = None,
    pixels: int | None = None,
    tell: Tell | None = None,
) -> Packed:
    """Write pictures into one new file, and a report beside it; the originals are only read.

    A ``.zip`` holds PNGs as EDM's tools write them, ``00000/img00000000.png`` and ``dataset.json`` with labels (and here with
    the names of the classes); an ``.npz`` holds ``arr_0`` and ``arr_1``. Equal pictures and options give equal bytes.

    Args:
        spec: What :func:`~atonce.data.sources.open_data` takes.
        out: The new file, ``.zip`` or ``.npz``.
        split: ``"train"``, ``"test"`` or ``"all"``.
        leave_out: Names of pictures that stay out, and why; from :meth:`~atonce.data.checked.Checked.leave_out`.
        size: Side of the square pictures in pixels. Default: as they are; then all must have one size.
        channels: 1 for grey, 3 for RGB. Default: grey where all are grey, else RGB.
        crop: ``"center"`` or ``"none"``, as for :func:`~atonce.data.sources.open_data`.
        found: What a check found, kept in the report.
        pixels: Picture files of more pixels count as such that cannot be read. Default: Pillow's limit.
        tell: Told what is being done, pictures done and pictures in all; what it raises ends the work, and nothing is written.

    Returns:
        What was packed.

    Raises:
        DataError: A name in ``leave_out`` is unknown, a picture cannot be read or does not fit the others, ``out`` is there
            already, or nothing is left.
    """
    shaping = Shaping(size, channels, crop)
    check_out(out)
    out_of = dict(leave_out or {})
    with open_collection(spec, split, pixels) as collection:
        if unknown := set(out_of) - set(collection.names):
            raise DataError(f"{min(unknown)!r} is to be left out but is not among the pictures of {collection.source}")
        chosen = [place for place, name in enumerate(collection.names) if name not in out_of]
        if not chosen:
            raise DataError(f"all {len(collection.names)} pictures of {collection.source} would be left out: keep some")
        source, names = collection.source, collection.class_names()
        labels = None if collection.labels is None else collection.labels[chosen]
        write = _Zip if out.suffix.lower() == ".zip" else _Npz
        made: list[tuple[tuple[int, int, int], Sums]] = []
        write_atomic(out, lambda path: made.append(_write(path, write, collection, chosen, labels, shaping, tell)))
    (shape, sums), report = made[0], report_path(out)
    counts = () if labels is None else tuple(torch.bincount(labels, minlength=len(names)).tolist())
    packed = Packed(
        out.name, sha256_file(out), source, split, len(chosen), shape, names, counts, sums.mean, sums.std, out_of, report.name
    )
    write_json(report, packed.as_dict() | {"found": None if found is None else dict(found)})
    return packed


def _write(
    path: Path,
    kind: type[_Zip] | type[_Npz],
    collection: Collection,
    chosen: list[int],
    labels: torch.Tensor | None,
    shaping: Shaping,
    tell: Tell | None,
) -> tuple[tuple[int, int, int], Sums]:
    if shaping.channels is None:
        shaping = Shaping(shaping.size, _channels(collection, chosen, tell), shaping.crop)
    sums = Sums()
    size: tuple[int, int] | None = None
    first = ""
    with kind(path, len(chosen)) as out:
        for number, (place, found) in enumerate(collection.stream(chosen)):
            name = collection.names[place]
            if not isinstance(found, Loaded):
                raise DataError(f"{found}; leave it out as corrupt")
            picture = shape_picture(found.picture, shaping, name)
            if size is None:
                size, first = picture.size, name
            if picture.size != size:
                sizes = f"{first} is {size[0]}x{size[1]}, {name} is {picture.width}x{picture.height}"
                raise DataError(f"the pictures differ in size ({sizes}): give one size")
            sums.add(Loaded(picture, found.kind))
            out.add(number, picture)
            if tell is not None and (number % 64 == 63 or number == len(chosen) - 1):
                tell("writing", number + 1, len(chosen))
        out.finish(labels, collection.classes)
    assert size is not None
    return (shaping.channels or 1, size[1], size[0]), sums


def _channels(collection: Collection, chosen: list[int], tell: Tell | None) -> int:
    """1 where all pictures are grey; the first colour picture ends the search."""
    for number, (_, found) in enumerate(collection.stream(chosen)):
        if isinstance(found, Loaded) and found.picture.mode == "RGB":
            return 3
        if tell is not None and (number % 64 == 63 or number == len(chosen) - 1):
            tell("looking for colours", number + 1, len(chosen))
    return 1


class _Zip:
    """A zip of PNGs that is being written."""

    def __init__(self, path: Path, count: int) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._names: list[str] = []

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def add(self, number: int, picture: Image.Image) -> None:
        content = io.BytesIO()
        picture.save(content, format="PNG")
        self._names.append(f"{number // 1000:05d}/img{number:08d}.png")
        self._member(self._names[-1], content.getvalue())

    def finish(self, labels: torch.Tensor | None, classes: tuple[str, ...] | None) -> None:
        table = None if labels is None else [list(pair) for pair in zip(self._names, labels.tolist(), strict=True)]
        content: dict[str, Any] = {"labels": table}
        if labels is not None and classes is not None:
            content["names"] = list(classes)
        self._member("dataset.json", json.dumps(content).encode())

    def _member(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name, _DATE)
        info.external_attr = 0o644 << 16
        self._archive.writestr(info, content)


class _Npz:
    """An array in ADM's form that is being gathered."""

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count = path, count
        self._images: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __enter__(self) -> _Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._images = None

    def add(self, number: int, picture: Image.Image) -> None:
        array = values_of(picture).transpose(1, 2, 0)
        if self._images is None:
            check_memory(2 * array.size * self._count, f"an array of {self._count} pictures", "pack a .zip instead")
            self._images = np.empty((self._count, *array.shape), np.uint8)
        self._images[number] = array

    def finish(self, labels: torch.Tensor | None, classes: tuple[str, ...] | None) -> None:
        assert self._images is not None
        arrays = {"arr_0": self._images} | ({} if labels is None else {"arr_1": labels.numpy()})
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), content.getvalue())
