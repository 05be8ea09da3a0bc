"""Starting and stopping: what is refused before anything is loaded, and that nothing accepted is lost at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atonce.core.errors import InputError
from atonce.serving.keys import make_key, revoke_key
from atonce.serving.run import address_of, check, is_loopback, listen
from atonce.serving.settings import ServeSettings

PATIENCE = 60.0


def refused(**settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        check(ServeSettings(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", "", "127.0.0.1.example.org", "2130706433"])
def test_a_public_address_needs_keys(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    message = refused(host=host)
    assert "atonce serve keys make" in message
    assert "--public-without-keys" in message
    check(ServeSettings(host=host, public_without_keys=True))
    make_key(tmp_path / "keys.json", "shop")
    check(ServeSettings(host=host, keys=tmp_path / "keys.json"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    check(ServeSettings(host=host))


def test_keys_that_let_nobody_in_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert "cannot read the keys" in refused(keys=path)
    key, _ = make_key(path, "shop")
    revoke_key(path, key.id)
    assert "holds no key that works" in refused(keys=path)
    path.write_text("{")
    assert "damaged" in refused(keys=path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cors_origins": ("shop.example",)}, "the origin 'shop.example'"),
        ({"cors_origins": ("https://shop.example/path",)}, "without a path"),
        ({"trusted_proxies": ("proxy",)}, "the trusted proxy 'proxy'"),
        ({"rate": "often"}, "the rate is 'often'"),
        ({"redis": "localhost"}, "the address of Redis"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    assert said in refused(**settings)


def test_an_address_that_is_taken_is_one_line() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        first.listen()
        with pytest.raises(InputError, match=f"^cannot listen on 127.0.0.1 port {port}: Address already in use; give another"):
            listen("127.0.0.1", port)
        assert address_of(first) == f"http://127.0.0.1:{port}"
    with pytest.raises(InputError, match="cannot listen on 192.0.2.1 port"):
        listen("192.0.2.1", 0)
    with pytest.raises(InputError, match="there is no address 'no such host'"):
        listen("no such host", 0)


def test_ipv6_has_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except InputError:
        pytest.skip("no IPv6 on this machine")
    with listener:
        assert address_of(listener).startswith("http://[::1]:")


# ---- a process of its own

SCRIPT = """
import asyncio, contextlib, pathlib, sys, types
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from atonce.cli import one_line
from atonce.core.errors import AtonceError, InputError
from atonce.serving.guard import Guard
from atonce.serving.run import serve
from atonce.serving.settings import ServeSettings

folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]


def create_app(settings, extend=None):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        if how == "fails":
            raise InputError("there is no model 'nothing'")
        yield
        (folder / "stopped").touch()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(Guard, settings=settings)

    @app.get("/livez")
    async def livez():
        return {}

    @app.get("/readyz")
    async def readyz(request: Request):
        return JSONResponse({}, 503 if request.app.state.draining else 200)

    @app.get("/v1/wait")
    async def wait():
        (folder / "begun").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(0.02)
        return {"waited": True}

    return app


sys.modules["atonce.serving.app"] = types.SimpleNamespace(create_app=create_app)
try:
    sys.exit(serve(ServeSettings(port=int(sys.argv[3]), drain_seconds=float(sys.argv[4]), state=folder)))
except AtonceError as error:
    print("atonce:", one_line(error), file=sys.stderr)
    sys.exit(2)
"""


class Process:
    def __init__(self, folder: Path, how: str = "", port: int = 0, drain: float = 60.0) -> None:
        self.folder = folder
        command = [sys.executable, "-c", SCRIPT, str(folder), how, str(port), str(drain)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()  # type: ignore[union-attr]
        self.url = self.line.rpartition(" ")[2].strip()
        self.answers: list[httpx.Response | Exception] = []

    def ask(self) -> threading.Thread:
        """A request that waits, in a thread."""

        def work() -> None:
            try:
                self.answers.append(httpx.get(f"{self.url}/v1/wait", timeout=PATIENCE))
            except httpx.HTTPError as error:
                self.answers.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        until((self.folder / "begun").exists)
        return thread

    def end(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, said


def until(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def started(folder: Path, **options: Any) -> Iterator[Process]:
    found = Process(folder, **options)
    try:
        yield found
    finally:
        with contextlib.suppress(OSError):
            found.process.kill()
        found.process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_new_work_and_finishes_what_was_accepted(tmp_path: Path, sign: signal.Signals) -> None:
    with started(tmp_path) as server:
        assert server.line.startswith("atonce: serving on http://127.0.0.1:")
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        waiting = server.ask()
        server.process.send_signal(sign)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        refusal = httpx.get(f"{server.url}/v1/wait")
        assert (refusal.status_code, refusal.json()["error"]["code"], refusal.headers["retry-after"]) == (503, "draining", "1")
        assert server.process.poll() is None
        (tmp_path / "go").touch()
        waiting.join(PATIENCE)
        status, said = server.end()
        assert status == 0, said
        assert [answer.json() for answer in server.answers] == [{"waited": True}]
        assert (tmp_path / "stopped").exists()
        assert "Traceback" not in said


def test_what_is_not_finished_in_time_is_told_to_try_elsewhere(tmp_path: Path) -> None:
    with started(tmp_path, drain=0.5) as server:
        waiting = server.ask()
        server.process.send_signal(signal.SIGTERM)
        waiting.join(PATIENCE)
        status, said = server.end()
        assert status == 0, said
        (answer,) = server.answers
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert (tmp_path / "stopped").exists()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        waiting = server.ask()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 128 + signal.SIGTERM
        waiting.join(PATIENCE)
        assert isinstance(server.answers[0], httpx.HTTPError)
        assert not (tmp_path / "stopped").exists()


def test_without_work_a_signal_ends_it_soon(tmp_path: Path) -> None:
    with started(tmp_path) as server, httpx.Client() as idle:
        assert idle.get(f"{server.url}/livez").status_code == 200  # a connection that stays open is no work
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with started(tmp_path, how="fails") as server:
        status, said = server.end()
        assert (status, said.strip().splitlines()[-1]) == (2, "atonce: there is no model 'nothing'")
        assert "Traceback" not in said
        assert server.line == ""


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with started(tmp_path, port=port) as server:
            status, said = server.end()
            assert status == 2
            assert said.strip().startswith(f"atonce: cannot listen on 127.0.0.1 port {port}")
            assert len(said.strip().splitlines()) == 1


def test_the_address_is_said_once_even_if_nobody_listens(tmp_path: Path) -> None:
    """The reader of stdout goes away; the server stays."""
    with started(tmp_path) as server:
        server.process.stdout.close()  # type: ignore[union-attr]
        server.process.stdout = None
        assert httpx.get(f"{server.url}/livez").status_code == 200
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.end()[0] == 0


def test_no_header_of_a_caller_moves_its_address(tmp_path: Path) -> None:
    """uvicorn believes X-Forwarded-For from loopback unless told otherwise; here access.py decides."""
    from fastapi import FastAPI

    from atonce.serving.run import server_for

    config = server_for(FastAPI(), ServeSettings()).config
    assert config.proxy_headers is False
    assert config.server_header is False
    assert config.access_log is False
