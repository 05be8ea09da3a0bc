"""Progress of long work: how far, how fast, how long still. On stderr only, so that stdout stays for results.

On a terminal rich draws a bar (where rich is installed); everywhere else there is one plain line about every ten seconds:

    training  320/1000 kimg  32 %  1.8 kimg/s  left 0:06:12
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

_LARGE = 10_000  # images from which on kimg is shown


def format_duration(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss``, rounded to the nearest second; a question mark where nothing is known.

    Args:
        seconds: A duration in seconds. None, NaN and infinity mean that it is not known; negative ones count as zero.

    Returns:
        For example ``0:06:12``; hours are not folded into days (``49:00:00``).
    """
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def format_count(count: float, unit: str = "", *, kilo: bool = False) -> str:
    """A count with its unit, three digits or so: ``7 img``, ``1.8 kimg``, ``320 kimg``.

    Args:
        count: How many; a rate may have a fraction.
        unit: What is counted; where thousands are shown it gets a k in front.
        kilo: Show thousands. Without a unit this is for the caller to say.

    Returns:
        The number, and behind a space the unit, if there is one.
    """
    value = count / 1000 if kilo else count
    shown_unit = f"k{unit}" if kilo and unit else unit
    whole = value == int(value) or abs(value) >= 100
    text = f"{value:.0f}" if whole else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    return f"{text} {shown_unit}".rstrip()


class Progress:
    """Shows how far a piece of work is. Use it as a context manager; call :meth:`update` as often as you like.

    Args:
        title: What is done, in a word or two.
        total: How much there is to do; None where nobody knows.
        unit: What is counted. Large counts of ``img`` are shown in ``kimg``.
        start: Where the count stands already (a resumed run); it does not enter the rate.
        quiet: Show nothing at all.
        every: Seconds between two plain lines.
        stream: Where to write, stderr by default.
        clock: Seconds from any origin, never going back.
    """

    def __init__(
        self,
        title: str,
        total: float | None = None,
        unit: str = "",
        *,
        start: float = 0,
        quiet: bool = False,
        every: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.quiet = quiet
        self.every = every
        self.stream = stream if stream is not None else sys.stderr
        self.clock = clock
        self.done = start
        self.text = ""
        self._kilo = unit == "img" and max(total or 0, start) >= _LARGE
        self._begun = self._last_shown = self._last_noted = clock()
        self._window = deque([(self._begun, float(start))])
        self._shown = ""
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._begun = self._last_shown = self._last_noted = self.clock()
        self._window = deque([(self._begun, self.done)])
        if not self.quiet:
            self._live = self._rich_bar()
        if self._live is not None:
            self._live.start()
            self._task = self._live.add_task("", total=self.total, completed=self.done, line=self.line())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._note(self.clock())
        if self._live is not None:
            self._show_live()
            self._live.stop()
            self._live = None
        elif not self.quiet:
            self._print(self.line() + ("" if error is None else "  (stopped)"))

    def update(self, done: float, text: str = "") -> None:
        """Say how far the work is.

        Args:
            done: The count so far, of the same kind as ``total``; it is not an increment.
            text: A few words shown behind the numbers (a loss, a stage); empty keeps the last ones.
        """
        self.done = done
        self.text = text or self.text
        self._kilo = self._kilo or (self.unit == "img" and done >= _LARGE)
        if self.quiet:
            return
        now = self.clock()
        if now - self._last_noted >= min(1.0, self.every / 10):
            self._note(now)
        if self._live is not None:
            if now - self._last_shown >= 0.1:
                self._last_shown = now
                self._show_live()
        elif now - self._last_shown >= self.every:
            self._note(now)
            self._last_shown = now
            self._print(self.line())

    def write(self, text: str) -> None:
        """Show a line of its own without disturbing the bar; nothing in quiet mode."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            self._print(text)

    @property
    def rate(self) -> float | None:
        """Counts per second over about the last half minute; None before anything was counted."""
        (then, before), (now, done) = self._window[0], self._window[-1]
        return (done - before) / (now - then) if now > then and done > before else None

    @property
    def left(self) -> float | None:
        """Seconds until the total is reached at the present rate; None where that is not known."""
        if self.total is None:
            return None
        if self.done >= self.total:
            return 0.0
        rate = self.rate
        return None if rate is None else (self.total - self.done) / rate

    def line(self) -> str:
        """The state as one plain line, for example ``training  320/1000 kimg  32 %  1.8 kimg/s  left 0:06:12``."""
        parts = [self.title, self._counts()]
        if self.total:
            parts.append(f"{math.floor(100 * min(self.done / self.total, 1)):d} %")
        rate = self.rate
        if rate is not None:
            # A slow count of images is shown in images, whatever the unit of the total.
            parts.append(format_count(rate, self.unit, kilo=self._kilo and rate >= 1000) + "/s")
        if self.total is not None and self.done >= self.total:
            parts.append(f"took {format_duration(self.clock() - self._begun)}")
        elif self.total is not None:
            parts.append(f"left {format_duration(self.left)}")
        if self.text:
            parts.append(self.text)
        return "  ".join(part for part in parts if part)

    def _counts(self) -> str:
        if self.total is None:
            return format_count(self.done, self.unit, kilo=self._kilo)
        done = format_count(self.done, kilo=self._kilo)
        return f"{done}/{format_count(self.total, self.unit, kilo=self._kilo)}"

    def _note(self, now: float) -> None:
        """Remember (time, count) for the moving average, over half a minute but at least over two points."""
        self._last_noted = now
        if now <= self._window[-1][0]:
            self._window[-1] = (self._window[-1][0], self.done)
            return
        self._window.append((now, self.done))
        while len(self._window) > 2 and now - self._window[1][0] >= max(30.0, 3 * self.every):
            self._window.popleft()

    def _print(self, line: str) -> None:
        if line == self._shown:
            return
        self._shown = line
        # Work goes on even where nobody listens any more.
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            self.quiet = True

    def _rich_bar(self) -> Any:
        """A rich bar for this stream, or None where rich is missing or the stream is no terminal."""
        if not (hasattr(self.stream, "isatty") and self.stream.isatty()):
            return None
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress
        except ImportError:
            return None
        console = Console(file=self.stream)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        line = TextColumn("{task.fields[line]}", markup=False)
        # Only our own updates redraw; stdout is not touched, since what is printed there belongs to the results.
        return RichProgress(
            BarColumn(bar_width=20), line, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def _show_live(self) -> None:
        self._live.update(self._task, completed=self.done, total=self.total, line=self.line(), refresh=True)


def progress(
    title: str, total: float | None = None, unit: str = "", *, start: float = 0, quiet: bool = False, every: float = 10.0
) -> Progress:
    """Show progress on stderr.

    For example::

        with progress("training", total=1_000_000, unit="img") as bar:
            bar.update(done, text="loss 0.12")

    Args:
        title: What is done, in a word or two.
        total: How much there is to do; None where nobody knows.
        unit: What is counted, for example ``img``.
        start: Where the count stands already (a resumed run).
        quiet: Show nothing at all.
        every: Seconds between two plain lines, where no bar can be drawn.

    Returns:
        A :class:`Progress`, to be entered with ``with``.
    """
    return Progress(title, total, unit, start=start, quiet=quiet, every=every)
