"""Processes that are killed at any moment: no job is lost, none ends twice, and the bytes are those of a quiet life."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")


from atonce.core.files import sha256_file
from atonce.serving.job_rows import Job
from atonce.serving.jobs import Jobs
from atonce.serving.schemas import GenerateRequest

sys.path.insert(0, str(Path(__file__).parent))
from jobs_process import ALICE, BOB, SlowEngine, SlowHosts, settings_of, until

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "jobs_process.py"
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Begin a process that works on jobs."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(delay: float, **settings: Any) -> subprocess.Popen[bytes]:
        told = {"state": str(tmp_path / "state"), "log": str(tmp_path / "log"), "delay": delay, "settings": settings}
        process = subprocess.Popen([sys.executable, str(SCRIPT), json.dumps(told)])
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Jobs]]:
    """Jobs that can be submitted and looked at, but are not worked on in this process."""
    opened: list[Jobs] = []

    def open_desk(**more: Any) -> Jobs:
        settings = settings_of(tmp_path / "state", job_workers=0, **more)
        jobs = Jobs(settings, SlowHosts(SlowEngine(settings)))  # type: ignore[arg-type]
        jobs.start()
        opened.append(jobs)
        return jobs

    yield open_desk
    for jobs in opened:
        jobs.stop()


def log(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def count(tmp_path: Path, word: str) -> collections.Counter[str]:
    """How often each line with a word stands in the log, whichever process wrote it."""
    return collections.Counter(line.rpartition(" pid=")[0] for line in log(tmp_path) if line.startswith(word))


def quiet_digest(tmp_path: Path, seed: int, n: int) -> str:
    """The digest of a job that nothing happened to."""
    settings = settings_of(tmp_path / f"quiet-{seed}")
    jobs = Jobs(settings, SlowHosts(SlowEngine(settings)))  # type: ignore[arg-type]
    jobs.start()
    try:
        job, _ = jobs.submit(BOB, "generate", GenerateRequest(n=n, seed=seed))
        return str(until(lambda: (now := jobs.get(BOB, job.id)).ended and now).sha256)
    finally:
        jobs.stop()


def test_killed_again_and_again_every_job_ends_once_with_the_right_bytes(
    start: Start, desk: Callable[..., Jobs], tmp_path: Path
) -> None:
    counter = desk()
    sizes = {seed: 300 + 170 * seed for seed in range(6)}
    jobs = [counter.submit(ALICE, "generate", GenerateRequest(n=n, seed=seed))[0] for seed, n in sizes.items()]
    dice = random.Random(5)
    for _ in range(4):
        process = start(0.0015)
        begun = sum(line.startswith("started") for line in log(tmp_path))
        until(lambda begun=begun: sum(line.startswith("started") for line in log(tmp_path)) > begun)
        if begun == 0:
            until(lambda: count(tmp_path, "kept"))  # so that one at least dies in the middle of a job
        time.sleep(dice.uniform(0.05, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    begun_again = time.monotonic()
    start(0.0)
    ended = [until(lambda job=job: (now := counter.get(ALICE, job.id)).ended and now) for job in jobs]
    assert [job.status for job in ended] == ["done"] * len(jobs)
    assert max(job.attempt for job in ended) > 1, "some job was in work when its process died"
    assert time.monotonic() - begun_again < 60
    for job, (seed, n) in zip(ended, sizes.items(), strict=True):
        found, path = counter.result(ALICE, job.id)
        assert sha256_file(path) == found.sha256 == quiet_digest(tmp_path, seed, n)
    kept = count(tmp_path, "kept")
    assert max(kept.values()) == 1, "no part that was finished was made a second time"
    assert count(tmp_path, "status generate done")["status generate done"] <= len(jobs)  # a kill may come before the line


def test_a_dead_process_of_this_machine_is_not_waited_for(start: Start, desk: Callable[..., Jobs], tmp_path: Path) -> None:
    counter = desk(job_lease=600.0)
    job, _ = counter.submit(ALICE, "generate", GenerateRequest(n=1024, seed=1))
    process = start(0.002, job_lease=600.0)
    until(lambda: count(tmp_path, "kept"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    start(0.0, job_lease=600.0)
    done = until(lambda: (now := counter.get(ALICE, job.id)).ended and now)
    assert done.status == "done"
    assert done.attempt == 2


def test_a_process_that_is_asked_to_end_gives_its_job_back(start: Start, desk: Callable[..., Jobs], tmp_path: Path) -> None:
    counter = desk()
    job, _ = counter.submit(ALICE, "generate", GenerateRequest(n=2048, seed=1))
    process = start(0.002)
    until(lambda: count(tmp_path, "kept"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    now = counter.get(ALICE, job.id)
    assert (now.status, now.strikes, now.owner.pid) == ("queued", 0, 0)
    assert 0 < now.done < 2048


def test_a_job_may_be_cancelled_from_another_process(start: Start, desk: Callable[..., Jobs], tmp_path: Path) -> None:
    counter = desk()
    job, _ = counter.submit(ALICE, "generate", GenerateRequest(n=20000, seed=1))
    start(0.002)
    until(lambda: counter.get(ALICE, job.id).done > 0)
    assert counter.cancel(ALICE, job.id).status == "cancelling"
    assert until(lambda: (now := counter.get(ALICE, job.id)).ended and now).status == "cancelled"


def test_a_frozen_process_that_wakes_up_does_no_harm(start: Start, desk: Callable[..., Jobs], tmp_path: Path) -> None:
    counter = desk(job_lease=1.0)
    job, _ = counter.submit(ALICE, "generate", GenerateRequest(n=1024, seed=4))
    frozen = start(0.002, job_lease=1.0)
    until(lambda: count(tmp_path, "kept"))
    frozen.send_signal(signal.SIGSTOP)  # it lives, so only its silence tells
    other = start(0.001, job_lease=1.0)
    until(lambda: counter.get(ALICE, job.id).attempt == 2)
    frozen.send_signal(signal.SIGCONT)
    done = until(lambda: (now := counter.get(ALICE, job.id)).ended and now)
    assert done.status == "done"
    time.sleep(0.5)
    assert count(tmp_path, "status generate done")["status generate done"] == 1
    found, path = counter.result(ALICE, job.id)
    assert sha256_file(path) == found.sha256 == quiet_digest(tmp_path, 4, 1024)
    assert other.poll() is None
    assert frozen.poll() is None


def test_two_replicas_on_one_postgres_share_the_jobs_and_take_over(
    start: Start, desk: Callable[..., Jobs], tmp_path: Path, empty_postgres: str
) -> None:
    counter = desk(jobs=empty_postgres, job_lease=1.5)
    replicas = [start(0.001, jobs=empty_postgres, job_lease=1.5) for _ in range(2)]
    until(lambda: sum(line.startswith("started") for line in log(tmp_path)) == 2)
    jobs: list[Job] = []
    for seed in range(10):
        who = (ALICE, BOB)[seed % 2]
        jobs.append(counter.submit(who, "generate", GenerateRequest(n=600, seed=seed))[0])

    def pids() -> set[str]:
        return {line.rpartition(" pid=")[2] for line in log(tmp_path) if line.startswith("kept")}

    until(lambda: len(pids()) == 2)
    victim = replicas[0]
    until(lambda: any(job.owner.pid == victim.pid for job in counter.list(ALICE) + counter.list(BOB)))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for job, who in zip(jobs, (ALICE, BOB) * 5, strict=True):
        done = until(lambda job=job, who=who: (now := counter.get(who, job.id)).ended and now)
        assert done.status == "done", done.error
        found, path = counter.result(who, job.id)
        assert sha256_file(path) == found.sha256
    assert max(count(tmp_path, "kept").values()) == 1
    assert count(tmp_path, "status generate done")["status generate done"] <= len(jobs)  # a kill may come before the line
    assert pids() == {str(replica.pid) for replica in replicas}
    assert os.getpid() not in {replica.pid for replica in replicas}
    first = counter.result(ALICE, jobs[0].id)[0]
    assert first.sha256 == quiet_digest(tmp_path, 0, 600)
