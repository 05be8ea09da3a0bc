"""Jobs and what goes wrong: stops, damage, versions that vanish, full disks, failing networks, lost leases, expiry."""

from __future__ import annotations

import errno
import io
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

import sqlalchemy as sa
from PIL import Image

from atonce.core.errors import InputError
from atonce.serving import job_files, job_worker
from atonce.serving.errors import ServiceError
from atonce.serving.job_rows import Job
from atonce.serving.jobs import Jobs

sys.path.insert(0, str(Path(__file__).parent))
from jobs_process import ALICE, SlowEngine, ask, ended, lines, right, settings_of, until

Make = Callable[..., tuple[Jobs, SlowEngine]]


def test_a_stopped_process_leaves_its_job_to_the_next_at_once(make: Make, tmp_path: Path) -> None:
    jobs, engine = make(delay=0.004, job_lease=60.0)
    job = ask(jobs, 1024)
    until(lambda: len(list((tmp_path / "jobs" / job.id).glob("*/*.part"))) >= 2)
    jobs.stop()
    kept = sorted(int(path.stem) for path in (tmp_path / "jobs" / job.id).glob("*/*.part"))
    assert 2 <= len(kept) < 4
    with pytest.raises(ServiceError) as caught:
        jobs.get(ALICE, job.id)
    assert caught.value.status == 503
    again, engine = make()
    done = ended(again, job)
    assert done.status == "done"
    assert done.attempt == 2
    assert [first for _, first, _ in engine.asked] == [first for first in (0, 256, 512, 768) if first not in kept]
    assert done.sha256 == ended(again, ask(again, 1024)).sha256


def test_a_part_that_was_damaged_is_made_again(make: Make, tmp_path: Path) -> None:
    jobs, _ = make(delay=0.004)
    job = ask(jobs, 1024)
    until(lambda: len(list((tmp_path / "jobs" / job.id).glob("*/*.part"))) >= 2)
    jobs.stop()
    parts = sorted((tmp_path / "jobs" / job.id).glob("*/*.part"))
    content = bytearray(parts[0].read_bytes())
    content[-100] ^= 1  # one bit of an image
    parts[0].write_bytes(content)
    parts[1].write_bytes(parts[1].read_bytes()[:-7])
    again, engine = make()
    done = ended(again, job)
    assert {0, 256} <= {first for _, first, _ in engine.asked}
    assert done.sha256 == ended(again, ask(again, 1024)).sha256


def test_slow_engines_get_smaller_parts_and_a_job_keeps_its_own(make: Make, tmp_path: Path) -> None:
    jobs, engine = make(delay=0.004)
    engine.rate = 20.0
    job = ask(jobs, 300)
    until(lambda: list((tmp_path / "jobs" / job.id).glob("*/*.part")))
    jobs.stop()
    assert {n for _, _, n in engine.asked} == {40}, "two seconds of work"
    again, engine = make()
    engine.rate = 100_000.0
    done = ended(again, job)
    assert {n for _, _, n in engine.asked} <= {40, 20}, "the last one is the rest"
    assert done.sha256 == ended(again, ask(again, 300)).sha256, "how it is cut does not show"
    assert engine.asked[-2:] == [(7, 0, 256), (7, 256, 44)]


def stopped_halfway(make: Make, tmp_path: Path, **more: Any) -> Job:
    jobs, _ = make(delay=0.004)
    job = ask(jobs, 1024, **more)
    until(lambda: len(list((tmp_path / "jobs" / job.id).glob("*/*.part"))) >= 1)
    jobs.stop()
    return job


def test_a_job_stays_with_the_version_it_began_with(make: Make, tmp_path: Path) -> None:
    job = stopped_halfway(make, tmp_path)
    settings = settings_of(tmp_path)
    jobs, _ = make(engines=[SlowEngine(settings, "1"), SlowEngine(settings, "2")])
    done = ended(jobs, job)
    assert (done.version, done.note) == ("1", None)
    assert ended(jobs, ask(jobs, 10)).version == "2"


def test_a_job_whose_version_is_gone_starts_anew_and_says_so(make: Make, tmp_path: Path) -> None:
    job = stopped_halfway(make, tmp_path)
    jobs, engine = make(engines=[SlowEngine(settings_of(tmp_path), "2")])
    done = ended(jobs, job)
    assert (done.status, done.version) == ("done", "2")
    assert done.note == "begun anew with version 2 on eager: version 1 on eager, with which it began, is gone"
    assert [first for _, first, _ in engine.asked] == [0, 256, 512, 768], "nothing of the old version is mixed in"
    with zipfile.ZipFile(jobs.result(ALICE, job.id)[1]) as archive:
        first = np.asarray(Image.open(io.BytesIO(archive.read("000000.png"))))
    assert np.array_equal(first, right(1, 7, shift=0.2)[0, 0])


def test_a_job_that_named_its_version_fails_where_that_is_gone(make: Make, tmp_path: Path) -> None:
    job = stopped_halfway(make, tmp_path, version="1")
    jobs, _ = make(engines=[SlowEngine(settings_of(tmp_path), "2")])
    done = ended(jobs, job)
    assert (done.status, done.error_code) == ("failed", "not_found")
    assert "no version '1'" in done.error
    with pytest.raises(ServiceError, match="failed: digits has no version '1'") as caught:
        jobs.result(ALICE, job.id)
    assert caught.value.status == 409


def test_parts_of_another_backend_are_not_mixed_in(make: Make, tmp_path: Path) -> None:
    job = stopped_halfway(make, tmp_path)
    jobs, engine = make(engines=[SlowEngine(settings_of(tmp_path), backend="openvino")])
    done = ended(jobs, job)
    assert "begun anew with version 1 on openvino" in done.note
    assert [first for _, first, _ in engine.asked] == [0, 256, 512, 768]


def test_a_full_disk_puts_a_job_off_and_the_service_lives(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, _ = make()
    jobs._open.backoff = 0.05
    full = threading.Event()
    full.set()
    write = job_files.write_atomic

    def limited(path: Path, content: Any, **options: Any) -> None:
        def fill(temporary: Path) -> None:
            content(temporary)
            if full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")

        write(path, fill, **options)

    monkeypatch.setattr(job_files, "write_atomic", limited)
    job = ask(jobs, 300)
    now = until(lambda: (now := jobs.get(ALICE, job.id)).waits >= 2 and now)
    assert now.status in ("queued", "running")
    assert now.note == "the server's disk is full: the job waits, and goes on from 0 of 300 images when there is space"
    assert ask(jobs, 10, 8).status == "queued", "others are accepted"
    full.clear()
    assert ended(jobs, job).status == "done"


def test_a_disk_that_stays_full_fails_the_job_with_a_sentence(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, _ = make()
    jobs._open.backoff = 0.001
    monkeypatch.setattr(job_worker, "WAITS", 3)

    def never(path: Path, content: Any, **options: Any) -> None:
        from atonce.core.files import storage_errors

        with storage_errors(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(job_files, "write_atomic", never)
    done = ended(jobs, ask(jobs, 300))
    assert (done.status, done.error_code) == ("failed", "storage")
    assert done.error == "the server's disk is full, and stayed so over 3 tries: submit the job again later"


def test_a_database_that_fails_is_a_503_and_comes_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, _ = make()
    with monkeypatch.context() as patch:

        def broken(*_: Any, **__: Any) -> Any:
            raise sa.exc.OperationalError("INSERT secret statement", {}, Exception("database or disk is full"))

        patch.setattr(jobs._open.store.engine, "begin", broken)
        with pytest.raises(ServiceError, match="cannot be used now") as caught:
            ask(jobs, 10)
        assert caught.value.status == 503
        assert caught.value.retry_after
        assert "secret" not in str(caught.value)
        time.sleep(0.6)
    assert ended(jobs, ask(jobs, 10)).status == "done"


def test_failing_networks_are_tried_again_and_then_told(make: Make) -> None:
    jobs, engine = make()
    jobs._open.backoff = 0.01
    calls = []

    def fail(ask: Any) -> None:
        calls.append(ask)
        raise ServiceError(500, "network_failed", "the network gave no numbers")

    engine.fail = fail
    done = ended(jobs, ask(jobs, 300))
    assert (done.status, done.error_code, done.error) == ("failed", "network_failed", "the network gave no numbers")
    assert len(calls) == job_worker.TRIES


def test_an_overloaded_engine_is_waited_for(make: Make) -> None:
    jobs, engine = make()
    refusals = [ServiceError(503, "overloaded", "busy", retry_after=0.05) for _ in range(3)]

    def fail(ask: Any) -> None:
        if refusals:
            raise refusals.pop()

    engine.fail = fail
    done = ended(jobs, ask(jobs, 300))
    assert (done.status, done.attempt, refusals) == ("done", 1, [])


def test_a_draining_engine_gives_the_job_back(make: Make) -> None:
    jobs, engine = make()
    jobs._open.backoff = 0.02
    refusals = [ServiceError(503, "draining", "stopping", retry_after=0.02)]

    def fail(ask: Any) -> None:
        if refusals:
            raise refusals.pop()

    engine.fail = fail
    done = ended(jobs, ask(jobs, 300))
    assert (done.status, done.attempt, done.strikes) == ("done", 2, 0)


def test_our_own_mistakes_fail_the_job_without_telling_of_them(make: Make) -> None:
    jobs, engine = make()

    def fail(ask: Any) -> None:
        raise RuntimeError("secret /path/of/ours")

    engine.fail = fail
    done = ended(jobs, ask(jobs, 300))
    assert (done.status, done.error_code) == ("failed", "internal")
    assert "secret" not in done.error
    engine.fail = lambda ask: None
    assert ended(jobs, ask(jobs, 10)).status == "done"


def test_a_process_that_slept_too_long_leaves_its_job(make: Make, tmp_path: Path) -> None:
    jobs, engine = make(delay=0.004, job_lease=0.5)
    job = ask(jobs, 1024)
    until(lambda: jobs.get(ALICE, job.id).done > 0)
    store = jobs._open.store
    with store.engine.begin() as connection:  # as if another process had taken it over meanwhile
        connection.execute(sa.text("UPDATE atonce_jobs SET attempt = attempt + 1, lease_until = lease_until + 1"))
    done = ended(jobs, job)
    assert (done.status, done.attempt) == ("done", 3), "the other one's lease ran out in its turn"
    assert lines(tmp_path).count("status generate done") == 1


def test_parts_of_earlier_attempts_do_not_clear_a_job_that_kills_its_process(make: Make, tmp_path: Path) -> None:
    job = stopped_halfway(make, tmp_path)
    jobs, engine = make(job_workers=0)
    with jobs._open.store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE atonce_jobs SET strikes = 4"))
    jobs.stop()
    jobs, engine = make(delay=0.004)
    engine.fail = lambda ask: time.sleep(0.3)
    until(lambda: jobs.get(ALICE, job.id).attempt == 2 and engine.asked)
    assert jobs.get(ALICE, job.id).strikes == 4
    engine.fail = lambda ask: None
    assert ended(jobs, job).strikes == 0, "a part that was finished does"


def test_results_expire_with_their_files(make: Make, tmp_path: Path) -> None:
    jobs, _ = make(job_keep=0.4)
    job = ended(jobs, ask(jobs, 10))
    path = tmp_path / "jobs" / job.id
    assert path.is_dir()
    until(lambda: not path.exists())
    store = jobs._open.store
    found = store.get(job.id)
    if found is not None:
        assert found.status == "expired"
        with pytest.raises(ServiceError, match="was kept for") as caught:
            jobs.result(ALICE, job.id)
        assert (caught.value.status, caught.value.code) == (404, "expired")
    until(lambda: store.get(job.id) is None)


def test_files_of_no_job_are_swept(make: Make, tmp_path: Path) -> None:
    orphan, ours = tmp_path / "jobs" / ("job_" + "a" * 24), tmp_path / "jobs" / "notes"
    orphan.mkdir(parents=True)
    ours.mkdir()
    make()
    until(lambda: not orphan.exists())
    assert ours.exists(), "what is not a job's is left alone"


def test_another_folder_of_results_is_refused(make: Make, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    jobs, _ = make(jobs=database)
    other = Jobs(settings_of(tmp_path / "elsewhere", jobs=database), jobs.hosts)
    with pytest.raises(InputError, match="give all replicas the same one"):
        other.start()
    twin = Jobs(settings_of(tmp_path, jobs=database, job_workers=0), jobs.hosts)
    twin.start()
    twin.stop()


def test_a_result_that_vanished_is_said_to_be_gone(make: Make) -> None:
    jobs, _ = make()
    job = ended(jobs, ask(jobs, 10))
    jobs.result(ALICE, job.id)[1].unlink()
    with pytest.raises(ServiceError, match="no longer on the disk") as caught:
        jobs.result(ALICE, job.id)
    assert caught.value.status == 404
