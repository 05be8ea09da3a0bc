"""Checkpoints: one safetensors file each, named by its image count and its own checksum, so it is whole or it is not there."""

from __future__ import annotations

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

_NAME = re.compile(r"state-(\d{12})-([0-9a-f]{16})\.safetensors")


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
    """Write a checkpoint durably, then remove all but the newest ``keep``.

    The file is written under a temporary name, synced, and renamed to a name that holds its checksum: one atomic step. A kill at
    any moment leaves the previous checkpoints as they were.

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
            content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            try:
                save_file(content, temporary, metadata={"atonce": json.dumps({**facts, "images_seen": images_seen})})
            except SafetensorError as error:  # the library wraps the operating system's error
                raise OSError(28 if "No space" in str(error) else 5, str(error)) from error
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            path = folder / f"state-{images_seen:012d}-{sha256_file(temporary)[:16]}.safetensors"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
    for old in list_checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path.stat().st_mtime_ns, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, _, path in sorted(found, key=lambda item: item[:2], reverse=True)]


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
        raise ModelFileError(f"{path} is not a checkpoint of a training run (its name should be state-<images>-<checksum>.safetensors)")
    try:
        if sha256_file(path)[:16] != match[2]:
            raise ModelFileError(f"checkpoint {path} is damaged: its content does not match the checksum in its name")
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["atonce"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
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
    paths = list_checkpoints(folder)
    problems = []
    for path in paths:
        try:
            return load_checkpoint(path)
        except ModelFileError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; falling back to the one before", stacklevel=2)
    if problems:
        raise ModelFileError(f"none of the {len(paths)} checkpoints in {folder} is whole; the newest: {problems[0]}")
    return None
