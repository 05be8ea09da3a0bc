"""Pictures of any source one by one and by name: what checking and packing go through without holding all of them."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from atonce.core.errors import DataError
from atonce.data.bundled import LOCAL, local_path
from atonce.data.dataset import ImageData
from atonce.data.folder import Files, folder_files, is_picture, labelled, zip_files, zip_parts
from atonce.data.pictures import header, read_picture
from atonce.data.sources import SPLITS, holds_pictures, open_data

_AHEAD = 256  # pictures handed to the decoding threads at a time
_MODES = {"L": "grey", "1": "black and white", "RGB": "RGB", "RGBA": "RGB with transparency", "LA": "grey with transparency"}
_MODES |= {
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "I;16": "grey of 16 bits",
    "I;16B": "grey of 16 bits",
    "I": "grey of 32 bits",
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """One picture.

    Attributes:
        picture: Upright, of mode ``L`` or ``RGB``.
        kind: How it was stored: format and mode in plain words.
    """

    picture: Image.Image
    kind: str


@dataclass(frozen=True, eq=False)
class Collection:
    """Pictures that are read one by one.

    Attributes:
        name: Short name.
        source: One line that says where they come from.
        names: Name of each; ``#17`` where the source has no names.
        labels: Class of each, int64 [n], or ``None``.
        classes: Names of the classes, or ``None``.
        others: Files that are no pictures by their names, and are left alone.
        load: Reads the picture at a position; a DataError says what is wrong with it.
    """

    name: str
    source: str
    names: tuple[str, ...]
    labels: Tensor | None
    classes: tuple[str, ...] | None
    others: tuple[str, ...]
    load: Callable[[int], Loaded]

    def stream(self, positions: Sequence[int] | None = None) -> Iterator[tuple[int, Loaded | DataError]]:
        """Read pictures in order, some ahead in other threads.

        Args:
            positions: Which; default all.

        Yields:
            The position, and the picture or what is wrong with it.
        """
        wanted = range(len(self.names)) if positions is None else positions

        def one(place: int) -> Loaded | DataError:
            try:
                return self.load(place)
            except DataError as problem:
                return problem

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decoders, about what is refused or does not matter
            for start in range(0, len(wanted), _AHEAD):
                part = wanted[start : start + _AHEAD]
                yield from zip(part, pool.map(one, part), strict=True)

    def class_names(self) -> tuple[str, ...]:
        """A name for each class: its number where it has none; empty without labels."""
        if self.labels is None:
            return ()
        return self.classes or tuple(str(k) for k in range(int(self.labels.max()) + 1))


@contextlib.contextmanager
def open_collection(
    spec: ImageData | str | os.PathLike[str], split: str = "train", pixels: int | None = None
) -> Iterator[Collection]:
    """Open a source without decoding its pictures, where it consists of picture files.

    Args:
        spec: What :func:`~atonce.data.sources.open_data` takes.
        split: ``"train"``, ``"test"`` or ``"all"``.
        pixels: Picture files of more pixels are not decoded, and count as such that cannot be read. Default: Pillow's limit.

    Yields:
        The pictures, while the source is open.

    Raises:
        DataError: The source is unknown, empty or damaged as a whole, or has no such split.
    """
    if split not in SPLITS:
        raise DataError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    path = local_path(spec) if isinstance(spec, str) and spec in LOCAL else None
    if path is None and not isinstance(spec, ImageData) and spec != "digits" and (given := Path(spec).expanduser()).exists():
        path = given
    with contextlib.ExitStack() as stack:
        try:  # around the opening alone: what fails in the caller's block is no fault of the source
            if path is None or not holds_pictures(path):
                found = _of_images(open_data(spec, split=split))
            elif path.is_dir():
                found = _of_files(folder_files(path, split), False, pixels)
            else:
                found = _of_files(zip_parts(stack.enter_context(zip_files(path)), split), True, pixels)
        except OSError as problem:
            raise DataError(f"cannot read {problem.filename or path}: {problem.strerror or problem}") from problem
        yield found


def _of_files(parts: list[Files], unwrap: bool, pixels: int | None) -> Collection:
    from torch import cat, tensor

    found = [labelled(files, unwrap=unwrap) for files in parts]
    several = len(parts) > 1
    places = [(files, name) for files, (names, _, _) in zip(parts, found, strict=True) for name in names]
    shown = [f"{Path(files.where).name}/{name}" if several else name for files, name in places]
    others = [name for files in parts for name in files.names if not is_picture(name) and name != "dataset.json"]
    labels: Tensor | None = None
    classes = found[0][2]
    given = [part[1] for part in found if part[1] is not None]
    if len(given) == len(parts):
        if any(part[2] != classes for part in found) and all(part[2] is not None for part in found):
            classes = tuple(sorted({name for part in found for name in part[2] or ()}))
            given = [
                tensor([classes.index(part[2][k]) for k in part[1].tolist()])
                for part in found
                if part[1] is not None and part[2]
            ]
        labels = cat(given)

    def load(place: int) -> Loaded:
        files, name = places[place]
        content = files.read(name)
        kind = header(content)
        if kind is not None and pixels is not None and kind[2][0] * kind[2][1] > pixels:
            raise DataError(f"{name} is too large: {kind[2][0]}x{kind[2][1]} pixels, the limit is {pixels}")
        picture = read_picture(content, name)
        return Loaded(picture, "picture" if kind is None else f"{kind[0]}, {_MODES.get(kind[1], kind[1])}")

    source = f"{parts[0].where}: {len(places)} pictures"
    return Collection(parts[0].name, source, tuple(shown), labels, None if labels is None else classes, tuple(others), load)


def _of_images(data: ImageData) -> Collection:
    if data.shape[0] not in (1, 3):
        raise DataError(f"{data.name}: images of {data.shape[0]} channels are no pictures; grey and RGB ones can be checked")
    kind = {1: "array, grey", 3: "array, RGB"}[data.shape[0]]

    def load(place: int) -> Loaded:
        image = data.images[place].numpy()
        return Loaded(Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))), kind)

    names = tuple(f"#{place}" for place in range(len(data)))
    return Collection(data.name, data.source, names, data.labels, data.label_names, (), load)
