"""The threads that work on jobs: they take one, hold it by heartbeats, and let it end or give it back."""

from __future__ import annotations

import errno
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import exc

from atonce.core.errors import InputError, StorageError
from atonce.model_files import weights_digest
from atonce.serving.errors import ServiceError
from atonce.serving.job_files import JobFiles
from atonce.serving.job_kinds import make
from atonce.serving.job_process import may_live, this_process
from atonce.serving.job_rows import Job
from atonce.serving.jobstore import JobStore
from atonce.serving.observe import Observer
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.hosts import Hosts

log = logging.getLogger("atonce.serving.jobs")

TRIES = 3  # of a job whose network calls fail
WAITS = 60  # times that a job is put off for a full disk; with the pauses, an hour


class Left(Exception):
    """The work on a job is left: ``cancelled``, ``lost`` to another process, or ``stopping``."""


class Held:
    """A job that this process works on.

    Args:
        job: The job as it was taken.
        store: Where it is kept.
        lease: Seconds of silence after which it is another's.
    """

    def __init__(self, job: Job, store: JobStore, lease: float) -> None:
        self.job, self.store, self.lease = job, store, lease
        self.done = 0.0
        self.safe: int | None = None
        self.began = self.beaten = time.monotonic()
        self.gone = threading.Event()
        self.why = ""

    def check(self) -> None:
        """Raise where the work is to be left.

        Raises:
            Left: It is.
        """
        if self.gone.is_set():
            raise Left(self.why)
        if time.monotonic() - self.beaten > self.lease:  # this process was asleep, or the database could not be reached
            raise Left("lost")

    def at(self, done: float) -> None:
        """Say how many images are done, those of unfinished parts included."""
        self.done = max(self.safe or 0, min(done, self.job.total))

    def kept(self, done: int) -> None:
        """Say how many images are kept: at first those of earlier attempts, then again after each part."""
        if self.safe is None:
            self.note(done=done, began_done=done)
        elif self.job.strikes:  # a part was finished, so it is not this job that ends its processes
            self.note(strikes=0)
            self.job = replace(self.job, strikes=0)
        self.safe, self.done = done, float(done)

    @property
    def kept_so_far(self) -> int:
        """Images that are safe."""
        return self.job.done if self.safe is None else self.safe

    def note(self, **values: object) -> None:
        """Write facts of the job.

        Args:
            values: Columns of the table of jobs.

        Raises:
            Left: It is no longer ours.
        """
        if not self.store.note(self.job.id, self.job.attempt, **values):
            raise Left("lost")

    def pause(self, seconds: float) -> None:
        """Wait, and leave as soon as the job is to be left."""
        self.gone.wait(seconds)
        self.check()

    def leave(self, why: str) -> None:
        """Ask the work to be left, from any thread."""
        self.why = self.why or why
        self.gone.set()

    def beat(self) -> None:
        """Renew the lease."""
        done = self.job.done if self.safe is None else int(self.done)
        status = self.store.beat(self.job.id, self.job.attempt, self.lease, done)
        if status is None:
            self.leave("lost")
            return
        self.beaten = time.monotonic()
        if status == "cancelling":
            self.leave("cancelled")


class JobWorker:
    """The threads of this process that work on jobs.

    Args:
        settings: What the owner set.
        hosts: The models.
        observer: Is told of jobs that reach a status.
        store: The database.
        files: Parts and results.
    """

    def __init__(self, settings: ServeSettings, hosts: Hosts, observer: Observer, store: JobStore, files: JobFiles) -> None:
        self.settings, self.hosts, self.observer, self.store, self.files = settings, hosts, observer, store, files
        self.owner = this_process()
        self.lease = settings.job_lease
        self.backoff = 2.0
        self._held: dict[str, Held] = {}
        self._stop, self._work = threading.Event(), threading.Condition()
        self._threads: list[threading.Thread] = []
        self._weights: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()

    def start(self) -> None:
        """Free the jobs of dead processes of this machine, then begin."""
        self._take_over()
        self._threads = [threading.Thread(target=self._keep, name="jobs-keeper", daemon=True)]
        for number in range(self.settings.job_workers):
            self._threads.append(threading.Thread(target=self._take, name=f"jobs-{number}", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Give all jobs back and end the threads, waiting for them for at most ``seconds``."""
        self._stop.set()
        self.wake()
        for held in list(self._held.values()):
            held.leave("stopping")
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self.store.close()

    def wake(self) -> None:
        """Look for work now."""
        with self._work:
            self._work.notify_all()

    def fresh(self, job: Job) -> Job:
        """A job with what this process knows of its progress, which is fresher than the last heartbeat."""
        held = self._held.get(job.id)
        if held is None or held.safe is None or held.job.attempt != job.attempt or job.status != "running":
            return job
        passed = (job.claimed or job.updated) + time.monotonic() - held.began  # on the clock of the database
        return replace(job, done=int(held.done), updated=passed)

    def cancelled(self, job: Job) -> None:
        """Hear at once, not with the next heartbeat, that a job is to be cancelled."""
        held = self._held.get(job.id)
        if held is not None:
            held.leave("cancelled")
        elif job.status == "cancelled":
            self.files.remove(job.id)

    # ---- threads

    def _take(self) -> None:
        """Take jobs and work on them, one after the other."""
        while not self._stop.is_set():
            try:
                job = self.store.claim(self.owner, self.lease)
            except exc.SQLAlchemyError as problem:
                log.error("no job can be taken, the database failed: %s", short(problem))
                self._stop.wait(self.backoff)
                continue
            if job is None:
                with self._work:
                    if not self._stop.is_set():
                        self._work.wait(min(0.5, self.lease / 4))
                continue
            try:
                self._run(job)
            except exc.SQLAlchemyError as problem:  # its lease runs out, then it is taken again
                log.error("job %s is left, the database failed: %s", job.id, short(problem))
                self._stop.wait(self.backoff)
            finally:
                self._held.pop(job.id, None)

    def _keep(self) -> None:
        """Renew leases, free the jobs of the dead, and let results expire."""
        every, swept = min(1.0, self.lease / 5), float("-inf")
        while not self._stop.wait(every):
            try:
                for held in list(self._held.values()):
                    held.beat()
                self._take_over()
                if time.monotonic() - swept > min(60.0, self.settings.job_keep / 4):
                    for job in self.store.expire(self.settings.job_keep):
                        self.files.remove(job.id)
                        self.observer.job(job.kind, "expired")
                    self.files.sweep(self.store.unknown)
                    swept = time.monotonic()
            except exc.SQLAlchemyError as problem:
                log.error("the jobs' heartbeat failed, the database says: %s", short(problem))
            except Exception:
                log.exception("the keeper of the jobs stumbled")

    def _take_over(self) -> None:
        for job in self.store.take_over(may_live):
            log.warning("job %s was left by a process that is gone: it is %s now", job.id, job.status)
            self.observer.job(job.kind, job.status)
            if job.ended:
                self.files.remove(job.id)
            self.wake()

    # ---- one job

    def _run(self, job: Job) -> None:
        """Work on a job until it ends, or give it back."""
        held = self._held[job.id] = Held(job, self.store, self.lease)
        if self._stop.is_set():
            held.leave("stopping")
        self.observer.job(job.kind, "running")
        log.info("job %s: attempt %d of %s begins at %d of %d images", job.id, job.attempt, job.kind, job.done, job.total)
        ended: Job | None
        try:
            held.check()
            result = make(job, self.hosts, self.files, held, self._weights_of)
            values = {"file": result.file, "sha256": result.sha256, "bytes": result.bytes, "done": job.total}
            ended = self.store.end(job.id, job.attempt, "done", **values)
        except Left as left:
            ended = None
            if str(left) == "cancelled":
                ended = self.store.end(job.id, job.attempt, "cancelled")
            elif str(left) == "stopping":
                ended = self.store.release(job.id, job.attempt, done=held.kept_so_far)
        except ServiceError as problem:
            ended = self._refused(held, problem)
        except StorageError as problem:
            ended = self._no_space(held, problem)
        except InputError as problem:
            ended = self._failed(held, "bad_request", str(problem))
        except exc.SQLAlchemyError:
            raise
        except Exception:
            log.exception("job %s failed", job.id)
            ended = self._failed(held, "internal", f"an error inside the server; its log tells more, under {job.id}")
        if ended is None:
            log.warning("job %s is another process's now: left", job.id)
            return
        log.info("job %s: %s", job.id, ended.status)
        self.observer.job(ended.kind, ended.status)
        if ended.status == "done":
            self.files.clear_parts(job.id)
        elif ended.ended:
            self.files.remove(job.id)

    def _weights_of(self, engine: Engine) -> str:
        """The start of the digest of a version's weights, which takes a while and never changes."""
        known = self._weights.get(engine)
        if known is None:
            known = self._weights[engine] = weights_digest(engine.model)[:16]
        return known

    def _refused(self, held: Held, problem: ServiceError) -> Job | None:
        job = held.job
        if problem.status == 503:  # stopping, starting, reloading: somebody else, or we, can soon
            delay = max(self.backoff / 2, problem.retry_after or 0.0)
            return self.store.release(job.id, job.attempt, delay, done=held.kept_so_far)
        if problem.status >= 500 and job.waits + 1 < TRIES:
            return self.store.release(
                job.id,
                job.attempt,
                self.backoff,
                done=held.kept_so_far,
                waits=job.waits + 1,
                note=f"tried again: {problem.message}",
            )
        return self._failed(held, problem.code, problem.message)

    def _no_space(self, held: Held, problem: StorageError) -> Job | None:
        """Put a job off until there is space; its message names paths, so it is for the log alone."""
        job, cause = held.job, problem.__cause__
        log.error("job %s: %s", job.id, problem)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        text = "the server's disk is full" if full else "the server's disk cannot be written"
        if job.waits + 1 >= WAITS:
            return self._failed(held, "storage", f"{text}, and stayed so over {WAITS} tries: submit the job again later")
        delay = min(60.0, self.backoff * 2.0 ** min(job.waits, 20))
        note = f"{text}: the job waits, and goes on from {held.kept_so_far} of {job.total} images when there is space"
        return self.store.release(job.id, job.attempt, delay, done=held.kept_so_far, waits=job.waits + 1, note=note)

    def _failed(self, held: Held, code: str, text: str) -> Job | None:
        return self.store.end(held.job.id, held.job.attempt, "failed", error_code=code, error=text, done=held.kept_so_far)


def short(problem: exc.SQLAlchemyError) -> str:
    """The first line of a database's complaint, without the statement and its values."""
    return str(getattr(problem, "orig", None) or problem).strip().splitlines()[0][:300]
