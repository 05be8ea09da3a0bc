"""Where log lines go beside log.jsonl: TensorBoard events, where tensorboard is installed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atonce.core.files import storage_errors

_NO_SCALARS = ("images", "seconds")


class Events:
    """TensorBoard scalars over the image clock. Without the package this does nothing.

    Events are written at once and by this thread: a full disk is met here, where it can be reported, and a kill loses nothing.

    Args:
        folder: Where event files go.
        images_seen: Clock at which this part of the run starts; later events of an interrupted part are hidden.

    Raises:
        StorageError: The file cannot be made.
    """

    def __init__(self, folder: Path, images_seen: int) -> None:
        self._writer: Any = None
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            return
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{images_seen}"
            self._writer = RecordWriter(open(folder / name, "ab"))  # noqa: SIM115 - closed by close()
            try:
                self._add(file_version="brain.Event:2")
                # What stands at a later step in older files was not reached by the checkpoint, and is written again.
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._add(step=images_seen + 1, session_log=start)
            except OSError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of one log line; lists become one scalar for each noise bin.

        Args:
            line: Values by name; ``images`` is the clock.

        Raises:
            StorageError: The disk is full.
        """
        if self._writer is None:
            return
        scalars: dict[str, float] = {}
        for name, value in line.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _NO_SCALARS:
                scalars[name] = value
            elif name.endswith("_by_sigma"):
                scalars |= {f"{name}/{i}": v for i, v in enumerate(value) if v is not None}
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        with storage_errors(self._folder):
            self._add(step=line["images"], summary=self._summary(value=values))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            # Every event is out already; what a full disk refused has been reported.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _add(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()
