"""Limits over two servers that share a Redis: a key gets its amount once, not once from each."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("redis", reason="no redis: pip install 'atonce[serve]'")
pytest.importorskip("httpx", reason="no httpx: pip install 'atonce[client]'")

import httpx

from atonce.serving.keys import make_key

if shutil.which("redis-server") is None:
    pytest.skip("no redis-server on this machine", allow_module_level=True)

AMOUNT = 10


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Address of a Redis of our own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None, "redis-server did not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
                line.sendall(b"PING\r\n")
                if line.recv(100).startswith(b"+PONG"):
                    break
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def test_two_servers_give_a_key_its_amount_once(redis: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    _, token = make_key(keys, "shop", rate=f"{AMOUNT}/hour")
    _, other = make_key(keys, "another shop", rate=f"{AMOUNT}/hour")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ATONCE_SERVE_REDIS": redis}
    words = ["serve", "digits", "--port", "0", "--json", "--backend", "eager", "--keys", str(keys), "--job-workers", "0"]
    with ExitStack() as stack:
        servers = []
        for name in "ab":
            command = [sys.executable, "-m", "atonce", *words, "--state", str(tmp_path / name)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            stack.callback(process.terminate)
            servers.append(process)
        urls = [json.loads(process.stdout.readline())["url"] for process in servers if process.stdout is not None]
        assert len(set(urls)) == 2

        def asked(url: str, key: str) -> httpx.Response:
            return httpx.post(f"{url}/v1/generate", json={"n": 1, "seed": 1}, headers={"X-API-Key": key}, timeout=60)

        answers = [asked(urls[i % 2], token) for i in range(AMOUNT + 6)]
        assert Counter(answer.status_code for answer in answers) == {200: AMOUNT, 429: 6}
        assert [answer.status_code for answer in answers[:AMOUNT]] == [200] * AMOUNT, "the first ones, wherever they go"
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers[AMOUNT:])
        bytes_of = {answer.json()["images"][0]["data"] for answer in answers[:AMOUNT]}
        assert len(bytes_of) == 1, "and both servers give the same bytes"
        assert [asked(url, other).status_code for url in urls] == [200, 200], "another key has its own"
