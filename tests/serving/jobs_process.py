"""Jobs over models that are quick to ask and as slow as a test wants, in this process or (as a script) in one of its own.

Every finished part and every status is written to an append-only log, so that a test can count what was done, and how often.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import atonce
from atonce.core.images import to_uint8
from atonce.core.streams import Stream, normal
from atonce.model_config import noise_keys
from atonce.serving.access import Principal
from atonce.serving.errors import not_found
from atonce.serving.job_files import Parts
from atonce.serving.job_rows import Job
from atonce.serving.jobs import Jobs
from atonce.serving.observe import Silent
from atonce.serving.schemas import GenerateRequest
from atonce.serving.settings import ServeSettings

ALICE = Principal("key:alice", "Alice", frozenset({"jobs", "generate", "edit"}))
BOB = Principal("key:bob", "Bob", frozenset({"jobs", "generate", "edit"}))
ADMIN = Principal("key:root", "root", frozenset({"jobs", "generate", "edit", "admin"}))


class SlowEngine:
    """An engine whose images are the noise that the real one would start from, some milliseconds each."""

    def __init__(self, settings: ServeSettings, version: str = "1", delay: float = 0.0, backend: str = "eager") -> None:
        self.settings, self.version, self.delay, self.backend = settings, version, delay, backend
        self.model = atonce.load("digits")
        self.pool = ThreadPoolExecutor(1)
        self.rate = 0.0
        self.asked: list[tuple[int, int, int]] = []
        self.fail: Callable[[Any], None] = lambda ask: None

    def status(self) -> Any:
        facts = {"rate": self.rate, "waiting": 0, "wait": 0.0, "promise": 2.0, "running": True, "buckets": (1,)}
        counts = {"calls": 0, "images": 0, "failures": 0, "measured": ()}
        return SimpleNamespace(name="digits", version=self.version, backend=self.backend, **facts, **counts)

    def submit(
        self, ask: Any, *, lane: str = "interactive", deadline: float | None = None, progress: Any = None
    ) -> Future[Tensor]:
        self.fail(ask)
        if lane == "interactive":
            return self.pool.submit(self._really, ask)
        assert deadline is None
        self.asked.append((ask.seed, ask.first, ask.n))

        def work() -> Tensor:
            for done in range(0, ask.n, 16):
                time.sleep(self.delay * min(16, ask.n - done))
                if progress is not None:
                    progress(done)
            index, keys = noise_keys(ask.n, ask.seed, ask.first, ask.seeds)
            shift = float(self.version) / 10
            return (normal(keys, index, self.model.shape, Stream.SAMPLE, 0) / 3 + shift).clamp(-1, 1)

        return self.pool.submit(work)

    def _really(self, ask: Any) -> Tensor:
        return self.model.sample(ask.n, seed=ask.seed, first=ask.first, seeds=ask.seeds, sigmas=list(ask.sigmas))

    @contextlib.contextmanager
    def calls(self, *, lane: str, stop: Any = None, **_: Any) -> Iterator[Any]:
        yield self.model


class SlowHosts:
    """One model, in one or more versions; the last is the one of now."""

    default = "digits"
    ready = True

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def names(self) -> list[str]:
        return ["digits"]

    def statuses(self) -> list[Any]:
        return [engine.status() for engine in self.engines.values()]

    def versions(self) -> list[dict[str, str]]:
        return [{"version": version, "role": "stable"} for version in self.engines]

    def __init__(self, *engines: SlowEngine) -> None:
        self.engines = {engine.version: engine for engine in engines}

    def host(self, name: str) -> SlowHosts:
        if name != "digits":
            raise not_found(f"there is no model {name!r}", "model")
        return self

    def engine(self, caller: str, version: str | None = None) -> SlowEngine:
        if version is not None and version not in self.engines:
            raise not_found(f"digits has no version {version!r}", "version")
        return list(self.engines.values())[-1] if version is None else self.engines[version]

    def older(self, version: str) -> Any:
        raise not_found(f"digits has no version {version!r} any more", "version")


class Log(Silent):
    """An append-only file; one line is written at once, so several processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def line(self, *words: object) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, (" ".join(map(str, (*words, f"pid={os.getpid()}"))) + "\n").encode())
        os.close(handle)

    def job(self, kind: str, status: str) -> None:
        self.line("status", kind, status)


def settings_of(folder: Path, **more: Any) -> ServeSettings:
    return ServeSettings(**{"state": folder, "job_lease": 2.0, **more})


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


def ask(jobs: Jobs, n: int = 600, seed: int | None = 7, who: Any = ALICE, **more: Any) -> Job:
    return jobs.submit(who, "generate", GenerateRequest(n=n, seed=seed, **more))[0]


def ended(jobs: Jobs, job: Job, who: Any = ADMIN) -> Job:
    return until(lambda: (now := jobs.get(who, job.id)).ended and now)


def lines(tmp_path: Path) -> list[str]:
    return [line.rpartition(" pid=")[0] for line in (tmp_path / "log").read_text().splitlines()]


def right(n: int, seed: int, first: int = 0, shift: float = 0.1) -> np.ndarray:
    noise = normal(seed, torch.arange(first, first + n), (1, 8, 8), Stream.SAMPLE, 0)
    return to_uint8((noise / 3 + shift).clamp(-1, 1)).numpy()


def main() -> None:
    """Work on jobs until killed; SIGTERM stops in order."""
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    settings = settings_of(Path(told["state"]), **told.get("settings", {}))
    log = Log(Path(told["log"]))
    write = Parts.write

    def logged(self: Parts, first: int, *rest: Any) -> None:
        write(self, first, *rest)
        log.line("kept", self.folder.parent.name, first)

    Parts.write = logged  # type: ignore[method-assign]
    jobs = Jobs(settings, SlowHosts(SlowEngine(settings, delay=told["delay"])), log)  # type: ignore[arg-type]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    jobs.start()
    log.line("started")
    stop.wait()
    jobs.stop()
    log.line("stopped")


if __name__ == "__main__":
    main()
