"""Turns on a device that several engines share: one call at a time, first come first served."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A lock that is given in the order in which it was asked for. Python's own may go to the same thread again and again.

    Two networks that run at once on the same cores slow each other down by more than they gain, since the threads of each wait
    for one another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._taken = False

    def __enter__(self) -> Turns:
        """Wait for the turn."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return self
            mine = threading.Event()
            self._queue.append(mine)
        mine.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        """Give it to the next one."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._taken = False
