"""How long network calls take now: what was measured at the start, times one factor that follows the machine."""

from __future__ import annotations

from atonce.serving.buckets import Buckets

SMOOTH = 0.2  # weight of the latest call
LEAP = 4.0  # a single call changes the factor at most as if it had taken so many times longer, or shorter, than expected


class Pace:
    """Times of calls of one backend. Not safe for threads: the engine holds its lock.

    The factor is a moving mean of measured over expected time, so that a call of any size tells something about all sizes. The
    time of a call is that from the end of the one before where the engine was busy all the while: all that comes between two
    calls is part of it, and so is the wait for a device that several engines share. What is promised is reckoned with the
    moving mean of the deviation added, as for retransmissions in TCP (Jacobson 1988): the less regular the machine, the more
    careful the promise.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.spread = 0.0
        self._buckets: Buckets | None = None
        self._flight: tuple[float, int] | None = None  # when the call in flight began, and its rows
        self._ended: float | None = None  # when the last call ended, if the next one followed at once

    def start(self, buckets: Buckets) -> None:
        """The sizes and their times are known."""
        self._buckets = buckets

    @property
    def rate(self) -> float:
        """Rows a second of full calls, 0 before the start."""
        return self._buckets.rate / max(self.factor, 1e-9) if self._buckets else 0.0

    @property
    def full(self) -> float:
        """Seconds that a full call may take, with care; 0 before the start."""
        return self._expected(self._buckets.largest) if self._buckets else 0.0

    @property
    def busy(self) -> bool:
        """Whether a call is in flight."""
        return self._flight is not None

    def idle(self) -> None:
        """There is nothing to do now, so the time until the next call says nothing."""
        self._ended = None

    def begin(self, now: float, rows: int) -> None:
        """A call of so many rows begins."""
        self._flight = (now, rows)

    def end(self, now: float, counts: bool = True) -> None:
        """It has ended; ``counts`` where its time says something about others."""
        if self._flight is None or self._buckets is None:
            return
        (began, rows), self._flight = self._flight, None
        began, self._ended = began if self._ended is None else self._ended, now
        expected = self._time(rows)
        if counts and rows <= self._buckets.largest and expected > 0:
            ratio = min(max((now - began) / expected, self.factor / LEAP), self.factor * LEAP)
            self.spread += SMOOTH * (abs(ratio - self.factor) - self.spread)
            self.factor += SMOOTH * (ratio - self.factor)

    def left(self, now: float) -> float:
        """Seconds until the call in flight should end."""
        return max(self._flight[0] + self._expected(self._flight[1]) - now, 0.0) if self._flight else 0.0

    def _expected(self, rows: int) -> float:
        return self._time(rows) * (self.factor + self.spread)

    def _time(self, rows: int) -> float:
        """Seconds at the start."""
        return self._buckets.time(self._buckets.padded(rows)) if self._buckets else 0.0
