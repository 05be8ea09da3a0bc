"""What people have packed: whole files in the person's folder, where training finds them, with their reports beside."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.studio.data_store import MAKING
from atonce.studio.train_sources import PACKS

REPORTS = "pack-reports"
CHECK = "data/check.json"
"""In a person's folder: what the last check found."""
CHECK_ADDRESS = "/check.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


@dataclass(frozen=True)
class Pack:
    """What somebody has packed.

    Attributes:
        name: Of the file.
        path: Where it is.
        bytes: How large.
        report: What was found and done; empty where it is not known.
    """

    name: str
    path: Path
    bytes: int
    report: dict[str, Any]


def packs(folder: Path) -> list[Pack]:
    """A person's packed files, by name."""
    found = []
    for path in sorted((folder / PACKS).glob("*")):
        if path.suffix.lower() not in (".zip", ".npz") or path.name.startswith(".") or path.is_symlink():
            continue
        try:
            report = json.loads((folder / REPORTS / f"{path.name}.json").read_text())
        except (OSError, ValueError):
            report = {}
        found.append(Pack(path.name, path, path.stat().st_size, report if isinstance(report, dict) else {}))
    return found


def pack_of(folder: Path, name: str | None) -> Pack:
    """One packed file.

    Args:
        folder: The person's own.
        name: Of the file.

    Returns:
        It.

    Raises:
        InputError: It is not there.
    """
    for found in packs(folder):
        if found.name == name:
            return found
    raise InputError("this packed file is not there: choose one of the list")


def remove_pack(folder: Path, name: str | None) -> None:
    """Remove a packed file and its report.

    Args:
        folder: The person's own.
        name: Of the file.

    Raises:
        InputError: It is not there.
    """
    found = pack_of(folder, name)
    found.path.unlink(missing_ok=True)
    (folder / REPORTS / f"{found.name}.json").unlink(missing_ok=True)


def new_pack(folder: Path, name: str | None, suffix: str) -> Path:
    """Where a new packed file is made before it is whole.

    Args:
        folder: The person's own.
        name: What the person calls it, with or without the suffix.
        suffix: ``.zip`` or ``.npz``.

    Returns:
        A path in a folder of its own.

    Raises:
        InputError: The name cannot be used or is taken.
    """
    text = (name or "").strip().removesuffix(suffix)
    if not _NAME.fullmatch(text):
        raise InputError(f"the name is {text[:60]!r}: use 1 to 60 letters, digits, dots, hyphens or underscores")
    if (folder / PACKS / f"{text}{suffix}").exists():
        raise InputError(f"{text}{suffix} is there already: choose another name, or remove that one first")
    place = folder / MAKING / secrets.token_hex(8)
    place.mkdir(parents=True, mode=0o700)
    return place / f"{text}{suffix}"


def finish_pack(folder: Path, made: Path, report: Path) -> Pack:
    """Put a packed file where training finds it.

    Args:
        folder: The person's own.
        made: The file, from :func:`new_pack`.
        report: Its report.

    Returns:
        The pack.

    Raises:
        InputError: A file of that name has come there meanwhile.
    """
    for name in (PACKS, REPORTS):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(made, folder / PACKS / made.name)  # unlike a rename, never over another file
    except FileExistsError as there:
        raise InputError(f"{made.name} is there already: choose another name") from there
    os.replace(report, folder / REPORTS / f"{made.name}.json")
    abandon(made)
    return pack_of(folder, made.name)


def abandon(made: Path) -> None:
    """Remove what is left of a packed file that was not finished.

    Args:
        made: The file, from :func:`new_pack`.
    """
    shutil.rmtree(made.parent, ignore_errors=True)


def file_of(folder: Path, address: str) -> Path | None:
    """The file that somebody fetches from the own folder.

    Args:
        folder: The person's own.
        address: Below the studio's: ``/packs/NAME``, ``/packs/NAME.json`` for its report, or ``/check.json``.

    Returns:
        An existing file; ``None`` for anything else.
    """
    if address == CHECK_ADDRESS:
        path = folder / CHECK
        return path if path.is_file() else None
    prefix, _, name = address.rpartition("/")
    if prefix != "/packs":
        return None
    for pack in packs(folder):
        if name == pack.name:
            return pack.path
        if name == f"{pack.name}.json" and (report := folder / REPORTS / name).is_file():
            return report
    return None
