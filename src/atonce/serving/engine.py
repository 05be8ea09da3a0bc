"""An engine: one loaded version of a model, and the one thread that runs its network for all requests together.

Batching is continuous and at the level of network calls: whenever the network is free, the rows that wait go into the next
call, whatever their seed, class, noise level and step. Nothing waits for others of its kind, and a request is never held up
until another one has finished. :mod:`atonce.serving.lanes` decides who goes first and what a newcomer must expect,
:mod:`atonce.serving.pace` knows how long calls take, :mod:`atonce.serving.buckets` how many rows they may have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from atonce.model import ConsistencyModel
from atonce.serving.backends import Backend, call_of, choose, eager
from atonce.serving.batch import Batch
from atonce.serving.batched_model import BatchedModel
from atonce.serving.buckets import Buckets, Call, probe
from atonce.serving.chosen import Chosen
from atonce.serving.errors import ServiceError, draining, overloaded, too_large
from atonce.serving.lanes import Lanes
from atonce.serving.ledger import Ledger
from atonce.serving.observe import Observer, Silent
from atonce.serving.pace import Pace
from atonce.serving.rows import Ask, EngineStatus, Lane
from atonce.serving.session import Session
from atonce.serving.settings import ServeSettings
from atonce.serving.turns import Turns
from atonce.serving.work import Piece, Work, work_of

log = logging.getLogger("atonce.serving")

CARE = 0.9  # part of the promise that is given away; the rest is for a machine that becomes slower just then
LINGER = 0.05  # part of the last call's time to wait for those whose images have just gone out,
LONGEST = 0.05  # and seconds of it at most


class Engine:
    """Runs one version of a model.

    Args:
        model: The model, on its device. It is left as it is.
        settings: Settings of the server.
        name: Name of the model.
        version: Its version.
        observer: Is told what happens.
        turns: Turns on the device, where several engines share it.
        clock: Gives the time in seconds; deadlines are moments of it.
        prepare: Gives the backend; default: :func:`~atonce.serving.backends.choose` by the settings.
    """

    def __init__(
        self,
        model: ConsistencyModel,
        settings: ServeSettings,
        *,
        name: str,
        version: str = "1",
        observer: Observer | None = None,
        turns: Turns | None = None,
        clock: Callable[[], float] = time.monotonic,
        prepare: Callable[[ConsistencyModel], Backend] | None = None,
    ) -> None:
        self.name, self.version, self.settings = name, version, settings
        self._source, self._observer = model, observer or Silent()
        self._turns, self._clock, self._prepare = turns or Turns(), clock, prepare or self._choose
        self._model = BatchedModel(model, self)
        self._changed = threading.Condition()
        self._lanes, self._pace = Lanes(settings.queue_seconds), Pace()
        self._ledger = Ledger(name, version, self._observer, self._lanes, self._changed)
        self._thread: threading.Thread | None = None
        self._state = "new"  # new, starting, running, draining, stopped
        self._problem: BaseException | None = None
        self._backend: Backend | None = None
        self._weights: dict[str | None, tuple[Call, Buckets]] = {}
        self._last = (0, 0.0)  # rows of the last call, and until when to wait for as many again

    @property
    def model(self) -> BatchedModel:
        """The model with its calls in this engine's queue, each by itself; for an edit see :meth:`calls`."""
        return self._model

    # ---- starting and stopping

    def start(self) -> None:
        """Choose the backend and the sizes of calls, measure and warm up; then take requests.

        Raises:
            ServiceError: The model gives something that is not an image, or the engine was started before.
        """
        with self._changed:
            if self._state != "new":
                raise ServiceError(500, "started", f"the engine of {self.name} was started before: make another one")
            self._state = "starting"
        self._thread = threading.Thread(target=self._work, name=f"engine-{self.name}", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._state != "starting")
        if self._problem is not None:
            raise self._problem

    def stop(self, seconds: float = 0.0) -> None:
        """Refuse new requests, finish those that wait, and end what is left.

        Args:
            seconds: Time to finish.
        """
        until, ledger = time.monotonic() + seconds, self._ledger
        with self._changed:
            if self._state == "running":
                self._state = "draining"
            self._changed.notify_all()
            while (ledger.works or ledger.sessions) and self._state == "draining" and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self._state = "stopped"
            left_over = list(ledger.works)
            self._changed.notify_all()
        for work in left_over:
            ledger.refuse(work, draining(), "draining")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(until - time.monotonic(), 1.0))  # a call that hangs is left behind

    # ---- what callers do

    def submit(
        self,
        ask: Ask,
        *,
        lane: Lane = "interactive",
        deadline: float | None = None,
        progress: Callable[[int], None] | None = None,
        kind: str = "generate",
    ) -> Future[Tensor]:
        """Let images be made.

        Callbacks of the future and ``progress`` are called in the engine's thread, so they must return at once. Cancelling the
        future takes the rows that wait out of the queue.

        Args:
            ask: What is to be made (:func:`~atonce.serving.rows.ask_for`).
            lane: ``"bulk"`` for what can wait until nothing interactive does.
            deadline: Moment of the clock (``time.monotonic``) by which the first call must begin.
            progress: Told how many images are finished.
            kind: What the images are for.

        Returns:
            float32 [n, C, H, W] on the CPU; or it raises a ServiceError: 503 where the deadline passed or the engine stopped,
            500 where the network failed.

        Raises:
            draining: 503 at once, like the next: the engine stops.
            overloaded: 503: the promise could not be kept (also a ServiceError; see :meth:`enqueue`).
            too_large: 413: more images than may wait.
        """
        if self._state != "running":
            raise self._refused("draining", draining())
        if ask.n > self.settings.queue_rows:
            raise too_large(f"n is {ask.n:,}, at most {self.settings.queue_rows:,} images of one request may wait here", "n")
        work = work_of(self._source, ask)
        work.lane, work.deadline, work.progress, work.kind = lane, deadline, progress, kind
        return self.enqueue(work)

    @contextmanager
    def calls(
        self,
        lane: Lane = "interactive",
        deadline: float | None = None,
        kind: str = "edit",
        stop: threading.Event | None = None,
    ) -> Iterator[BatchedModel]:
        """The model for an algorithm that runs in this thread, an edit for example; its network calls join all others.

        Args:
            lane: ``"bulk"`` for what can wait until nothing interactive does.
            deadline: Moment of the clock (``time.monotonic``) at which it is given up.
            kind: What the images are for.
            stop: Set by another thread, gives it up before the next call, which then raises CancelledError.

        Yields:
            The model. Its calls raise what :meth:`submit` and its future do; once the first has begun, the others are not
            refused. A deadline that passes before the first call begins is a 503, later a 504.

        Raises:
            draining: 503: the engine stops.
        """
        session = Session(lane=lane, kind=kind, deadline=deadline, stop=stop)
        with self._changed:
            if self._state != "running":
                raise self._refused("draining", draining())
            self._ledger.sessions.add(session)
        try:
            yield self._model.of(session)
            if session.begun:
                self._ledger.made(kind, session.rows)
        finally:
            with self._changed:
                self._ledger.sessions.discard(session)
                self._lanes.release(session)
                self._changed.notify_all()

    def enqueue(self, work: Work) -> Future[Tensor]:
        """Let a request wait for its turn.

        Args:
            work: The request.

        Returns:
            What will hold its images.

        Raises:
            draining: 503: the engine stops.
            CancelledError: The edit that it is part of was given up.
            ServiceError: 503 where the promise could not be kept; 504 where the time of an edit that has begun is over.
        """
        session, now = work.session, self._clock()
        if session is not None and session.stop is not None and session.stop.is_set():
            raise CancelledError
        with self._changed:
            if self._state != "running" and not (self._state == "draining" and session in self._ledger.sessions):
                raise self._refused("draining", draining())
            if session is None or not session.begun:
                self._admit(work, now)
            elif work.deadline is not None and now >= work.deadline:
                raise self._refused("expired", ServiceError(504, "timeout", "the time of this request is over"))
            work.accepted = now
            self._ledger.works.add(work)
            self._lanes.add(work, now)
            waiting = len(self._lanes)
            self._changed.notify_all()
        self._observer.queued(self.name, self.version, waiting)
        work.future.add_done_callback(lambda future: self._ledger.cancel(work) if future.cancelled() else None)
        return work.future

    def status(self) -> EngineStatus:
        """How it does."""
        with self._changed:
            backend, counts = self._backend, self._ledger.counts
            return EngineStatus(
                name=self.name,
                version=self.version,
                backend=backend.name if backend else "",
                buckets=backend.buckets.sizes if backend else (),
                rate=self._pace.rate,
                waiting=len(self._lanes),
                wait=self._lanes.wait(self._pace.full, self._pace.left(self._clock())),
                promise=self.settings.queue_seconds,
                running=self._state == "running",
                calls=counts["calls"],
                images=counts["images"],
                failures=counts["failures"],
                measured=backend.measured if backend else (),
            )

    # ---- who may wait (under the lock)

    def _admit(self, work: Work, now: float) -> None:
        lanes, pace, most = self._lanes, self._pace, self.settings.queue_rows
        if work.deadline is not None and now >= work.deadline:
            raise self._refused("expired", overloaded("the time of this request is over before it began", pace.full))
        rows = work.n * work.width
        waiting = lanes.interactive if work.lane == "interactive" else len(lanes) - lanes.interactive
        if waiting and waiting + rows > most:
            line = f"{waiting:,} images wait here already, at most {most:,} may: try again later"
            raise self._refused("overloaded", overloaded(line, (waiting + rows - most) / max(pace.rate, 1e-9)))
        if work.lane == "bulk" or not (lanes.interactive or pace.busy):
            return  # what comes while nothing runs is never refused, however slow the network is
        several = work.calls > 1 or rows > lanes.limit or work.session is not None
        wait = lanes.wait(pace.full, pace.left(now), rows, several)
        if wait > CARE * lanes.promise:
            told = f"about {wait:.1f} seconds, more than {CARE:.0%} of the {lanes.promise:g} that are promised"
            line = f"this would wait for {told}: try again later"
            raise self._refused("overloaded", overloaded(line, max(wait - CARE * lanes.promise, pace.full)))

    def _refused(self, reason: str, error: ServiceError) -> ServiceError:
        self._observer.refused(self.name, reason)
        return error

    # ---- the engine's thread

    @torch.no_grad()
    def _work(self) -> None:
        if self.settings.threads is not None and self._source.device.type == "cpu":
            torch.set_num_threads(self.settings.threads)  # of calls from this thread
        try:
            with self._turns:
                self._ready(self._prepare(self._source))
        except BaseException as problem:
            self._problem = problem
            self._to("stopped")
            return
        self._to("running")
        while pieces := self._next():
            try:
                self._run(pieces)
            except Exception:
                log.exception("%s %s: a network call failed", self.name, self.version)
                with self._changed:
                    self._pace.end(self._clock(), counts=False)
                self._ledger.fail(pieces, "the model failed on the call that this request was part of")
        self._weights.clear()

    def _to(self, state: str) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _choose(self, model: ConsistencyModel) -> Backend:
        s = self.settings
        memory = Chosen(model, s.state, rows=s.max_batch, threads=s.threads) if s.backend == "auto" else None
        longest = s.queue_seconds / 2
        found = choose(model, s.backend, s.max_batch, longest, threads=s.threads, clock=self._clock, memory=memory)
        return replace(found, buckets=found.buckets.within(s.queue_seconds / 4))

    def _ready(self, backend: Backend) -> None:
        buckets = backend.buckets
        if not bool(torch.isfinite(buckets.run(backend.call, probe(self._source, 1))).all()):
            raise ServiceError(500, "broken", f"{self.name} {self.version} gives images that are not finite: it cannot serve")
        self._backend, self._weights[None] = backend, (backend.call, buckets)
        self._lanes.limit, self._lanes.bulk_limit = buckets.largest, buckets.efficient()
        self._pace.start(buckets)
        line = "%s %s: backend %s, calls of %s rows, %.1f images/s; measured %s"
        log.info(line, self.name, self.version, backend.name, buckets.sizes, buckets.rate, list(backend.measured))
        if buckets.seconds[-1] > self.settings.queue_seconds:
            line = "%s: a call takes %.1f s, more than queue_seconds=%g: what comes while one runs will mostly be refused"
            log.warning(line, self.name, buckets.seconds[-1], self.settings.queue_seconds)

    def _next(self) -> list[Piece]:
        """The rows of the next call; waits for them. Empty when the engine stops."""
        while True:
            with self._changed:
                if self._state == "stopped":
                    return []
                now = self._clock()
                late = self._ledger.late(now)
                if not late:
                    linger = self._linger()
                    if not linger and (pieces := self._lanes.take(now, self._padded)):
                        self._pace.begin(now, sum(piece.cost for piece in pieces))
                        return pieces
                    self._pace.idle()
                    self._changed.wait(linger or None)
            for work in late:
                error = overloaded("the time of this request was over before its turn came", self._pace.full)
                self._ledger.refuse(work, error, "expired")

    def _linger(self) -> float:
        """Seconds to wait for those whose images have just gone out: they are about to ask again, and can share a call."""
        rows, until = self._last
        waiting = 0 < len(self._lanes) < rows and self._state == "running"
        return max(until - time.monotonic(), 0.0) if waiting else 0.0

    def _padded(self, rows: int) -> int:
        return self._backend.buckets.padded(rows) if self._backend else rows

    def _run(self, pieces: Sequence[Piece]) -> None:
        ledger, name = self._ledger, pieces[0].work.weights
        works = list(dict.fromkeys(piece.work for piece in pieces))
        ledger.begin(works, self._clock())
        call, buckets = self._of(name)
        batch = Batch(self._source, pieces)
        with self._turns:
            turn = self._clock()
            broken = batch.give_back(buckets.run(call, batch.rows))  # looks at the values, so a device has finished
            now = self._clock()
        rows, padded = len(batch.rows), max(buckets.padded(len(batch.rows)), len(batch.rows))
        with self._changed:
            self._pace.end(now, counts=name is None)
            linger = min(LINGER * (now - turn), LONGEST) if len(works) > 1 else 0.0
            self._last = (rows, time.monotonic() + linger)
            ledger.counts["calls"] += 1
            finished = ledger.advance([piece for piece in pieces if piece not in broken])
            waiting = len(self._lanes)
        self._observer.batch(self.name, self.version, rows, padded, now - turn)
        self._observer.queued(self.name, self.version, waiting)
        if broken:
            log.error("%s %s: the network gave values that are not finite", self.name, self.version)
            ledger.fail(broken, "the model gave no image for this request")
        ledger.tell(works)
        for work in finished:
            ledger.finish(work)

    def _of(self, name: str | None) -> tuple[Call, Buckets]:
        """A set of weights, and the sizes of its calls; other sets than the model's own are made when first used."""
        if name not in self._weights:
            assert self._backend is not None
            self._weights[name] = call_of(self._source, eager(self._source, ema=name)), self._backend.plain
        return self._weights[name]
