"""Threads for work that would hold up the event loop: few, shared fairly, and with a short queue that says no."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from atonce.serving.errors import overloaded

T = TypeVar("T")
_FORGET = 30.0  # seconds after which half of what a caller has used counts no more
_KNOWN = 4096  # callers whose use is remembered


@dataclass(eq=False)
class _Turn:
    """One who waits for a thread."""

    of: str
    came: asyncio.Future[None]


class Pool:
    """A bounded pool of threads, of which each caller gets a fair share.

    Of those who wait, the caller goes first whose work has taken the least time lately; those of one caller go in their order.
    So a caller whose work is slow waits for all others, and not they for it.

    Args:
        threads: Pieces of work that run at once.
        seconds: Longest wait for a thread; beyond it, work is refused.
        name: Of the threads.
        waiting: Pieces of work that may wait; default eight for each thread.
        share: Threads that one caller may have at once, and part of the places in the queue; default all of them.
        clock: Seconds.
    """

    def __init__(
        self,
        threads: int,
        seconds: float,
        name: str,
        waiting: int | None = None,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._size, self._seconds, self._clock = threads, seconds, clock
        self._waiting = 8 * threads if waiting is None else waiting
        self._each, self._each_waiting = max(1, int(share * threads)), max(1, int(share * self._waiting))
        self._running: dict[str, int] = {}
        self._queue: list[_Turn] = []
        self._used: dict[str, tuple[float, float]] = {}  # seconds of threads, and when they were counted

    async def run(self, function: Callable[..., T], *arguments: Any, of: str = "") -> T:
        """Call a function in a thread.

        A caller that is cancelled leaves at once, but its thread is free for others only when the function has returned.

        Args:
            function: What is called.
            arguments: Its arguments.
            of: Who the work is for.

        Returns:
            What it returns.

        Raises:
            ServiceError: No thread became free in time, or too much waits already.
        """
        await self._take(of)
        loop, begun = asyncio.get_running_loop(), self._clock()
        try:
            # With the context of the caller, so that log lines and traces know the request.
            future = self._threads.submit(contextvars.copy_context().run, function, *arguments)
        except BaseException:
            self._free(of, begun)
            raise
        future.add_done_callback(lambda _: _quietly(loop, self._free, of, begun))
        return await asyncio.wrap_future(future)

    def close(self, wait: bool = True) -> None:
        """End the threads; work that has not begun is dropped."""
        self._threads.shutdown(wait=wait, cancel_futures=True)

    async def _take(self, of: str) -> None:
        """Wait for a thread.

        Raises:
            overloaded: It takes too long.
        """
        if self._may(of):  # nobody who waits could take it: a thread that becomes free goes to one of them
            self._begin(of)
            return
        mine = sum(turn.of == of for turn in self._queue)
        if len(self._queue) >= self._waiting or mine >= self._each_waiting:
            who = f"{len(self._queue)} requests" if len(self._queue) >= self._waiting else f"{mine} of your requests"
            raise overloaded(f"{who} wait for one of {self._size} threads: try again", self._seconds)
        turn = _Turn(of, asyncio.get_running_loop().create_future())
        self._queue.append(turn)
        try:
            await asyncio.wait_for(asyncio.shield(turn.came), self._seconds)
        except BaseException as problem:
            if turn.came.done():  # the turn came in the same moment: pass it on
                self._free(of, self._clock())
            else:
                turn.came.cancel()
                self._queue.remove(turn)
            if isinstance(problem, TimeoutError):
                text = f"all {self._size} threads stayed busy for {self._seconds:g} s: try again"
                raise overloaded(text, self._seconds) from None
            raise

    def _may(self, of: str) -> bool:
        """Whether a thread is free, and free for a caller."""
        return sum(self._running.values()) < self._size and self._running.get(of, 0) < self._each

    def _begin(self, of: str) -> None:
        self._running[of] = self._running.get(of, 0) + 1

    def _free(self, of: str, begun: float) -> None:
        """A thread is free: count what it was used for, and give it to the next one."""
        now = self._clock()
        if left := self._running.pop(of) - 1:
            self._running[of] = left
        self._used[of] = (self._recent(of, now) + now - begun, now)
        if len(self._used) > _KNOWN:
            for caller in sorted(self._used, key=lambda each: self._recent(each, now))[: _KNOWN // 2]:
                del self._used[caller]
        able = [turn for turn in self._queue if self._may(turn.of)]
        if able:
            # What still runs counts as well: it is not known yet how long it will take.
            following = min(able, key=lambda turn: (self._running.get(turn.of, 0), self._recent(turn.of, now)))
            self._queue.remove(following)
            self._begin(following.of)
            following.came.set_result(None)

    def _recent(self, of: str, now: float) -> float:
        """Seconds of threads that a caller has had lately."""
        seconds, when = self._used.get(of, (0.0, now))
        return seconds * math.exp2((when - now) / _FORGET)


def _quietly(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a loop that may be closed by now."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)
