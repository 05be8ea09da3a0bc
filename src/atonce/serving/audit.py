"""Who asked for what: one line of JSON for each request, without content and without keys, written by a thread of its own.

The log never holds a request up. Where the disk is full or too slow, lines are lost rather than requests; how many is counted,
and said in the log itself as soon as it can be written again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atonce.core.files import lock
from atonce.serving.private import private_folder
from atonce.serving.settings import ServeSettings

MAX_BYTES = 64 << 20
"""Size at which the file is put aside."""
KEPT_FILES = 8
"""Files that are kept beside it, ``audit.1.jsonl`` the newest."""
WAITING = 10_000
"""Lines that may wait to be written."""

_log = logging.getLogger("atonce.serving.audit")


class Audit:
    """The audit log of one server: ``audit.jsonl`` in its state folder, which several processes may share.

    Args:
        settings: ``state`` is the folder.
        max_bytes: Size at which the file is put aside.
        kept_files: Files that are kept beside it.
        waiting: Lines that may wait.
    """

    def __init__(
        self, settings: ServeSettings, *, max_bytes: int = MAX_BYTES, kept_files: int = KEPT_FILES, waiting: int = WAITING
    ) -> None:
        self.path = Path(settings.state) / "audit.jsonl"
        self._max_bytes, self._kept = max_bytes, kept_files
        self._queue: queue.Queue[str | None] = queue.Queue(waiting)
        self._lost, self._unsaid, self._counting = 0, 0, threading.Lock()
        self._said = float("-inf")
        self._file: int | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    @property
    def lost(self) -> int:
        """Lines that could not be written since the start."""
        return self._lost

    def write(self, event: Mapping[str, Any]) -> None:
        """Note an event; returns at once.

        Args:
            event: What JSON can hold. Control characters are escaped, so nobody can forge a line.
        """
        try:
            line = json.dumps({"time": round(time.time(), 3), **event}, separators=(",", ":"), default=str)
        except (TypeError, ValueError) as error:
            line = json.dumps({"time": round(time.time(), 3), "event": "unwritable", "error": type(error).__name__})
        if self._closed:
            self._lose()
            return
        self._start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._lose()

    def flush(self) -> None:
        """Wait until everything that was noted is written or lost."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.join()

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                    self._thread.start()

    def _lose(self, count: int = 1) -> None:
        with self._counting:
            self._lost += count
            self._unsaid += count

    def _run(self) -> None:
        while True:
            lines = [self._queue.get()]
            while len(lines) < 1000 and lines[-1] is not None:
                try:
                    lines.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            texts = [line for line in lines if line is not None]
            try:
                self._put(texts)
            except OSError as error:
                self._lose(len(texts))
                self._drop_file()
                if time.monotonic() - self._said > 60:
                    self._said = time.monotonic()
                    _log.error("the audit log cannot be written (%s): lines are lost until it can", error.strerror or error)
            for _ in lines:
                self._queue.task_done()
            if lines[-1] is None:
                self._drop_file()
                return

    def _put(self, lines: list[str]) -> None:
        """Append lines, each whole.

        Raises:
            OSError: The disk is full, for example.
        """
        with self._counting:
            unsaid = self._unsaid
        if unsaid:
            lines = [json.dumps({"time": round(time.time(), 3), "event": "lines_lost", "lines": unsaid}), *lines]
        if not lines:
            return
        content = "".join(line + "\n" for line in lines).encode()
        file = self._open()
        before = os.fstat(file).st_size
        written = os.write(file, content)
        if written < len(content):  # a disk that fills up takes a part; do not leave half a line
            if os.fstat(file).st_size == before + written:
                os.ftruncate(file, before)
            raise OSError(28, "the disk took a part only")
        with self._counting:
            self._unsaid -= unsaid

    def _open(self) -> int:
        """The file to append to, after putting a full one aside.

        Raises:
            OSError: The folder cannot be written.
        """
        if self._file is not None and not self._is_current(self._file):  # another process has put it aside
            self._drop_file()
        if self._file is not None and os.fstat(self._file).st_size >= self._max_bytes:
            self._rotate(self._file)
            self._drop_file()
        if self._file is None:
            private_folder(self.path.parent)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _rotate(self, file: int) -> None:
        """Put the file aside, unless another process does or did.

        Raises:
            OSError: The folder cannot be written.
        """
        with lock(self.path, wait=True):
            if not self._is_current(file):
                return
            names = [self.path, *(self.path.with_name(f"audit.{k}.jsonl") for k in range(1, self._kept + 1))]
            for newer, older in reversed(list(zip(names, names[1:], strict=False))):
                if newer.exists():
                    newer.replace(older)

    def _drop_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
