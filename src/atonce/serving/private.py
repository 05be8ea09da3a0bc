"""What a server keeps is for its own account only: jobs hold pictures of callers, the audit log says who asked."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FOLDER, FILE = 0o700, 0o600


def private_folder(folder: Path) -> Path:
    """Make a folder that nobody else can look into.

    A folder that is there already, and that everybody can look into, is closed where it is ours; a group that its owner has
    let in (and others not) stays.

    Args:
        folder: The folder; those above it are made as usual.

    Returns:
        The folder.

    Raises:
        OSError: It cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=FOLDER)
    _close(folder, FOLDER)
    return folder


def private_file(file: Path) -> Path:
    """Make an empty file that nobody else can read, or close one that everybody can.

    Args:
        file: The file; its folder is there.

    Returns:
        The file.

    Raises:
        OSError: It cannot be made.
    """
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE))
    _close(file, FILE)
    return file


def _close(path: Path, mode: int) -> None:
    """Take the access of others away where they have it; what belongs to another account is its owner's to close."""
    with contextlib.suppress(PermissionError):
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            path.chmod(mode)
