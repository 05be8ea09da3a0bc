"""``atonce serve`` itself, killed under load: what it accepted is there when it comes back, with the bytes of a quiet life."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("httpx", reason="no httpx: pip install 'atonce[client]'")

import atonce
from atonce.client.errors import ClientError
from atonce.core.files import sha256_file

pytestmark = pytest.mark.slow


class Serving:
    """A server process on loopback, on a port that it chooses."""

    def __init__(self, state: Path, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "atonce", "serve", "digits", "--port", "0", "--state", str(state), "--rate", ""],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "ATONCE_SERVE_BACKEND": "eager", "ATONCE_SERVE_JOB_LEASE": "60"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.search(r"http://[0-9.]+:\d+", line)
        assert found is not None, f"{line}{log.read_text()}"
        self.url = found[0]

    def end(self, sign: int) -> int:
        self.process.send_signal(sign)
        return self.process.wait(60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Serving]]:
    running: list[Serving] = []

    def start() -> Serving:
        running.append(Serving(tmp_path / "state", tmp_path / "log"))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def test_jobs_outlive_kills_under_load(serve: Callable[[], Serving], tmp_path: Path) -> None:
    dice = random.Random(3)
    ids: dict[str, int] = {}
    for round in range(3):
        server = serve()

        def load(seed: int, url: str = server.url) -> None:
            with atonce.Client(url, timeout=1.0) as client:
                try:
                    while True:
                        client.generate(8, seed=seed)
                except ClientError:
                    return  # the server is dead

        with ThreadPoolExecutor(3) as pool, atonce.Client(server.url) as client:
            for seed in range(3):
                pool.submit(load, seed)
            for seed in range(2 * round, 2 * round + 2):
                ids[client.submit_generate(600, seed=seed, steps=2).id] = seed
            time.sleep(dice.uniform(0.5, 3.0))
            server.end(signal.SIGKILL)
    server = serve()
    with atonce.Client(server.url) as client:
        assert {job.id for job in client.jobs()} == set(ids), "none is lost, none is there twice"
        model = atonce.load("digits")
        attempts = []
        for id, seed in ids.items():
            job = client.job(id).wait(300)
            attempts.append(job.info["attempts"])
            path = job.save(tmp_path / f"{seed}.zip")
            images = job.images().images
            direct = atonce.to_uint8(model.sample(40, 2, seed=seed, first=560)).numpy()
            assert np.abs(images[560:].astype(int) - direct).max() <= 1
            assert len(images) == job.done == 600
            quiet = client.submit_generate(600, seed=seed, steps=2).wait(300).save(tmp_path / f"quiet-{seed}.zip")
            assert sha256_file(path) == sha256_file(quiet)
        assert max(attempts) > 1, "some job was in work when the server died"
    assert server.end(signal.SIGTERM) == 0
