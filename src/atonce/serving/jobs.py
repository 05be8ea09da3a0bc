"""Large requests that outlive a connection, and the process: accepted once, finished once, whatever is killed in between."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import exc

from atonce.core.errors import InputError
from atonce.core.files import sha256_json, storage_errors
from atonce.serving.errors import ServiceError
from atonce.serving.generate import with_seed
from atonce.serving.input_drift import facts
from atonce.serving.job_files import JOB, JobFiles
from atonce.serving.job_kinds import check
from atonce.serving.job_rows import Job
from atonce.serving.job_worker import JobWorker, short
from atonce.serving.jobstore import JobStore
from atonce.serving.observe import Observer, Silent
from atonce.serving.private import private_folder
from atonce.serving.schemas import Wanted
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.access import Principal
    from atonce.serving.hosts import Hosts

T = TypeVar("T")
log = logging.getLogger("atonce.serving.jobs")


class Jobs:
    """The jobs of this process and, where they share a database, of its replicas.

    Args:
        settings: What the owner set.
        hosts: The models.
        observer: Is told of jobs that reach a status.
    """

    def __init__(self, settings: ServeSettings, hosts: Hosts, observer: Observer | None = None) -> None:
        self.settings, self.hosts, self.observer = settings, hosts, observer or Silent()
        self._worker: JobWorker | None = None

    # ---- life

    def start(self) -> None:
        """Open the database, free the jobs of dead processes of this machine, and begin to work.

        Raises:
            InputError: The database cannot be used, or belongs to another folder of results.
            StorageError: The folder cannot be written.
        """
        folder = self.settings.state / "jobs"
        with storage_errors(self.settings.state):
            private_folder(self.settings.state)
        files = JobFiles(folder)
        store = JobStore(self.settings.jobs or f"sqlite:///{(self.settings.state / 'jobs.sqlite').absolute()}")
        if store.place(files.mark()) != files.mark():
            store.close()
            raise InputError(
                f"{folder} is not the folder in which this database of jobs keeps its results: give all replicas the same one "
                "(ATONCE_SERVE_STATE); if it was lost, delete the row 'place' of the table atonce_meta"
            )
        self._worker = JobWorker(self.settings, self.hosts, self.observer, store, files)
        self._worker.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Leave the work where its last finished part stands and give the jobs back, for the next process to take at once.

        Args:
            seconds: How long to wait for the threads.
        """
        if self._worker is not None:
            self._worker.stop(seconds)
            self._worker = None

    # ---- what callers ask

    def submit(
        self,
        principal: Principal,
        kind: str,
        request: Wanted,
        *,
        idempotency: str | None = None,
        charge: Callable[[int], None] | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job. It is on the disk when this returns.

        Args:
            principal: Who asks.
            kind: ``generate`` or the name of an edit.
            request: The request of that kind.
            idempotency: A word of the caller's own; the same word again gives the same job.
            charge: Counts the images of a new job against the caller's limits; may raise.

        Returns:
            The job, and whether it is new.

        Raises:
            ServiceError: The request cannot be honoured, the word was used for another request, or too many jobs wait.
        """
        digest = sha256_json([kind, request.model_dump(mode="json", exclude_unset=True)])
        if idempotency is not None:
            seen = self._ask(lambda store: store.sent_before(principal.id, idempotency))
            if seen is not None:
                return self._same(seen, digest), False
        request = with_seed(request)  # a job that is taken up again needs the same one
        name = request.model or self.hosts.default
        checked = check(self.hosts.host(name).engine(principal.id, request.version).model, kind, request, self.settings)
        if charge is not None:
            charge(checked.price)
        values = {
            "id": f"job_{secrets.token_hex(12)}",
            "principal": principal.id,
            "kind": kind,
            "model": name,
            "version": request.version,
            "request": request.model_dump_json(exclude_unset=True),
            "digest": digest,
            "idempotency": idempotency,
            "total": checked.total,
        }
        job, new = self._ask(lambda store: store.add(values, self.settings.max_jobs))
        if job is None:
            most = self.settings.max_jobs
            text = f"{most} of your jobs wait or run, which is the limit: wait until one has ended, or cancel one"
            raise ServiceError(429, "too_many_jobs", text, retry_after=10.0)
        if new:
            self.observer.job(kind, "queued")
            for picture in () if checked.pictures is None else checked.pictures:
                self.observer.edited(name, facts(picture))
            self._open.wake()
        return self._same(job, digest), new

    def get(self, principal: Principal, job: str) -> Job:
        """A job of the caller's (of anybody's, for an admin).

        Args:
            principal: Who asks.
            job: Its id.

        Returns:
            The job as it is now.

        Raises:
            ServiceError: There is none with this id.
        """
        found = self._ask(lambda store: store.get(job, _only(principal))) if JOB.fullmatch(job) else None
        if found is None:
            raise ServiceError(404, "not_found", f"there is no job {job[:40]!r}, or it is not yours")
        return self._open.fresh(found)

    def list(self, principal: Principal, status: str | None = None, limit: int = 100, before: str | None = None) -> list[Job]:
        """Jobs of the caller (of everybody, for an admin), newest first.

        Args:
            principal: Who asks.
            status: Only those with it.
            limit: How many at most.
            before: Only those older than this job.

        Returns:
            The jobs.
        """
        return self._ask(lambda store: store.newest(_only(principal), status, limit, before))

    def cancel(self, principal: Principal, job: str) -> Job:
        """Cancel a job: at once where it waits, within a part where it runs; one that has ended stays as it is.

        Args:
            principal: Who asks.
            job: Its id.

        Returns:
            The job as it is now.

        Raises:
            ServiceError: There is none with this id.
        """
        self.get(principal, job)
        found, changed = self._ask(lambda store: store.cancel(job, _only(principal)))
        if found is not None and changed:
            self.observer.job(found.kind, found.status)
            self._open.cancelled(found)
        return found or self.get(principal, job)

    def result(self, principal: Principal, job: str) -> tuple[Job, Path]:
        """The file that came of a job.

        Args:
            principal: Who asks.
            job: Its id.

        Returns:
            The job and its file.

        Raises:
            ServiceError: It is not done, failed, was cancelled, or its result has expired.
        """
        found = self.get(principal, job)
        if found.status == "expired":
            raise ServiceError(404, "expired", f"the result of {job} was kept for {self.settings.job_keep:g} s and is gone")
        if found.status == "failed":
            raise ServiceError(409, "job_failed", f"{job} failed: {found.error}")
        if found.status != "done" or found.file is None:
            text = f"{job} is {found.status}, {found.done} of {found.total} images are done: ask again when it is done"
            raise ServiceError(409, "job_not_done", text, retry_after=None if found.ended else 1.0)
        path = self._open.files.result(job, found.file)
        if not path.is_file():
            text = f"the result of {job} is no longer on the disk of this server: submit the job again"
            raise ServiceError(404, "not_found", text)
        return found, path

    def counts(self) -> dict[str, int]:
        """How many jobs have each status, in the whole database."""
        return self._ask(lambda store: store.counts())

    # ---- inside

    @property
    def _open(self) -> JobWorker:
        if self._worker is None:
            raise ServiceError(503, "starting", "jobs are not open now: try again in a moment", retry_after=1.0)
        return self._worker

    def _ask(self, question: Callable[[JobStore], T]) -> T:
        """Ask the database; what goes wrong there is told without its internals.

        Raises:
            ServiceError: It cannot be reached or written.
        """
        try:
            return question(self._open.store)
        except exc.SQLAlchemyError as problem:
            log.error("the database of jobs failed: %s", short(problem))
            text = (
                "the database of jobs cannot be used now (full disk or lost connection): try again later, nothing was changed"
            )
            raise ServiceError(503, "jobs_unavailable", text, retry_after=5.0) from None

    def _same(self, job: Job, digest: str) -> Job:
        """The job that a word was used for.

        Raises:
            ServiceError: It was another request.
        """
        if job.digest != digest:
            text = f"this Idempotency-Key was used for another request ({job.id}): use a new key for a new request"
            raise ServiceError(409, "idempotency_conflict", text, param="Idempotency-Key")
        return job


def _only(principal: Principal) -> str | None:
    """Whose jobs somebody may see: their own, an admin everybody's."""
    return None if "admin" in principal.scopes else principal.id
