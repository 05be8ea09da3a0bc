"""How often: limits in words, such as ``600/minute`` or ``100000/day``, and the windows in which this process counts."""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from collections.abc import Callable

from atonce.core.errors import InputError, MissingExtraError

try:
    from limits import RateLimitItem, parse_many
    from limits.aio.storage import MovingWindowSupport, Storage
except ImportError as error:
    raise MissingExtraError("counting requests needs more packages: pip install 'atonce[serve]'") from error

MOST = 1_000_000
"""The largest amount of a limit. A window remembers each unit in Redis, so it costs memory there."""


@functools.lru_cache(maxsize=4096)
def parse_limit(text: str, what: str = "a limit") -> tuple[RateLimitItem, ...]:
    """Limits in words.

    Args:
        text: ``AMOUNT/PERIOD`` with second, minute, hour, day, month or year; ``5/10 seconds``; several with semicolons.
        what: What to call it in messages.

    Returns:
        The limits, one or more.

    Raises:
        InputError: It says something else, or the amount is absurd.
    """
    try:
        found = tuple(parse_many(text))
    except ValueError:
        found = ()
    if not found:
        raise InputError(f"{what} is {text[:100]!r}: give an amount and a time, for example 600/minute or 100000/day")
    for item in found:
        if not 1 <= item.amount <= MOST or item.get_expiry() < 1:
            raise InputError(f"{what} is {text[:100]!r}: the amount must be 1 to {MOST:,}; take a shorter time for more")
    return found


class MemoryWindows(Storage, MovingWindowSupport):
    """Moving windows in this process, exact: an entry for each request with its cost, not one for each unit.

    The storage in memory that the limits library brings looks at every key on every request, a thread's work each; with the
    thousands of addresses that an open service sees, that alone would occupy the process.

    Args:
        clock: Seconds from any origin, never going back.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self._windows: dict[str, _Window] = {}
        self._look_at = 1024

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What can fail: nothing."""
        return ()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take an amount if the window has room for all of it.

        Args:
            key: Whose window, and of which limit.
            limit: Units in the window at once.
            expiry: Length of the window, seconds.
            amount: Units to take.

        Returns:
            Whether they were taken.
        """
        now = self.clock()
        window = self._windows.get(key)
        if window is None:
            self._forget(now)
            window = self._windows[key] = _Window(expiry)
        window.slide(now)
        if window.total + amount > limit:
            return False
        window.add(now, amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """The oldest time among the newest units of a window.

        Args:
            key: Whose window.
            limit: How many units to look at, newest first.
            expiry: Length of the window, seconds.

        Returns:
            The time of the oldest of them, and how many there are.
        """
        now = self.clock()
        window = self._windows.get(key)
        if window is None:
            return now, 0
        window.slide(now)
        count, oldest = 0, now
        for moment, amount in reversed(window.entries):
            count, oldest = count + amount, moment
            if count >= limit:
                break
        return oldest, min(count, limit)

    def __len__(self) -> int:
        return len(self._windows)

    def _forget(self, now: float) -> None:
        """Drop empty windows, now and then, so that the work for each request stays the same on average."""
        if len(self._windows) >= self._look_at:
            for window in self._windows.values():
                window.slide(now)
            self._windows = {key: window for key, window in self._windows.items() if window.total}
            self._look_at = max(1024, 2 * len(self._windows))

    async def check(self) -> bool:
        """Always there."""
        return True

    async def reset(self) -> int | None:
        """Forget everything; how many windows there were."""
        count = len(self._windows)
        self._windows.clear()
        return count

    async def clear(self, key: str) -> None:
        """Forget one window."""
        self._windows.pop(key, None)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a window, whatever is in it, and say how much that is."""
        await self.acquire_entry(key, sys.maxsize, expiry, amount)
        return await self.get(key)

    async def get(self, key: str) -> int:
        """What is in a window now."""
        window = self._windows.get(key)
        if window is None:
            return 0
        window.slide(self.clock())
        return window.total

    async def get_expiry(self, key: str) -> float:
        """When the oldest entry of a window leaves it, on this storage's clock; now, where there is none."""
        now, window = self.clock(), self._windows.get(key)
        if window is None:
            return now
        window.slide(now)
        return window.entries[0][0] + window.seconds if window.entries else now


class _Window:
    __slots__ = ("entries", "seconds", "total")

    def __init__(self, seconds: float) -> None:
        self.entries: deque[tuple[float, int]] = deque()
        self.seconds, self.total = seconds, 0

    def slide(self, now: float) -> None:
        while self.entries and self.entries[0][0] < now - self.seconds:
            self.total -= self.entries.popleft()[1]

    def add(self, now: float, amount: int) -> None:
        self.total += amount
        self.entries.append((now, amount))
