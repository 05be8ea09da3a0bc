"""What is kept of a job, and the database that keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from atonce.core.errors import InputError, MissingExtraError
from atonce.serving.private import private_file

VERSION = 1  # of the tables
LIVE = ("queued", "running", "cancelling")
ENDED = ("cancelled", "done", "failed", "expired")

# SQLite's strict tables know four types; PostgreSQL's REAL has too few digits for a time, its INTEGER for a size.
_SECONDS: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
_BYTES: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()

meta = sa.Table(
    "atonce_meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_strict=True,
)

jobs = sa.Table(
    "atonce_jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text),  # asked for at first, then the one that it began with
    sa.Column("pin", sa.Text),  # what finished parts were made with
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # of the request as it was sent
    sa.Column("idempotency", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("began_done", sa.Integer),  # how many were done when it was last taken up
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("strikes", sa.Integer, nullable=False),  # deaths of its process since a part was last finished
    sa.Column("waits", sa.Integer, nullable=False),  # times that it was put off
    sa.Column("note", sa.Text),
    sa.Column("created", _SECONDS, nullable=False),
    sa.Column("updated", _SECONDS, nullable=False),
    sa.Column("not_before", _SECONDS, nullable=False),
    sa.Column("claimed", _SECONDS),
    sa.Column("started", _SECONDS),
    sa.Column("finished", _SECONDS),
    sa.Column("worker", sa.Text),
    sa.Column("host", sa.Text),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.Text),
    sa.Column("lease_until", _SECONDS),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("file", sa.Text),
    sa.Column("sha256", sa.Text),
    sa.Column("bytes", _BYTES),
    sa.Index("atonce_jobs_once", "principal", "idempotency", unique=True),
    sa.Index("atonce_jobs_by_status", "status", "not_before"),
    sa.Index("atonce_jobs_by_principal", "principal", "created"),
    sa.Index("atonce_jobs_turns", "principal", "claimed"),
    sqlite_strict=True,
)


@dataclass(frozen=True)
class Owner:
    """A process that works on jobs.

    Attributes:
        worker: A name of its own, never used again.
        host: The machine and the space of process numbers.
        pid: Its number there.
        started: When it began, as the system counts; tells it from a later process with the same number.
    """

    worker: str
    host: str
    pid: int
    started: str


@dataclass(frozen=True)
class Job:
    """A job as the database has it; times are seconds since 1970.

    Attributes:
        id: Its name.
        principal: Whose it is.
        kind: ``generate`` or the name of an edit.
        model: Name of the model.
        version: The version asked for, then the one that it began with.
        pin: What the finished parts were made with.
        digest: Of the request as it was sent.
        status: ``queued``, ``running``, ``cancelling``, ``cancelled``, ``done``, ``failed`` or ``expired``.
        total: Images in all.
        done: Images that are done.
        began_done: Images that were done when it was last taken up.
        attempt: How often it was taken up.
        strikes: How often its process died since it last finished a part.
        waits: How often it was put off.
        note: A line about what happened to it.
        created: When it was accepted.
        updated: When it last changed.
        claimed: When it was last taken up.
        started: When it was first taken up.
        finished: When it ended.
        owner: Who works on it.
        error_code: Why it failed, for programs.
        error: Why it failed, for people.
        file: Name of its result.
        sha256: Digest of the result.
        bytes: Size of the result.
        request: What is wanted, as JSON; empty where it was not asked for.
    """

    id: str
    principal: str
    kind: str
    model: str
    version: str | None
    pin: str | None
    digest: str
    status: str
    total: int
    done: int
    began_done: int | None
    attempt: int
    strikes: int
    waits: int
    note: str | None
    created: float
    updated: float
    claimed: float | None
    started: float | None
    finished: float | None
    owner: Owner
    error_code: str | None
    error: str | None
    file: str | None
    sha256: str | None
    bytes: int | None
    request: str = ""

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Job:
        """A row of the table as a job."""
        owner = Owner(row["worker"] or "", row["host"] or "", row["pid"] or 0, row["pid_started"] or "")
        own = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**own, owner=owner)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen, but that the result expires."""
        return self.status in ENDED

    @property
    def rate(self) -> float | None:
        """Images per second since it was last taken up; ``None`` where none were made."""
        if self.claimed is None or self.began_done is None or self.done <= self.began_done:
            return None
        seconds = (self.finished or self.updated) - self.claimed
        return (self.done - self.began_done) / seconds if seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until it is done at that rate; ``None`` where that is not known."""
        if self.status != "running":
            return None
        return None if self.rate is None else (self.total - self.done) / self.rate


def open_database(url: str) -> sa.Engine:
    """Open a database for jobs.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER@HOST/NAME`` or a path of a SQLite file.

    Returns:
        SQLAlchemy's engine.

    Raises:
        InputError: The address means nothing to us.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    try:
        address = sa.engine.make_url(url if "://" in url else f"sqlite:///{url}")
    except (exc.ArgumentError, ValueError):
        raise InputError("the address of the jobs' database cannot be read: give sqlite:///FILE or postgresql://...") from None
    if address.get_backend_name() == "sqlite":
        if not address.database or address.database == ":memory:":
            raise InputError("jobs need a database in a file, a restart would lose them: give sqlite:///FILE")
        try:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise InputError(f"{Path(address.database).parent} cannot be made: {problem.strerror}") from problem
        with contextlib.suppress(OSError):  # SQLite says what is wrong when it opens the file
            # What SQLite writes beside a file gets its permissions, unless it is there already.
            for name in ("", *(end for end in ("-wal", "-shm") if Path(address.database + end).exists())):
                private_file(Path(address.database + name))
        engine = sa.create_engine(address.set(drivername="sqlite"), connect_args={"timeout": 30.0})
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    if address.get_backend_name() != "postgresql":
        raise InputError(f"jobs are kept in SQLite or PostgreSQL, not in {address.get_backend_name()}")
    try:
        return sa.create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=8, max_overflow=8)
    except ModuleNotFoundError:
        raise MissingExtraError("jobs in PostgreSQL need psycopg: pip install 'psycopg[binary]'") from None


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # A job that was accepted must outlive a power cut too, so every commit reaches the disk.
    for pragma in ("busy_timeout=30000", "auto_vacuum=FULL", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
