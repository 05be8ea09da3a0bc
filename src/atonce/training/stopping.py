"""SIGTERM and Ctrl-C as a question that the loop answers when it stands well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn SIGTERM and Ctrl-C into an event that is set; a second Ctrl-C stops at once.

    Outside the main thread, where Python lets nobody handle signals, the event is never set.

    Yields:
        The event.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None: the handler was not Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
