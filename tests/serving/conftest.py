"""What several tests of the service need: a PostgreSQL of our own, on a Unix socket in a temporary folder, and jobs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _postgres_bin() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a PostgreSQL server that holds nothing, for SQLAlchemy; skipped where there is none."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'psycopg[binary]'")
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("no PostgreSQL: neither initdb on the PATH nor /usr/lib/postgresql/*/bin")
    user: str | None = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    folder = Path(tempfile.mkdtemp(prefix="atonce-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(command, user=user, capture_output=True, text=True, cwd=folder, timeout=120)
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    try:
        run(str(binaries / "initdb"), "-D", str(data), "-U", "atonce", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c max_connections=60"
        run(str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "-t", "60", "start")
        try:
            yield f"postgresql+psycopg://atonce@/postgres?host={folder}"
        finally:
            run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_postgres(postgres: str) -> str:
    """The same server without any table of an earlier test."""
    import sqlalchemy as sa

    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    """Jobs that have begun, and the engine below them; stopped when the test ends."""
    sys.path.insert(0, str(Path(__file__).parent))
    from jobs_process import Log, SlowEngine, SlowHosts, settings_of

    from atonce.serving.jobs import Jobs

    begun: list[Jobs] = []

    def start(delay: float = 0.0, engines: Any = None, **more: Any) -> tuple[Any, Any]:
        settings = settings_of(tmp_path, **more)
        found = engines or [SlowEngine(settings, delay=delay)]
        jobs = Jobs(settings, SlowHosts(*found), Log(tmp_path / "log"))  # type: ignore[arg-type]
        jobs.start()
        begun.append(jobs)
        return jobs, found[-1]

    yield start
    for jobs in begun:
        jobs.stop()
