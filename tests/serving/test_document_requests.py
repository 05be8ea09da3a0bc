"""The OpenAPI document against a real server: schemathesis makes requests from it and looks whether answers are as it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="the requests are made by schemathesis (extra dev)")
pytest.importorskip("fastapi", reason="the service needs the extra serve")

CONFIG = Path(__file__).with_name("schemathesis.toml")
TOOL = Path(sys.executable).with_name("schemathesis")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_five_thousand_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    # Little work for each request: what is tried here is the reading of requests, not the network.
    limits = {"RATE": "none", "QUEUE_SECONDS": "60", "MAX_IMAGES": "4", "MAX_STEPS": "4", "MAX_JOB_IMAGES": "8"}
    environment = os.environ | {f"ATONCE_SERVE_{name}": value for name, value in limits.items()} | {"OMP_NUM_THREADS": "1"}
    keys = tmp_path / "keys.json"
    scopes = ["generate", "edit", "jobs", "models", "metrics", "admin"]
    make = [sys.executable, "-m", "atonce", "serve", "keys", "make", "fuzz", "--keys", str(keys), "--scopes", *scopes, "--json"]
    made = subprocess.run(make, env=environment, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    token = json.loads(made.stdout)["token"]
    words = ["serve", "digits", "--port", "0", "--keys", str(keys), "--state", str(tmp_path / "state"), "--log-level", "error"]
    server = subprocess.Popen(
        [sys.executable, "-m", "atonce", *words, "--json"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        command = [str(TOOL), "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
        command += ["-H", f"Authorization: Bearer {token}", "--phases", "examples,coverage,fuzzing"]
        command += ["--max-examples", os.environ.get("ATONCE_SCHEMA_EXAMPLES", "120"), "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=2700)
        assert done.returncode == 0, done.stdout[done.stdout.find("FAILURES") :][:20000]
        cases = re.search(r"([\d,]+) generated", done.stdout)
        assert cases is not None, done.stdout[-2000:]
        if "ATONCE_SCHEMA_EXAMPLES" not in os.environ:
            assert int(cases.group(1).replace(",", "")) >= 5000
        assert server.poll() is None, "the server is still there"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
