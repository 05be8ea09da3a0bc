"""The table of jobs: SQLite beside the results by default, PostgreSQL for replicas that share their work.

Every change of a job's status is one conditional UPDATE that names the status (and, for a running job, the attempt) it starts
from, so of two processes that want the same change exactly one succeeds. ``attempt`` is the fence: it grows with every claim,
and a process whose lease was taken over finds that its own number is no longer the job's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from atonce.core.errors import InputError
from atonce.serving.job_rows import ENDED, LIVE, VERSION, Job, Owner, jobs, meta, metadata, open_database

STRIKES = 10  # times in a row that a process may die over a job without finishing a part of it
_BARE = [column for column in jobs.c if column.name != "request"]  # a request may hold pictures


class JobStore:
    """Jobs in a database. All methods may be called from any thread.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...``.
        clock: Seconds since 1970, for SQLite; PostgreSQL's own clock decides where hosts share a database.

    Raises:
        InputError: The database cannot be opened, or was written by a later version.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.engine = open_database(url)
        self.postgres = self.engine.dialect.name == "postgresql"
        self._make_tables()

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    # ---- what callers ask for

    def add(self, values: Mapping[str, Any], most: int) -> tuple[Job | None, bool]:
        """Accept a job, unless its owner has too many, or has sent it before.

        Args:
            values: ``id``, ``principal``, ``kind``, ``model``, ``version``, ``request``, ``digest``, ``idempotency`` and
                ``total``.
            most: Jobs of one owner that may wait or run.

        Returns:
            The job and whether it is new; no job where there are too many.
        """
        who, word = values["principal"], values["idempotency"]
        if word is not None and (seen := self.sent_before(who, word)) is not None:
            return seen, False
        other = jobs.alias("other")
        live = sa.select(sa.func.count()).select_from(other)
        live = live.where(other.c.principal == values["principal"], other.c.status.in_(LIVE))
        row = {**values, "status": "queued", "done": 0, "attempt": 0, "strikes": 0, "waits": 0}
        chosen = [sa.literal(value, jobs.c[name].type).label(name) for name, value in row.items()]
        chosen += [self._now.label(name) for name in ("created", "updated", "not_before")]
        source = sa.select(*chosen).where(live.scalar_subquery() < most)
        insert = sa.insert(jobs).from_select([*row, "created", "updated", "not_before"], source)
        try:
            with self.engine.begin() as connection:
                if self.postgres:  # two requests of one owner must not both find the last free place
                    key = sa.func.hashtext(values["principal"])
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
                added = connection.execute(insert.returning(*_BARE)).mappings().first()
        except exc.IntegrityError:  # the same retry came twice at once
            return self.sent_before(who, word), False
        if added is None:  # it may be the same retry that took the last place
            return (None if word is None else self.sent_before(who, word)), False
        return Job.of(added), True

    def sent_before(self, principal: str, word: str) -> Job | None:
        """The job that somebody submitted with this word, if there is one."""
        query = sa.select(*_BARE).where(jobs.c.principal == principal, jobs.c.idempotency == word)
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else Job.of(row)

    def get(self, job: str, principal: str | None = None) -> Job | None:
        """A job by its id, without its request; only if it is the principal's, where one is named."""
        query = sa.select(*_BARE).where(jobs.c.id == job, *_whose(principal))
        with self.engine.connect() as connection:
            found = connection.execute(query).mappings().first()
        return None if found is None else Job.of(found)

    def newest(
        self, principal: str | None, status: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Job]:
        """Jobs, newest first.

        Args:
            principal: Whose; ``None`` for everybody's.
            status: Only those with it.
            limit: How many at most.
            before: Only those older than the job with this id.

        Returns:
            The jobs.
        """
        query = sa.select(*_BARE).where(*_whose(principal))
        if status is not None:
            query = query.where(jobs.c.status == status)
        if before is not None:
            edge = jobs.alias("edge")
            then = sa.select(edge.c.created).where(edge.c.id == before)
            query = query.where(sa.tuple_(jobs.c.created, jobs.c.id) < sa.tuple_(then.scalar_subquery(), sa.literal(before)))
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(limit)).mappings().all()
        return [Job.of(row) for row in rows]

    def cancel(self, job: str, principal: str | None = None) -> tuple[Job | None, bool]:
        """Cancel a job that waits, ask a running one to stop, leave one that has ended as it is; and whether it changed."""
        mine = (jobs.c.id == job, *_whose(principal))
        at_once = {"status": "cancelled", **self._ended}
        changed = self._change(mine, ("queued",), at_once) or self._change(mine, ("running",), {"status": "cancelling"})
        return (changed or self.get(job, principal)), changed is not None

    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)).all()
        return {str(status): int(count) for status, count in rows}

    # ---- what the processes that do the work ask for

    def claim(self, owner: Owner, lease: float) -> Job | None:
        """Take the next job that waits, together with its request.

        The keys take turns (the one whose last job was taken longest ago comes first), and each key's jobs go in their order,
        so a thousand jobs of one key do not hold up another's only one.

        Args:
            owner: The process that will work on it.
            lease: Seconds for which it is theirs.

        Returns:
            The job, or ``None`` where none waits.
        """
        waiting, others = jobs.alias("waiting"), jobs.alias("others")
        turn = sa.select(sa.func.max(others.c.claimed)).where(others.c.principal == waiting.c.principal).scalar_subquery()
        first = (
            sa.select(waiting.c.id)
            .where(waiting.c.status == "queued", waiting.c.not_before <= self._now)
            .order_by(sa.func.coalesce(turn, 0.0), waiting.c.created, waiting.c.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=waiting)
        )
        values = {
            "status": "running",
            "attempt": jobs.c.attempt + 1,
            "claimed": self._now,
            "started": sa.func.coalesce(jobs.c.started, self._now),
            "updated": self._now,
            "began_done": jobs.c.done,
            **_owned(owner),
            "lease_until": self._now + lease,
        }
        return self._change((jobs.c.id == first.scalar_subquery(),), ("queued",), values, request=True)

    def beat(self, job: str, attempt: int, lease: float, done: int) -> str | None:
        """Keep a job for another while and note how far it is.

        Args:
            job: Its id.
            attempt: The claim that it is held by.
            lease: Seconds.
            done: Images that are done.

        Returns:
            Its status, running or cancelling; ``None`` where it is no longer ours.
        """
        values = {"lease_until": self._now + lease, "updated": self._now, "done": done}
        held = self._change(_held(job, attempt), ("running", "cancelling"), values)
        return None if held is None else held.status

    def note(self, job: str, attempt: int, **values: Any) -> bool:
        """Write further facts (``pin``, ``version``, ``total``, ``done``, ``note``, ``strikes``) of a job that we hold."""
        return self._change(_held(job, attempt), ("running", "cancelling"), {"updated": self._now, **values}) is not None

    def end(self, job: str, attempt: int, status: str, **values: Any) -> Job | None:
        """Let a job end as done or failed, or as cancelled where that was asked for meanwhile.

        Args:
            job: Its id.
            attempt: The claim that it is held by.
            status: ``done``, ``failed`` or ``cancelled``.
            values: Result or error.

        Returns:
            The job; ``None`` where it is no longer ours.
        """
        return self._change(_held(job, attempt), ("running",), {"status": status, **self._ended, **values}) or self._change(
            _held(job, attempt), ("cancelling",), {"status": "cancelled", **self._ended}
        )

    def release(self, job: str, attempt: int, delay: float = 0.0, **values: Any) -> Job | None:
        """Give a job back to be taken again after ``delay`` seconds; a job that was to be cancelled is cancelled."""
        back = {"status": "queued", "not_before": self._now + delay, "updated": self._now, **_FREE, **values}
        return self._change(_held(job, attempt), ("running",), back) or self._change(
            _held(job, attempt), ("cancelling",), {"status": "cancelled", **self._ended}
        )

    def take_over(self, alive: Callable[[Owner], bool]) -> list[Job]:
        """Free the jobs of processes that fell silent, and of those that are known to be dead.

        Args:
            alive: Whether a process may still be at work; true for processes of other hosts.

        Returns:
            The jobs that changed.
        """
        active = jobs.c.status.in_(("running", "cancelling"))
        query = sa.select(*_BARE, (jobs.c.lease_until < self._now).label("silent")).where(active)
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        changed = []
        for row in rows:
            job = Job.of(row)
            if row["silent"] or not alive(job.owner):
                # A lease that was renewed since we looked is in the condition: the process was only late.
                late = (*_held(job.id, job.attempt), jobs.c.lease_until == row["lease_until"])
                changed.append(self._free(job, late))
        return [job for job in changed if job is not None]

    def _free(self, job: Job, late: Sequence[sa.ColumnElement[bool]]) -> Job | None:
        if job.status == "cancelling":
            return self._change(late, ("cancelling",), {"status": "cancelled", **self._ended})
        if job.strikes + 1 >= STRIKES:
            text = f"the process that ran this job ended {STRIKES} times without finishing a part of it"
            return self._change(late, ("running",), {"status": "failed", "error_code": "crashed", "error": text, **self._ended})
        back = {"status": "queued", "strikes": job.strikes + 1, "not_before": self._now, "updated": self._now, **_FREE}
        return self._change(late, ("running",), back)

    # ---- the end of what is kept

    def expire(self, keep: float) -> list[Job]:
        """Let results older than ``keep`` seconds expire, and forget jobs that ended twice as long ago.

        Args:
            keep: Seconds.

        Returns:
            The jobs that expired now; their files can go.
        """
        old = jobs.c.finished < self._now - keep
        change = sa.update(jobs).where(jobs.c.status == "done", old).values(status="expired", updated=self._now)
        forget = sa.delete(jobs).where(jobs.c.status.in_(ENDED), jobs.c.finished < self._now - 2 * keep)
        with self.engine.begin() as connection:
            expired = [Job.of(row) for row in connection.execute(change.returning(*_BARE)).mappings().all()]
            connection.execute(forget.where(jobs.c.status != "done"))
        return expired

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Which of some ids are those of no job that waits, runs or has a result."""
        kept = sa.select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.status.in_((*LIVE, "done")))
        with self.engine.connect() as connection:
            found = set(connection.execute(kept).scalars())
        return [job for job in ids if job not in found]

    def place(self, mark: str) -> str:
        """The mark of the folder of results that belongs to this database; the first one to ask decides it."""
        with self.engine.begin() as connection:
            name = sa.select(meta.c.value).where(meta.c.key == "place")
            there = connection.execute(name).scalar()
            if there is None:
                mine = sa.select(sa.literal("place"), sa.literal(mark)).where(~sa.exists(name))
                try:
                    with connection.begin_nested():
                        connection.execute(sa.insert(meta).from_select(["key", "value"], mine))
                except exc.IntegrityError:
                    pass
                there = connection.execute(name).scalar()
        return str(there)

    # ---- inside

    @property
    def _now(self) -> sa.ColumnElement[float]:
        if self.postgres:
            return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)
        return sa.literal(self.clock(), sa.Double)

    @property
    def _ended(self) -> dict[str, Any]:
        """What changes with every job that ends; its request, which may hold pictures, is kept no longer."""
        return {"finished": self._now, "updated": self._now, "request": "", **_FREE}

    def _change(
        self,
        where: Sequence[sa.ColumnElement[bool]],
        statuses: Sequence[str],
        values: Mapping[str, Any],
        request: bool = False,
    ) -> Job | None:
        """Change one job if it has one of some statuses; the job as it is then, or ``None`` where another was quicker."""
        columns = list(jobs.c) if request else _BARE
        update = sa.update(jobs).where(*where, jobs.c.status.in_(statuses)).values(dict(values)).returning(*columns)
        with self.engine.begin() as connection:
            row = connection.execute(update).mappings().first()
        return None if row is None else Job.of(row)

    def _make_tables(self) -> None:
        for last in (False, False, False, True):  # processes that start together may all try
            try:
                with self.engine.begin() as connection:
                    if self.postgres:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x61746F6E)))
                    metadata.create_all(connection)
                    there = connection.execute(sa.select(meta.c.value).where(meta.c.key == "schema")).scalar()
                    if there is None:
                        connection.execute(sa.insert(meta).values(key="schema", value=str(VERSION)))
                break
            except exc.DatabaseError as problem:
                if last or not any(word in str(problem) for word in ("already exists", "UNIQUE", "locked")):
                    where = self.engine.url.render_as_string(hide_password=True)
                    raise InputError(f"the database of jobs {where} cannot be used: {problem.orig}".splitlines()[0]) from None
                time.sleep(0.1)
        if there is not None and int(there) != VERSION:
            raise InputError(
                f"the database of jobs has schema {there}, this version of atonce knows {VERSION}: use the version that wrote "
                "it, or another database"
            )


_FREE: dict[str, Any] = {"worker": None, "host": None, "pid": None, "pid_started": None, "lease_until": None}


def _owned(owner: Owner) -> dict[str, Any]:
    return {"worker": owner.worker, "host": owner.host, "pid": owner.pid, "pid_started": owner.started}


def _held(job: str, attempt: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (jobs.c.id == job, jobs.c.attempt == attempt)


def _whose(principal: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    return () if principal is None else (jobs.c.principal == principal,)
