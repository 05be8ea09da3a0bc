"""Files that are either whole or absent: write to a temporary name, fsync, rename; checksums; folders we own."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atonce.core.errors import StorageError


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn an ``OSError`` raised while writing ``path`` into one clear :class:`StorageError`.

    Args:
        path: What is written, for the message.

    Raises:
        StorageError: The disk is full, a quota is reached, or the place cannot be written.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left on the disk while writing {path}: free some space and resume; nothing written before is lost"
        else:
            text = f"cannot write {path}: {error.strerror or error}"
        raise StorageError(text) from error


def write_atomic(path: Path | str, write: Callable[[Path], None], *, mode: int = 0o644) -> None:
    """Let ``write`` fill a temporary file in the same folder, then put it in place durably.

    A reader sees the old content or the new, never a part; after a crash at any moment one of the two is there.

    Args:
        path: Where the content ends up.
        write: Receives the temporary path and writes the whole content to it.
        mode: Permissions of the file; until it is whole, only its owner can read it.

    Raises:
        StorageError: The content could not be written; ``path`` is as it was.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the platform lets folders be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write bytes atomically (see :func:`write_atomic`)."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def write_text(path: Path | str, content: str) -> None:
    """Write UTF-8 text atomically (see :func:`write_atomic`)."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically (see :func:`write_atomic`)."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a folder against other processes of ours; the system lets go of it when the process ends, however it ends.

    Args:
        folder: The folder.
        wait: Wait until it is free.

    Yields:
        Whether it is held; also true where the system or the disk knows no locks.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        except OSError:
            held = True
        yield held
    finally:
        os.close(handle)
