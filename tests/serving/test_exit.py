"""The end of a server: an answer of no readiness or no connection, and no long goodbye of the interpreter."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
httpx = pytest.importorskip("httpx", reason="no httpx: pip install 'atonce[client]'")

SCRIPT = """
import atexit, gc, sys
atexit.register(lambda: print("frozen", gc.get_freeze_count(), file=sys.stderr))
from atonce.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_idle_server_says_no_or_nothing_and_ends(tmp_path: Path) -> None:
    words = ["serve", "digits", "--port", "0", "--json", "--backend", "eager", "--state", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
            statuses = []
            try:
                while True:
                    statuses.append(httpx.get(f"{url}/readyz", timeout=60).status_code)
            except httpx.TransportError:
                pass  # the socket is closed
            assert 200 not in statuses[1:], "the first request may have been quicker than the signal"
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 0, said
            frozen = int(said.rpartition("frozen ")[2])
            assert frozen > 100_000, "PyTorch's objects are not searched for garbage once more"
        finally:
            process.kill()
    assert gc.get_freeze_count() == 0, "only at the end of a process"
