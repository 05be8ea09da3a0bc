"""What has been accepted and not yet ended: every request ends exactly once, with images, an error or by being cancelled."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence

from atonce.serving.errors import ServiceError
from atonce.serving.lanes import Lanes
from atonce.serving.observe import Observer
from atonce.serving.session import Session
from atonce.serving.work import Given, Piece, Work

log = logging.getLogger("atonce.serving")


class Ledger:
    """Requests and edits that an engine has accepted.

    Args:
        name: Name of the model.
        version: Its version.
        observer: Is told how they end.
        lanes: Where their rows wait.
        changed: The engine's lock, told of every end. Futures are never set while it is held, since that calls strangers.
    """

    def __init__(self, name: str, version: str, observer: Observer, lanes: Lanes, changed: threading.Condition) -> None:
        self.name, self.version, self.observer = name, version, observer
        self.lanes, self.changed = lanes, changed
        self.works: set[Work] = set()
        self.sessions: set[Session] = set()
        self.counts: Counter[str] = Counter()  # calls, images, failures

    # ---- under the lock

    def late(self, now: float) -> list[Work]:
        """What waits for its first call although its deadline has passed."""
        late = (work for work in self.works if work.deadline is not None and now >= work.deadline and not work.begun)
        return [work for work in late if work.session is None or not work.session.begun]

    def advance(self, pieces: Sequence[Piece]) -> list[Work]:
        """Put rows that need another call back in line.

        Args:
            pieces: Rows whose call has been made.

        Returns:
            Requests that need none any more.
        """
        finished = []
        for piece in pieces:
            work = piece.work
            if work not in self.works:  # cancelled meanwhile
                continue
            if piece.step + 1 < work.calls:
                self.lanes.again(Piece(work, piece.start, piece.stop, piece.step + 1))
                continue
            work.finished += piece.count
            if work.finished == work.n:
                finished.append(work)
        return finished

    # ---- without the lock

    def begin(self, works: Sequence[Work], now: float) -> None:
        """A call of these requests begins."""
        for work in works:
            first = not work.begun and (work.session is None or not work.session.begun)
            work.begun = True
            if work.session is not None:
                work.session.begun = True
            if first:
                work.future.queue_seconds = now - work.accepted  # type: ignore[attr-defined]  # for who waits for it
                self.observer.waited(self.name, self.version, work.lane, now - work.accepted)

    def tell(self, works: Sequence[Work]) -> None:
        """Tell those who want to know how many images are finished."""
        for work in works:
            if work.progress is None or not work.finished:
                continue
            try:
                work.progress(work.finished)
            except Exception:
                log.exception("%s: the progress of a request could not be told", self.name)

    def finish(self, work: Work) -> None:
        """A request has its images."""
        result = work.result()
        if not self._remove(work) or not work.future.set_running_or_notify_cancel():
            return
        if not isinstance(work, Given):
            self.made(work.kind, work.n)
        work.future.set_result(result)

    def made(self, kind: str, images: int) -> None:
        """Images are finished."""
        with self.changed:
            self.counts["images"] += images
        self.observer.made(self.name, self.version, kind, images)

    def refuse(self, work: Work, error: ServiceError, reason: str) -> None:
        """A request that was accepted is given up."""
        if self._remove(work):
            self.observer.refused(self.name, reason)
            self._end(work, error)

    def fail(self, pieces: Sequence[Piece], message: str) -> None:
        """The network failed on these rows: their requests end, whatever else of them waits."""
        for work in dict.fromkeys(piece.work for piece in pieces):
            if self._remove(work):
                with self.changed:
                    self.counts["failures"] += 1
                self._end(work, ServiceError(500, "failed", message))

    def cancel(self, work: Work) -> None:
        """Its caller has cancelled the future."""
        if self._remove(work):
            work.future.set_running_or_notify_cancel()  # tells those who wait for it
            self.observer.refused(self.name, "cancelled")

    def _end(self, work: Work, error: ServiceError) -> None:
        if work.future.set_running_or_notify_cancel():
            work.future.set_exception(error)

    def _remove(self, work: Work) -> bool:
        """Take a request out; whether it was still in."""
        with self.changed:
            if work not in self.works:
                return False
            self.works.discard(work)
            if work.finished < work.n:
                self.lanes.forget(lambda other: other is work)
            if work.session is None:
                self.lanes.release(work)
            self.changed.notify_all()
            return True
