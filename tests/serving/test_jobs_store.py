"""The table of jobs, in both databases: each change happens once, whoever else wants it at the same time."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

import sqlalchemy as sa

from atonce.core.errors import InputError
from atonce.serving.job_process import may_live, started, this_process
from atonce.serving.job_rows import Job, Owner, open_database
from atonce.serving.jobstore import STRIKES, JobStore

ME = this_process()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    return str(request.getfixturevalue("empty_postgres"))


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    found = JobStore(url)
    yield found
    found.close()


def row(number: int, principal: str = "key:a", word: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": f"job_{principal[-1]}{number:023d}",
        "principal": principal,
        "kind": "generate",
        "model": "digits",
        "version": None,
        "request": '{"n": 10}',
        "digest": "d",
        "idempotency": word,
        "total": 10,
        **more,
    }


def add(store: JobStore, number: int, principal: str = "key:a", word: str | None = None, most: int = 1000) -> Job | None:
    return store.add(row(number, principal, word), most)[0]


def test_a_job_goes_through_its_life(store: JobStore) -> None:
    made = add(store, 1)
    assert made is not None
    assert made.status == "queued"
    assert made.request == ""
    assert abs(made.created - time.time()) < 60
    taken = store.claim(ME, 10)
    assert taken is not None
    assert taken.id == made.id
    assert (taken.status, taken.attempt, taken.request, taken.owner) == ("running", 1, '{"n": 10}', ME)
    assert store.claim(ME, 10) is None
    assert store.beat(made.id, 1, 10, 4) == "running"
    assert store.note(made.id, 1, pin="p", version="v1")
    ended = store.end(made.id, 1, "done", file="f.zip", sha256="s", bytes=5_000_000_000, done=10)
    assert ended is not None
    assert ended.ended
    assert (ended.bytes, ended.pin, ended.version) == (5_000_000_000, "p", "v1")
    assert ended.owner == Owner("", "", 0, "")
    assert ended.finished is not None
    assert store.end(made.id, 1, "failed") is None, "a job ends once"
    assert store.get(made.id) == ended
    with store.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT request FROM atonce_jobs")).scalar() == "", "pictures are kept no longer"
    assert store.counts() == {"done": 1}


def test_a_stale_claim_changes_nothing(store: JobStore) -> None:
    job = add(store, 1)
    store.claim(ME, 10)
    store.release(job.id, 1, 0.0)
    again = store.claim(ME, 10)
    assert again.attempt == 2
    assert store.beat(job.id, 1, 10, 9) is None
    assert not store.note(job.id, 1, pin="other")
    assert store.end(job.id, 1, "done") is None
    assert store.release(job.id, 1) is None
    now = store.get(job.id)
    assert (now.status, now.attempt, now.done, now.pin) == ("running", 2, 0, None)


def test_claims_by_many_threads_are_of_different_jobs(store: JobStore) -> None:
    for number in range(40):
        add(store, number)
    gate = threading.Barrier(8)

    def take(_: int) -> list[str]:
        gate.wait()
        found = []
        while (job := store.claim(this_process(), 10)) is not None:
            found.append(job.id)
        return found

    with ThreadPoolExecutor(8) as pool:
        taken = [job for some in pool.map(take, range(8)) for job in some]
    assert len(taken) == len(set(taken)) == 40
    assert all(job.attempt == 1 for job in store.newest(None))


def test_the_limit_of_a_key_holds_exactly_under_a_rush(store: JobStore) -> None:
    gate = threading.Barrier(8)

    def rush(worker: int) -> int:
        gate.wait()
        return sum(add(store, 100 * worker + i, most=13) is not None for i in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(rush, range(8))) == 13
    assert add(store, 900, "key:b", most=13) is not None, "another key has places of its own"
    done = store.claim(ME, 10)
    store.end(done.id, 1, "done")
    assert add(store, 901, most=13) is not None or done.principal == "key:b"


def test_a_request_that_is_sent_again_makes_one_job(store: JobStore) -> None:
    gate = threading.Barrier(8)

    def send(number: int) -> tuple[str, bool]:
        gate.wait()
        job, new = store.add(row(number, word="w"), 1)
        assert job is not None
        return job.id, new

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert len({job for job, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1
    other, new = store.add(row(9, "key:b", "w"), 1)
    assert (new, other.principal) == (True, "key:b"), "the word is a key's own"


def test_keys_take_turns(store: JobStore) -> None:
    for number in range(4):
        add(store, number, "key:a")
    add(store, 4, "key:b")
    order = [store.claim(ME, 10).principal for _ in range(5)]
    assert order == ["key:a", "key:b", "key:a", "key:a", "key:a"]
    assert [job.id for job in reversed(store.newest("key:a"))] == [row(i)["id"] for i in range(4)]


def test_cancelling(store: JobStore) -> None:
    for number in range(3):
        add(store, number)
    running = store.claim(ME, 10)
    waiting = row(1)["id"]
    assert store.cancel(waiting)[0].status == "cancelled"
    assert store.cancel(waiting) == (store.get(waiting), False), "again changes nothing"
    assert store.cancel(running.id, "key:b") == (None, False), "it is not theirs"
    job, changed = store.cancel(running.id, "key:a")
    assert changed
    assert job.status == "cancelling"
    assert store.beat(running.id, 1, 10, 3) == "cancelling"
    ended = store.end(running.id, 1, "done", file="x")
    assert (ended.status, ended.file) == ("cancelled", None), "whoever cancelled is not given a result"
    last = store.claim(ME, 10)
    store.cancel(last.id)
    assert store.release(last.id, 1).status == "cancelled"


def test_silent_and_dead_processes_lose_their_jobs(store: JobStore) -> None:
    for number in range(3):
        add(store, number)
    silent, fine, dead = (store.claim(ME, lease) for lease in (-1.0, 60.0, 60.0))
    gone = Owner("x", "here", 1, "0")
    with store.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE atonce_jobs SET host='here', pid=1 WHERE id='{dead.id}'"))
    freed = store.take_over(lambda owner: owner.host != gone.host)
    assert {job.id for job in freed} == {silent.id, dead.id}
    assert {job.status for job in freed} == {"queued"}
    assert store.get(fine.id).status == "running"
    assert store.take_over(lambda owner: True) == []
    again = store.claim(ME, 60.0)
    assert again.attempt == 2
    assert again.strikes == 1


def test_two_processes_that_free_the_same_job_free_it_once(store: JobStore) -> None:
    add(store, 1)
    store.claim(ME, -1.0)
    gate = threading.Barrier(8)

    def free(_: int) -> int:
        gate.wait()
        return len(store.take_over(lambda owner: True))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(free, range(8))) == 1
    assert store.claim(ME, 10).strikes == 1


def test_a_job_that_kills_its_process_again_and_again_fails(store: JobStore) -> None:
    job = add(store, 1)
    for _ in range(STRIKES):
        assert store.claim(ME, -1.0) is not None
        store.take_over(lambda owner: True)
    ended = store.get(job.id)
    assert ended.status == "failed"
    assert ended.error_code == "crashed"
    assert str(STRIKES) in ended.error
    other = add(store, 2)
    for _ in range(2 * STRIKES):  # one that gets on is no such job
        claim = store.claim(ME, -1.0)
        store.note(other.id, claim.attempt, strikes=0)
        store.take_over(lambda owner: True)
    assert store.get(other.id).status == "queued"


def test_cancelling_jobs_of_the_dead_are_cancelled(store: JobStore) -> None:
    job = add(store, 1)
    store.claim(ME, -1.0)
    store.cancel(job.id)
    assert [job.status for job in store.take_over(lambda owner: True)] == ["cancelled"]


def test_a_job_that_is_put_off_waits_its_time(store: JobStore) -> None:
    job = add(store, 1)
    store.claim(ME, 10)
    assert store.release(job.id, 1, 0.4, note="waits", waits=1).note == "waits"
    assert store.claim(ME, 10) is None
    time.sleep(0.5)
    assert store.claim(ME, 10).waits == 1


def test_lists_and_pages(store: JobStore) -> None:
    for number in range(5):
        add(store, number, "key:a" if number % 2 == 0 else "key:b")
    everyone = [job.id for job in store.newest(None)]
    assert everyone == [row(i, "key:a" if i % 2 == 0 else "key:b")["id"] for i in (4, 3, 2, 1, 0)]
    assert [job.id for job in store.newest("key:a")] == everyone[::2]
    first = store.newest(None, limit=2)
    rest = store.newest(None, before=first[-1].id)
    assert [job.id for job in [*first, *rest]] == everyone
    store.cancel(everyone[0])
    assert [job.id for job in store.newest(None, "cancelled")] == everyone[:1]
    assert store.get(everyone[0], "key:b") is None
    assert store.get(everyone[0], "key:a") is not None
    assert store.newest("key:a", before="job_of_nobody") == []


def test_results_expire_and_old_jobs_are_forgotten(store: JobStore) -> None:
    for number in range(3):
        add(store, number)
    done = store.claim(ME, 10)
    store.end(done.id, 1, "done", file="f")
    failed = store.claim(ME, 10)
    store.end(failed.id, 1, "failed", error="e", error_code="c")

    def age(seconds: float) -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE atonce_jobs SET finished = finished - {seconds}"))

    assert store.expire(1000.0) == []
    assert store.unknown([done.id, failed.id, "job_x"]) == [failed.id, "job_x"]
    age(1001.0)
    assert [(job.id, job.status) for job in store.expire(1000.0)] == [(done.id, "expired")]
    assert store.get(done.id).status == "expired"
    assert store.unknown([done.id]) == [done.id]
    assert store.get(failed.id) is not None
    age(1001.0)
    assert store.expire(1000.0) == []
    assert store.get(done.id) is None
    assert store.get(failed.id) is None
    assert store.counts() == {"queued": 1}


def test_the_first_folder_of_results_is_the_one(url: str) -> None:
    stores = [JobStore(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        marks = list(pool.map(lambda pair: pair[1].place(f"folder {pair[0]}"), enumerate(stores)))
    assert len(set(marks)) == 1
    for store in stores:
        store.close()


def test_stores_that_open_together_make_one_set_of_tables(url: str) -> None:
    gate = threading.Barrier(6)

    def begin(_: int) -> dict[str, int]:
        gate.wait()
        store = JobStore(url)
        try:
            return store.counts()
        finally:
            store.close()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(begin, range(6))) == [{}] * 6


def test_tables_of_another_schema_are_refused(store: JobStore, url: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE atonce_meta SET value='2' WHERE key='schema'"))
    with pytest.raises(InputError, match="schema 2, this version of atonce knows 1"):
        JobStore(url)


def test_rate_and_time_left_are_those_of_the_present_attempt() -> None:
    moment = {"created": 0.0, "updated": 110.0, "claimed": 100.0, "started": 0.0, "finished": None, "owner": ME}
    names = dict.fromkeys(Job.__dataclass_fields__)
    job = Job(**{**names, **moment, "status": "running", "total": 100, "done": 60, "began_done": 40})  # type: ignore[arg-type]
    assert job.rate == 2.0
    assert job.left == 20.0
    fresh = Job(**{**names, **moment, "status": "running", "total": 100, "done": 40, "began_done": 40})  # type: ignore[arg-type]
    assert fresh.rate is None
    assert fresh.left is None


def test_sqlite_is_strict_and_survives_power_cuts(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path / 'new' / 'jobs.sqlite'}")
    add(store, 1)
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()
    raw = sqlite3.connect(tmp_path / "new" / "jobs.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT value in INTEGER column"):
        raw.execute("UPDATE atonce_jobs SET total = 'many'")
    raw.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://root@localhost/jobs", "SQLite or PostgreSQL, not in mysql"),
        ("sqlite://", "in a file"),
        ("sqlite:///:memory:", "in a file"),
        ("://", "cannot be read"),
    ],
)
def test_addresses_that_mean_nothing_are_refused(url: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_database(url)


def test_a_database_that_is_none_is_refused_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "no.sqlite").write_text("this is no database, but a text of more than one hundred bytes " * 4)
    with pytest.raises(InputError, match="cannot be used: file is not a database"):
        JobStore(f"sqlite:///{tmp_path / 'no.sqlite'}")
    pytest.importorskip("psycopg")
    with pytest.raises(InputError) as caught:
        JobStore(f"postgresql://someone:secret@/none?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_this_process_lives_and_a_child_that_ended_does_not(run_child: Callable[[], int]) -> None:
    assert may_live(ME)
    pid = run_child()
    assert not may_live(Owner("w", ME.host, pid, "1"))
    assert may_live(Owner("w", "another host", pid, "1")), "of other hosts nobody knows"
    if started(ME.pid):
        assert not may_live(Owner("w", ME.host, ME.pid, "another start")), "the number was given to another process"


@pytest.fixture
def run_child() -> Callable[[], int]:
    import subprocess
    import sys

    def run() -> int:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        return child.pid

    return run
