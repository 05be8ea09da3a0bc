"""Checkpoints: one safetensors file each, named by its image count and its own checksum, so it is whole or it is not there."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atonce.core.errors import ModelFileError
from atonce.core.files import sha256_file, storage_errors, sync_folder

_NAME = re.compile(r"state-(\d{12,})-([0-9a-f]{16})\.safetensors")
_KEY = "atonce"  # of our facts in the file's metadata


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: Its file.
        images_seen: The image clock.
        tensors: All tensors, by slash-separated names, on the CPU.
        facts: Everything else, as JSON values.
    """

    path: Path
    images_seen: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, images_seen: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint durably, then remove what it replaces.

    The file is written under a temporary name, synced, and renamed to a name that holds its checksum: one atomic step. A kill
    at any moment leaves the previous checkpoints as they were.

    This checkpoint and the ``keep - 1`` before it stay. Those with a later clock go too: a run stands behind them only if they
    were found damaged, and they must not crowd out whole ones.

    Args:
        folder: Where checkpoints live.
        images_seen: The image clock.
        tensors: Tensors by name.
        facts: JSON values.
        keep: Checkpoints to keep, 1 or more.

    Returns:
        The file.

    Raises:
        StorageError: It could not be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".writing.tmp"
        try:
            _write(temporary, tensors, {**facts, "images_seen": images_seen})
            path = folder / f"state-{images_seen:012d}-{sha256_file(temporary)[:16]}.safetensors"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
        others = [other for other in list_checkpoints(folder) if other != path]
        earlier = [other for other in others if _images(other) <= images_seen]
        for old in set(others) - set(earlier[: keep - 1]):
            old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first. Files with other names are nobody's checkpoints."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_images(path), path.stat().st_mtime_ns), reverse=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and verify its checksum.

    Args:
        path: A file written by :func:`save_checkpoint`.

    Returns:
        Its content.

    Raises:
        ModelFileError: It is not one of ours, damaged or unreadable.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        wanted = "state-<images>-<checksum>.safetensors"
        raise ModelFileError(f"{path} is not a checkpoint of a training run (its name should be {wanted})")
    try:
        digest = sha256_file(path)[:16]
        if digest != match[2]:
            raise ModelFileError(f"checkpoint {path} is damaged: its content does not match the checksum in its name")
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            # Copies: what the library gives is a view of the file, which would hold on to it after it is removed.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except ModelFileError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelFileError(f"checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(path, int(match[1]), tensors, facts)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in a warning and passed over.

    Args:
        folder: Where checkpoints live.

    Returns:
        The checkpoint, or ``None`` where there is none.

    Raises:
        ModelFileError: There are checkpoints, but none is whole.
    """
    problems: list[str] = []
    found = None
    for path in list_checkpoints(folder):
        try:
            found = load_checkpoint(path)
            break
        except ModelFileError as error:
            problems.append(str(error))
    if problems and found is None:
        count = len(problems)
        raise ModelFileError(
            f"none of the {count} checkpoints in {folder} is whole; to start again, remove them: {problems[0]}"
        )
    for problem in problems:
        assert found is not None
        warnings.warn(f"{problem}; falling back to {found.path.name}", stacklevel=2)
    return found


def _images(path: Path) -> int:
    """The clock of a checkpoint, by its name."""
    return int(path.name.split("-")[1])


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(content, path, metadata={_KEY: json.dumps(facts)})
    except SafetensorError as error:  # the library wraps the operating system's error
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
    path.chmod(0o644)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
