"""Long work in the background, one piece for each person: it outlives the page, can be looked at and stopped."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable
from typing import Any

from atonce.core.errors import InputError
from atonce.core.progress import format_duration

AT_ONCE = 2  # of all people together: the processor is for the models


class StoppedError(Exception):
    """The person does not want the work any more."""


class Work:
    """A piece of work.

    Args:
        title: What is done, for people.
        clock: Seconds.

    Attributes:
        stage: The part of the work that is under way.
        done: Counts of that part so far.
        total: Its counts in all; 0 where nobody knows.
        result: What came of it.
        error: Why nothing came of it; a StoppedError where it was stopped.
        running: Whether it goes on.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self._clock = title, clock
        self.stage, self.done, self.total = "", 0.0, 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.running = True
        self.stopping = threading.Event()
        self.begun = self._since = clock()
        self._ended: float | None = None

    def tell(self, stage: str, done: float, total: float) -> None:
        """Say how far the work is.

        Args:
            stage: The part that is under way.
            done: Counts of it so far.
            total: Its counts in all.

        Raises:
            StoppedError: The work is to end.
        """
        if self.stopping.is_set():
            raise StoppedError
        if stage != self.stage:
            self._since = self._clock()
        self.stage, self.done, self.total = stage, done, total

    @property
    def seconds(self) -> float:
        """How long it has taken so far, or took."""
        return (self._clock() if self._ended is None else self._ended) - self.begun

    @property
    def left(self) -> float | None:
        """Seconds that this part will still take at its rate; ``None`` where nothing is known."""
        passed = self._clock() - self._since
        if self.total <= 0 or self.done <= 0 or passed <= 0:
            return None
        return max(0.0, (self.total - self.done) * passed / self.done)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """The work is over.

        Args:
            result: What came of it.
            error: Or why nothing did.
        """
        self.result, self.error, self._ended = result, error, self._clock()
        self.running = False

    def line(self) -> str:
        """How far it is, in words."""
        if not self.running:
            return "stopped" if isinstance(self.error, StoppedError) else f"took {_short(self.seconds)}"
        share = f" {min(1.0, self.done / self.total):.0%}" if self.total > 0 else ""
        left = self.left
        return f"{self.stage or 'starting'}{share}" + ("" if left is None else f", about {_short(left)} left")

    def html(self) -> str:
        """How far it is, as a bar with words."""
        share = min(1.0, self.done / self.total) if self.total > 0 else 0.0
        bar = f'<div class="at-bar" aria-hidden="true"><i style="width:{share:.1%}"></i></div>'
        said = f'<p class="at-note">{html.escape(self.title)}: {html.escape(self.line())}</p>'
        label = html.escape(f"{self.title}: {self.stage}", quote=True)
        return (
            f'<div class="at-work" role="progressbar" aria-label="{label}" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{share * 100:.0f}" aria-valuetext="{html.escape(self.line(), quote=True)}">{bar}</div>{said}'
        )


class Works:
    """What people have under way.

    Args:
        at_once: Pieces of work of all people together.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        self._at_once = at_once

    def start(self, key: str, title: str, function: Callable[[Work], Any]) -> Work:
        """Begin a piece of work in a thread of its own.

        Args:
            key: Whose it is.
            title: What is done, for people.
            function: Does it; it says how far it is by :meth:`Work.tell`, which ends it where it is to stop.

        Returns:
            The work.

        Raises:
            InputError: This person has work under way, or too many others have.
        """
        with self._lock:
            if (own := self._works.get(key)) is not None and own.running:
                raise InputError(f"{own.title} is still under way ({own.line()}): wait for it, or stop it")
            running = sum(work.running for work in self._works.values())
            if running >= self._at_once:
                raise InputError(
                    f"{running} such works of other people are under way, at most {self._at_once} may be: try again in a minute"
                )
            work = self._works[key] = Work(title)
        threading.Thread(target=_run, args=(work, function), name="studio-work", daemon=True).start()
        return work

    def get(self, key: str) -> Work | None:
        """What somebody has under way or had last."""
        return self._works.get(key)

    def stop(self, key: str) -> bool:
        """End what somebody has under way; whether there was something."""
        work = self._works.get(key)
        if work is None or not work.running:
            return False
        work.stopping.set()
        return True

    def forget(self, key: str, work: Work) -> None:
        """Leave work that is over behind, once its end has been told."""
        with self._lock:
            if self._works.get(key) is work and not work.running:
                del self._works[key]


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)


def _run(work: Work, function: Callable[[Work], Any]) -> None:
    try:
        work.end(function(work))
    except BaseException as error:
        work.end(error=error)
