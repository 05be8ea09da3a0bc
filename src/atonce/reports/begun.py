"""What outputs that are made bit by bit share: cells of images, manifests and how they differ, and locks between processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.core.files import lock as lock

Facts = Mapping[str, Any]


class Stopped(Exception):
    """Somebody asked to stop; nothing that is finished is lost."""


@dataclass(frozen=True)
class Cell:
    """Images that are computed together, and those of them that are kept.

    Attributes:
        start: Index of the first image that is computed.
        size: How many are computed.
        low: Index of the first image that is kept.
        high: Index behind the last one.
    """

    start: int
    size: int
    low: int
    high: int


def only(folder: Path, known: Callable[[str], object]) -> None:
    """Refuse a folder that holds what is not ours.

    Args:
        folder: The folder.
        known: Whether a name is one of ours.

    Raises:
        InputError: There is another one.
    """
    if strangers := sorted(name for name in os.listdir(folder) if not known(name)):
        raise InputError(f"{folder} holds other things ({strangers[0]}): choose another name, nothing was changed")


def differences(there: Facts, here: Facts, leave_out: Sequence[str] = ()) -> str:
    """In what two sets of settings differ, in words.

    Args:
        there: Those found.
        here: Those wanted.
        leave_out: Names that may differ. The number of network calls always may: it follows from the others.

    Returns:
        For example ``seed 0 there, 1 here``; empty where they are equal.
    """
    keys = [key for key in here if key not in ("calls", *leave_out)]
    return ", ".join(f"{key} {there.get(key)} there, {here[key]} here" for key in keys if there.get(key) != here[key])


def read_manifest(file: Path) -> dict[str, Any] | None:
    """The settings that a manifest keeps.

    Args:
        file: The manifest.

    Returns:
        The settings; ``None`` where there is no manifest.

    Raises:
        InputError: It is damaged.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as problem:
        raise InputError(f"{file} is damaged: delete {file.parent} or choose another name") from problem
