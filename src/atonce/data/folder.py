"""Many picture files: a folder or a zip, with class subfolders or EDM's ``dataset.json`` as labels."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atonce.core.errors import DataError
from atonce.data.dataset import ImageData, join
from atonce.data.limits import MAX_FILE_BYTES, check_memory, one_line
from atonce.data.pictures import SUFFIXES, Shaping, pixels, read_picture, shape_picture

_AHEAD = 512  # pictures handed to the decoding threads at a time
_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Files:
    """Named files: relative names with ``/``, and a function that reads one whole."""

    names: Sequence[str]
    read: Callable[[str], bytes]
    where: str
    name: str


def open_folder(path: Path, shaping: Shaping, *, split: str = "train", skip_bad: bool = False) -> ImageData:
    """Read all pictures below a folder, in the order of their relative names.

    Where all pictures lie in subfolders, the first-level subfolders are the classes; where these are called ``train`` and
    ``test`` (or ``val``), they are splits instead. A ``dataset.json`` at the top overrides this (see :func:`open_files`).

    Args:
        path: The folder.
        shaping: Size, channels and crop of the result.
        split: ``"train"``, ``"test"`` or ``"all"``; without split folders everything is ``"train"`` and there is no ``"test"``.
        skip_bad: Leave unreadable pictures out, with a warning, instead of refusing.

    Returns:
        The images.

    Raises:
        DataError: There are no pictures, one is unreadable, or their sizes differ.
    """
    return join([open_files(files, shaping, skip_bad=skip_bad) for files in folder_files(path, split)])


def folder_files(path: Path, split: str) -> list[Files]:
    """The files below a folder, for each folder of a split; see :func:`open_folder`.

    Args:
        path: The folder.
        split: ``"train"``, ``"test"`` or ``"all"``.

    Returns:
        One set of files, or one for each folder of the split.

    Raises:
        DataError: There is no such split.
    """
    names = sorted(_walk(path))
    tops = {name.split("/")[0].lower() if "/" in name else "" for name in names if is_picture(name)}
    if "dataset.json" in names or not tops <= {*_TRAIN, *_TEST} or not tops & {*_TRAIN}:
        if split == "test":
            text = "its pictures are one set (subfolders train and test would split it)"
            raise DataError(f"{path} has no test split: {text}; ask for the split 'train' or 'all'")
        return [_tree(path, names, path.name)]
    wanted = {"train": _TRAIN, "test": _TEST, "all": _TRAIN + _TEST}[split]
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and folder.name.lower() in wanted]
    if not folders:
        raise DataError(f"{path} has no folder for the split {split!r}: there is {', '.join(sorted(tops))}")
    return [_tree(folder, sorted(_walk(folder)), path.name) for folder in folders]


def _tree(root: Path, names: list[str], name: str) -> Files:
    return Files(names, lambda file: _read_file(root / file), f"folder {root}", name)


def _walk(root: Path) -> Iterator[str]:
    seen = set()
    for folder, inner, names in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        base = Path(folder).relative_to(root)
        yield from ((base / name).as_posix() for name in names)


def _raise(problem: OSError) -> None:
    raise problem  # a folder that may not be listed is no empty folder


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is absurdly large for one picture (limit {MAX_FILE_BYTES >> 20} MiB)")
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def open_zip(path: Path, shaping: Shaping, *, split: str = "train", skip_bad: bool = False) -> ImageData:
    """Read all pictures of a zip archive; splits, class subfolders and ``dataset.json`` as in a folder.

    A single folder around everything, as archivers add it, is not taken for a class.

    Args:
        path: The archive.
        shaping: Size, channels and crop of the result.
        split: ``"train"``, ``"test"`` or ``"all"``, as for a folder.
        skip_bad: Leave unreadable pictures out, with a warning, instead of refusing.

    Returns:
        The images.

    Raises:
        DataError: The archive is damaged, or as for a folder.
    """
    with zip_files(path) as files:
        parts = zip_parts(files, split)
        return join([open_files(part, shaping, skip_bad=skip_bad, unwrap=True) for part in parts])


@contextlib.contextmanager
def zip_files(path: Path) -> Iterator[Files]:
    """The files of a zip archive, while it is open.

    Args:
        path: The archive.

    Yields:
        The files; nothing is unpacked to the disk.

    Raises:
        DataError: The archive is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path} is a truncated or damaged zip archive: {one_line(problem)}") from problem
    with archive:

        def read(name: str) -> bytes:
            info = archive.getinfo(name)
            if info.file_size > MAX_FILE_BYTES:
                raise DataError(f"{path}: {name} unpacks to {info.file_size} bytes (limit {MAX_FILE_BYTES >> 20} MiB)")
            try:
                return archive.read(info)  # never more than the declared size
            except Exception as problem:  # damaged streams fail in several ways; a password is a RuntimeError
                raise DataError(f"{path}: {name} cannot be unpacked: {one_line(problem)}") from problem

        names = sorted({info.filename for info in archive.infolist() if not info.is_dir()})
        names = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")[:-1])]
        yield Files(names, read, f"zip {path}", path.stem)


def zip_parts(files: Files, split: str) -> list[Files]:
    """The files of a zip, for each folder of a split; see :func:`open_folder`.

    Args:
        files: Of the whole archive.
        split: ``"train"``, ``"test"`` or ``"all"``.

    Returns:
        One set of files, or one for each folder of the split.

    Raises:
        DataError: There is no such split.
    """
    parts = [name.split("/") for name in files.names if is_picture(name)]
    depth = 0
    while parts and all(len(part) > depth + 2 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    tops = {part[depth] if len(part) > depth + 1 else "" for part in parts}
    split_up = {top.lower() for top in tops} <= {*_TRAIN, *_TEST} and any(top.lower() in _TRAIN for top in tops)
    if "dataset.json" in files.names or not split_up:
        if split == "test":
            raise DataError(f"{files.where} is one set without a test split; ask for the split 'train' or 'all'")
        return [files]
    wanted = {"train": _TRAIN, "test": _TEST, "all": _TRAIN + _TEST}[split]
    chosen = sorted(top for top in tops if top.lower() in wanted)
    if not chosen:
        raise DataError(f"{files.where} has no folder for the split {split!r}: there is {', '.join(sorted(tops))}")
    return [_below(files, "/".join([*parts[0][:depth], top])) for top in chosen]


def _below(files: Files, prefix: str) -> Files:
    names = [name.removeprefix(f"{prefix}/") for name in files.names if name.startswith(f"{prefix}/")]
    return Files(names, lambda name: files.read(f"{prefix}/{name}"), f"{files.where}/{prefix}", files.name)


def open_files(files: Files, shaping: Shaping, *, skip_bad: bool = False, unwrap: bool = False) -> ImageData:
    """Decode the pictures among named files and give them their labels.

    Labels come from ``dataset.json`` at the top in EDM's form, ``{"labels": [["00000/img00000000.png", 6], ...]}``, where
    null (for all, or for any one picture) means that there are none, and ``"names"`` may name the classes; else from
    first-level subfolders when every picture is in one. Grey and RGB pictures together become RGB.

    Args:
        files: The files.
        shaping: Size, channels and crop of the result.
        skip_bad: Leave unreadable pictures out, with a warning, instead of refusing.
        unwrap: Look through a single folder around all others.

    Returns:
        The images.

    Raises:
        DataError: There are no pictures, one is unreadable, sizes differ, or the labels do not fit.
    """
    names, labels, classes = labelled(files, unwrap=unwrap)
    images, kept, bad = _decode(files, names, shaping, skip_bad)
    source = f"{files.where}: {len(kept)} pictures"
    if bad:
        source += f", {len(bad)} unreadable ones left out"
        more = "" if len(bad) <= 3 else f" and {len(bad) - 3} more"
        text = f"{files.where}: {len(bad)} of {len(names)} pictures left out: {'; '.join(bad[:3])}{more}"
        warnings.warn(text, stacklevel=2)
    if labels is not None:
        labels = labels[torch.tensor(kept)]
    return ImageData(images, labels, classes, files.name, source)


def labelled(files: Files, *, unwrap: bool = False) -> tuple[list[str], Tensor | None, tuple[str, ...] | None]:
    """The pictures among named files and their labels; see :func:`open_files`.

    Args:
        files: The files.
        unwrap: Look through a single folder around all others.

    Returns:
        Names of the pictures, labels int64 [n] or ``None``, and names of the classes or ``None``.

    Raises:
        DataError: There are no pictures, or the labels do not fit.
    """
    names = [name for name in files.names if is_picture(name)]
    if not names:
        raise DataError(f"{files.where} holds no pictures ({', '.join(s[1:] for s in SUFFIXES)}), also not in subfolders")
    labels, classes = _json_labels(files, names) if "dataset.json" in files.names else _folder_labels(names, unwrap)
    return names, labels, classes


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name; hidden files are not."""
    last = name.rsplit("/", 1)[-1].lower()
    return last.endswith(SUFFIXES) and not last.startswith(".")


def _folder_labels(names: list[str], unwrap: bool) -> tuple[Tensor | None, tuple[str, ...] | None]:
    parts = [name.split("/") for name in names]
    while unwrap and all(len(p) > 2 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    if any(len(p) < 2 for p in parts):
        return None, None
    classes = tuple(sorted({p[0] for p in parts}))
    number = {name: k for k, name in enumerate(classes)}
    return torch.tensor([number[p[0]] for p in parts]), classes


def _json_labels(files: Files, names: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    where = f"dataset.json of {files.where}"
    try:
        content: Any = json.loads(files.read("dataset.json"))
        entries: Any = content["labels"]
        table = None if entries is None else {name.replace("\\", "/"): label for name, label in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(f'{where} is not of the form {{"labels": [["name.png", 0], ...]}}: {one_line(problem)}') from problem
    if table is None:
        return None, None
    if missing := next((name for name in names if name not in table), None):
        raise DataError(f"{where} has no entry for {missing}")
    found = [table[name] for name in names]
    if any(label is None for label in found):
        return None, None
    for name, label in zip(names, found, strict=True):
        if type(label) is not int or not 0 <= label < 1 << 31:
            raise DataError(f"{where}: the label of {name} is {label!r}, but labels are whole numbers from 0")
    classes = content.get("names")
    if classes is None:
        return torch.tensor(found), None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or max(found) >= len(classes):
        raise DataError(f"{where}: names must be a list of at least {max(found) + 1} names of classes, or be left out")
    return torch.tensor(found), tuple(classes)


def _decode(files: Files, names: list[str], shaping: Shaping, skip_bad: bool) -> tuple[Tensor, list[int], list[str]]:
    """Images [n, C, H, W], the positions in ``names`` they come from, and messages about the others."""

    def one(name: str) -> NDArray[np.uint8] | DataError:
        try:
            content = files.read(name)
            picture = read_picture(content, f"{name} ({files.where})")
            return pixels(shape_picture(picture, shaping, f"{name} ({files.where})"))
        except DataError as problem:
            return problem

    result: NDArray[np.uint8] | None = None
    first, kept, bad = "", list[int](), list[str]()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused at the same limit
        for start in range(0, len(names), _AHEAD):
            for place, image in enumerate(pool.map(one, names[start : start + _AHEAD]), start):
                if isinstance(image, DataError):
                    if not skip_bad:
                        raise DataError(f"{image}; bad pictures can be left out (skip_bad)") from image
                    bad.append(str(image))
                    continue
                if result is None:
                    check_memory(image.size * len(names), f"{len(names)} pictures like {names[place]}")
                    first, result = names[place], np.empty((len(names), *image.shape), np.uint8)
                if image.shape[1:] != result.shape[2:]:
                    sizes = [f"{name} is {a.shape[-1]}x{a.shape[-2]}" for name, a in ((first, result), (names[place], image))]
                    raise DataError(
                        f"the pictures of {files.where} differ in size ({', '.join(sizes)}): give one size (--size)"
                    )
                if len(image) > result.shape[1]:  # the first colour picture after grey ones: all become RGB
                    check_memory(result.size * 3, f"{len(names)} RGB pictures")
                    result = np.repeat(result, 3, axis=1)
                result[len(kept)] = image
                kept.append(place)
    if result is None:
        raise DataError(f"none of the {len(names)} pictures of {files.where} can be read: {bad[0]}")
    return torch.from_numpy(result[: len(kept)]), kept, bad
