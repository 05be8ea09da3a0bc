"""Who goes into the next network call, and how long a newcomer would wait: the order of the queue, without threads.

Four queues, each first in, first out:

- ``new``: first calls of interactive requests, at most one full call of rows of each;
- ``begun``: further calls of interactive requests (later steps, rows beyond the first full call, later calls of an edit);
- ``bulk_new`` and ``bulk``: the same for jobs and the watch.

A call takes ``begun`` rows first, so that what has begun is soon finished and its memory free; but while new requests wait,
half of the call is theirs. So a request of many steps, or many of them, never hold a small one up: it shares the next call
with them. A row that needs another call goes to the end of ``begun``: those that run for long take turns.

Bulk rows fill the padding of interactive calls for nothing, have the device to themselves when nothing interactive waits, and
once their oldest has waited for longer than the promise, an eighth of each call, so that they are slow under load but never
starve.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from atonce.serving.work import Piece, Work

BULK_SHARE = 8  # one row in so many, where bulk rows have waited for too long


class Line:
    """One queue of pieces that knows how many rows of the network wait in it."""

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.cost = 0  # rows of the network
        self.several = 0  # of them, those of requests that will need further calls

    def __bool__(self) -> bool:
        return bool(self.pieces)

    def append(self, piece: Piece, *, left: bool = False) -> None:
        """At the end, or at the front."""
        (self.pieces.appendleft if left else self.pieces.append)(piece)
        self._count(piece, 1)

    def pop(self) -> Piece:
        """The first one."""
        piece = self.pieces.popleft()
        self._count(piece, -1)
        return piece

    def forget(self, gone: Callable[[Work], bool]) -> None:
        """Take out the pieces of some requests."""
        for _ in range(len(self.pieces)):
            piece = self.pop()
            if not gone(piece.work):
                self.append(piece)

    def of(self, weights: str | None) -> int:
        """Rows for one set of weights."""
        return sum(piece.cost for piece in self.pieces if piece.work.weights == weights)

    def _count(self, piece: Piece, sign: int) -> None:
        self.cost += sign * piece.cost
        self.several += sign * piece.cost * piece.work.several


class Lanes:
    """The queues. Not safe for threads: the engine holds its lock.

    Args:
        promise: Seconds that a call of an accepted interactive request may wait.
    """

    def __init__(self, promise: float) -> None:
        self.promise = promise
        self.limit = 1  # rows of one call
        self.bulk_limit = 1  # rows of a call in which nothing is interactive
        self.new, self.begun, self.bulk_new, self.bulk = Line(), Line(), Line(), Line()
        self.engaged: dict[object, int] = {}  # rows of what has begun and will need further calls, wherever they are now
        self._held = 0  # rows beyond the first full call of requests of which nothing has begun
        self._fed = 0.0  # when bulk rows were last in a call, or came to an empty queue
        self._odd = False

    # ---- what is there

    def __len__(self) -> int:
        """Rows that wait, of both lanes."""
        return sum(line.cost for line in self._all()) + self._held

    @property
    def interactive(self) -> int:
        """Interactive rows that wait."""
        return self.new.cost + self.begun.cost + self._held

    def _all(self) -> tuple[Line, ...]:
        return self.begun, self.new, self.bulk, self.bulk_new

    # ---- coming and going

    def add(self, work: Work, now: float) -> None:
        """A request comes in; what is more than a full call of it waits until the first of it has begun."""
        first = max(self.limit // work.width, 1) if work.lane == "interactive" else work.n
        piece = Piece(work, 0, work.n)
        if work.n > first:
            piece, work.rest = piece.split(first)
            self._held += work.rest.cost
        work.several = work.calls > 1 or work.rest is not None or work.session is not None
        if work.lane == "bulk" and not self.bulk and not self.bulk_new:
            self._fed = now
        further = work.session is not None and work.session.begun
        if further and work.lane == "interactive":
            self.engaged[work.owner] = work.n * work.width
        self._line(work.lane, further).append(piece)

    def again(self, piece: Piece) -> None:
        """Rows that were in a call need another one."""
        self._line(piece.work.lane, True).append(piece)

    def forget(self, gone: Callable[[Work], bool]) -> None:
        """Take out the pieces of some requests."""
        for piece in self.new.pieces:
            if piece.work.rest is not None and gone(piece.work):
                self._released(piece.work)
        for line in self._all():
            line.forget(gone)

    def release(self, owner: object) -> None:
        """A request, or an edit, will need no further call."""
        self.engaged.pop(owner, None)

    def _line(self, lane: str, begun: bool) -> Line:
        if lane == "bulk":
            return self.bulk if begun else self.bulk_new
        return self.begun if begun else self.new

    # ---- the next call

    def take(self, now: float, padded: Callable[[int], int]) -> list[Piece]:
        """The rows of the next call, all for one set of weights.

        Args:
            now: The time.
            padded: Size to which a number of rows is filled up.

        Returns:
            Pieces, at most ``limit`` rows of the network together, but always at least one row; empty where none waits.
        """
        lines = [line for line in self._all() if line]
        if not lines:
            return []
        waiting = [line for line in (self.begun, self.new) if line]
        oldest = min(waiting or lines, key=lambda line: line.pieces[0].work.accepted).pieces[0]
        weights = oldest.work.weights
        taken: list[Piece] = []
        if waiting:
            room, hungry = self.limit, self._hungry(now)
            self._odd = not self._odd
            if hungry:
                room -= max(self.limit // BULK_SHARE, 1) if self.limit > 1 else int(self._odd)
            kept = min(self.new.of(weights), room // 2 + (room % 2 and int(self._odd)))
            taken = self._from(self.begun, room - kept, weights)
            taken += self._from(self.new, room - _cost(taken), weights)
            used = _cost(taken)
            filler = (self.limit if hungry else padded(used)) - used
        else:
            filler = self.bulk_limit
        bulk = self._from(self.bulk, filler, weights)
        bulk += self._from(self.bulk_new, filler - _cost(bulk), weights)
        if bulk:
            self._fed = now
        taken += bulk
        # A row that is two of the network goes alone where a call has room for one.
        return taken or self._from(self._line_of(oldest), oldest.work.width, weights)

    def _line_of(self, piece: Piece) -> Line:
        return next(line for line in self._all() if line and line.pieces[0] is piece)

    def _hungry(self, now: float) -> bool:
        return bool(self.bulk or self.bulk_new) and now - self._fed > self.promise

    def _from(self, line: Line, room: int, weights: str | None) -> list[Piece]:
        taken: list[Piece] = []
        passed: list[Piece] = []
        while line and room > 0:
            piece = line.pop()
            fits = room // piece.work.width
            if piece.work.weights != weights or fits == 0:
                passed.append(piece)
                continue
            if piece.count > fits:
                piece, rest = piece.split(fits)
                passed.append(rest)
            taken.append(piece)
            room -= piece.cost
            self._begin(line, piece)
        for piece in reversed(passed):
            line.append(piece, left=True)
        return taken

    def _begin(self, line: Line, piece: Piece) -> None:
        work = piece.work
        if line is self.new and work.several:
            self.engaged[work.owner] = work.n * work.width
        if work.rest is not None and piece.stop == work.rest.start:
            self.again(self._released(work))

    def _released(self, work: Work) -> Piece:
        """The rest of a request, which is held back no longer."""
        assert work.rest is not None
        rest, work.rest = work.rest, None
        self._held -= rest.cost
        return rest

    # ---- how long it takes

    def wait(self, seconds: float, left: float, rows: int = 1, several: bool = False) -> float:
        """Seconds that the rows of a newcomer would wait for a call.

        Its first call begins after the one in flight, and after as many full calls as the rows that came before it fill: half a
        call for each where enough has begun, or will have by then, to take the other half. Each further call waits for its turn
        among all that have begun, in the room that new requests leave them now.

        Args:
            seconds: Time of a full call, as measured lately.
            left: Seconds until the call in flight ends.
            rows: Rows of the network that the newcomer needs at once.
            several: Whether it will need further calls.

        Returns:
            Seconds: the longer of the two.
        """
        begun = sum(self.engaged.values()) + self.new.several + self._held
        room = self.limit - (self.limit / BULK_SHARE if self.bulk or self.bulk_new else 0)
        share = room - min(begun, room / 2)
        first = left + math.floor((self.new.cost + min(rows, self.limit) - 1) / share) * seconds
        if not several or not begun:
            return first
        further = (math.ceil((begun + rows) / (room - min(self.new.cost, room / 2))) - 1) * seconds
        return max(first, further)


def _cost(pieces: list[Piece]) -> int:
    return sum(piece.cost for piece in pieces)
