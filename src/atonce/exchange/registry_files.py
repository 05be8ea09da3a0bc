"""The files of a registry entry: versions that never change, and one small file that says which of them is in use.

    REGISTRY/NAME/current.json          which version, since when, and everything that ever happened to the entry
    REGISTRY/NAME/versions/0001/        a model folder with its records, and so on

The pointer is replaced whole, so a reader sees the old version or the new one and needs no lock. Writers hold the folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError, ModelFileError
from atonce.core.files import sha256_file, write_json

FORMAT = 1
LIBRARY = "atonce-registry"
POINTER, VERSIONS = "current.json", "versions"
MARKS = ("proved", "refused", "tried")
"""What servers find of a version: it serves all callers, was taken back, or is to be tried (again); the last word counts."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[0-9]{4,9}")


@dataclasses.dataclass(frozen=True)
class Pointer:
    """What ``current.json`` says.

    Attributes:
        name: Name of the entry.
        version: The version in use.
        since: UTC time at which it came into use, ISO 8601.
        history: What happened, oldest first: ``action`` (``promote``, ``force``, ``roll-back``, or what a server found:
            :data:`MARKS`), ``version``, ``before`` (the version that was in use until then), ``at``, ``reason``, and of a
            promotion the record and its numbers.
        digests: SHA-256 of the files of each version that tell what it is: ``config.json`` and all weights.
    """

    name: str
    version: str
    since: str
    history: tuple[dict[str, Any], ...]
    digests: Mapping[str, Mapping[str, str]]


def check_name(name: str) -> str:
    """A name that can be a folder and a label.

    Args:
        name: The name of an entry.

    Returns:
        The same.

    Raises:
        InputError: It has other signs, is too long, or begins with a dot.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"the name {name!r} cannot be used: take 1 to 64 letters, digits, dots, dashes or underscores")
    return name


def version_folder(entry: Path, version: str) -> Path:
    """Where a version is.

    Args:
        entry: REGISTRY/NAME.
        version: Its number, for example ``"0001"``.

    Returns:
        The folder; it need not exist.

    Raises:
        InputError: That is no number of a version.
    """
    if not _NUMBER.fullmatch(version):
        raise InputError(f"{version!r} is no version of {entry.name}: versions are called 0001, 0002, ...")
    return entry / VERSIONS / version


def is_registry_entry(path: Path | str) -> bool:
    """Whether a folder is an entry of a registry (REGISTRY/NAME).

    Args:
        path: Any path, or a name that is none.

    Returns:
        True where it has a pointer of ours, damaged or not.
    """
    file = Path(path).expanduser() / POINTER
    try:
        return file.is_file() and (file.parent / VERSIONS).is_dir()
    except OSError:
        return False


def read_pointer(entry: Path) -> Pointer:
    """The pointer of an entry.

    Args:
        entry: REGISTRY/NAME.

    Returns:
        What it says.

    Raises:
        ModelFileError: There is none, or it is damaged.
    """
    file = entry / POINTER
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["library_name"] != LIBRARY or values["format"] != FORMAT:
            raise ModelFileError(f"format {values['format']!r}, this version reads {FORMAT}")
        digests = {str(v): {str(k): str(d) for k, d in files.items()} for v, files in values["digests"].items()}
        history = tuple(dict(each) for each in values["history"])
        found = Pointer(str(values["name"]), str(values["version"]), str(values["since"]), history, digests)
        if found.version not in digests or not all({"version", "action", "at"} <= set(each) for each in history):
            raise ModelFileError("it does not know its own version")
        version_folder(entry, found.version)
    except FileNotFoundError:
        raise ModelFileError(f"{entry} is no registry entry: it has no {POINTER} (atonce gallery promote makes one)") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise ModelFileError(f"{file} is damaged ({problem}): put it back from a copy") from problem
    return found


def write_pointer(entry: Path, pointer: Pointer) -> None:
    """Replace the pointer, whole or not at all."""
    write_json(entry / POINTER, {"library_name": LIBRARY, "format": FORMAT, **dataclasses.asdict(pointer)})


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that make a version what it is. Records and the card are not among them: they may grow."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return {file.name: sha256_file(file) for file in files}


def check_digests(entry: Path, pointer: Pointer, version: str, *, whole: bool) -> Path:
    """Compare a version with what it was when it was promoted.

    Args:
        entry: REGISTRY/NAME.
        pointer: Its pointer.
        version: The version.
        whole: Read the weights too. Without it only the configuration is read; it holds the checksums that opening the model
            compares the weights with.

    Returns:
        The version's folder.

    Raises:
        ModelFileError: A file is missing or another one than then.
    """
    folder, wanted = version_folder(entry, version), pointer.digests.get(version, {})
    if not folder.is_dir():
        raise ModelFileError(f"version {version} of {pointer.name} is gone: {folder} does not exist")
    for name, digest in wanted.items():
        if not whole and name != "config.json":
            continue
        try:
            found = sha256_file(folder / name)
        except OSError as problem:
            raise ModelFileError(f"{folder / name} cannot be read: {problem.strerror or problem}") from problem
        if found != digest:
            raise ModelFileError(f"{folder / name} was changed after its promotion: roll back, or promote the model again")
    return folder


def next_version(entry: Path, pointer: Pointer | None) -> str:
    """The number after every number that was ever used."""
    there = [path.name for path in (entry / VERSIONS).glob("*") if _NUMBER.fullmatch(path.name)]
    return f"{max(map(int, [*there, *(pointer.digests if pointer else ()), '0'])) + 1:04d}"
