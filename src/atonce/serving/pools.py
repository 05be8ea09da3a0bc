"""Threads for work that would hold up the event loop: few, and with a short queue that says no."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from atonce.serving.errors import overloaded

T = TypeVar("T")


class Pool:
    """A bounded pool of threads.

    Args:
        threads: Pieces of work that run at once.
        seconds: Longest wait for a thread; beyond it, work is refused.
        name: Of the threads.
        waiting: Pieces of work that may wait; default eight for each thread.
    """

    def __init__(self, threads: int, seconds: float, name: str, waiting: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._size, self._seconds = threads, seconds
        self._waiting = 8 * threads if waiting is None else waiting
        self._running = 0
        self._queue: list[asyncio.Future[None]] = []

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread.

        A caller that is cancelled leaves at once, but its thread is free for others only when the function has returned.

        Args:
            function: What is called.
            arguments: Its arguments.

        Returns:
            What it returns.

        Raises:
            ServiceError: No thread became free in time, or too much waits already.
        """
        await self._take()
        loop = asyncio.get_running_loop()
        try:
            # With the context of the caller, so that log lines and traces know the request.
            future = self._threads.submit(contextvars.copy_context().run, function, *arguments)
        except BaseException:
            self._free()
            raise
        future.add_done_callback(lambda _: _quietly(loop, self._free))
        return await asyncio.wrap_future(future)

    def close(self, wait: bool = True) -> None:
        """End the threads; work that has not begun is dropped."""
        self._threads.shutdown(wait=wait, cancel_futures=True)

    async def _take(self) -> None:
        """Wait for a thread, first come first served.

        Raises:
            overloaded: It takes too long.
        """
        if self._running < self._size and not self._queue:
            self._running += 1
            return
        if len(self._queue) >= self._waiting:
            raise overloaded(f"{len(self._queue)} requests wait for one of {self._size} threads: try again", self._seconds)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait_for(asyncio.shield(turn), self._seconds)
        except BaseException as problem:
            if turn.done():  # the turn came in the same moment: pass it on
                self._free()
            else:
                turn.cancel()
                self._queue.remove(turn)
            if isinstance(problem, TimeoutError):
                text = f"all {self._size} threads stayed busy for {self._seconds:g} s: try again"
                raise overloaded(text, self._seconds) from None
            raise

    def _free(self) -> None:
        if self._queue:
            self._queue.pop(0).set_result(None)  # the thread goes to the next one
        else:
            self._running -= 1


def _quietly(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call a function in a loop that may be closed by now."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)
