"""Slow, silent, greedy and garbled clients on a real server over real sockets; and ordinary ones, who notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import h11
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from atonce.serving import protocol
from atonce.serving.guard import Guard
from atonce.serving.run import listen, server_for
from atonce.serving.settings import ServeSettings

PATIENCE = 60.0
"""Seconds after which a test gives up; what is tested happens in about one."""


class Running:
    """A server in a thread, and what its routes wait for."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ServeSettings(**settings)
        self.go = threading.Event()
        self.calls = 0
        routes = {"/echo": self.echo, "/wait": self.wait, "/stream": self.stream, "/lump": self.lump}
        app = Starlette(routes=[Route(path, function, methods=["GET", "POST"]) for path, function in routes.items()])
        app.add_middleware(Guard, settings=self.settings)
        app.state.service = SimpleNamespace(keys=None, settings=self.settings, audit=SimpleNamespace(write=lambda event: None))
        self.listener = listen("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.server = server_for(app, self.settings)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.listener])))

    async def echo(self, request: Request) -> Response:
        self.calls += 1
        return PlainTextResponse(f"{len(await request.body())} bytes")

    async def wait(self, request: Request) -> Response:
        self.calls += 1
        await asyncio.to_thread(self.go.wait, PATIENCE)
        return PlainTextResponse("waited")

    async def stream(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(4000):
                yield b"x" * 65536

        return StreamingResponse(parts())

    async def lump(self, request: Request) -> Response:
        return Response(b"x" * (32 << 20))

    def connect(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        line.settimeout(PATIENCE)
        return line

    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Running]:
    found = Running(**settings)
    found.thread.start()
    try:
        until(lambda: found.server.started)
        yield found
        assert httpx.get(f"http://127.0.0.1:{found.port}/echo", timeout=PATIENCE).text == "0 bytes"  # it still serves
    finally:
        found.go.set()
        found.server.should_exit = True
        found.thread.join(PATIENCE)
        found.listener.close()
        assert not found.thread.is_alive()


def until(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def drip(line: socket.socket, part: bytes, seconds: float = 0.05) -> bytes:
    """Send a part again and again until the other side closes; what it said."""
    said = b""
    line.settimeout(seconds)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            line.sendall(part)
            got = line.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return said
        if not got:
            return said
        said += got
    raise AssertionError("the connection was never closed")


def rest(line: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while got := line.recv(65536):
            said += got
    return said


def heard(line: socket.socket, words: bytes, times: int = 1) -> None:
    """Read until the words have come so many times."""
    said = b""
    while said.count(words) < times:
        got = line.recv(65536)
        assert got, said
        said += got


def answer(said: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return int(first.split()[1]), dict(line.lower().split(b": ", 1) for line in lines), body


QUICK = {"header_seconds": 0.5, "body_seconds": 0.5}


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    """One server for the tests that leave nothing behind."""
    with running(**QUICK) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "quick" in request.fixturenames:
        server = request.getfixturevalue("quick")
        server.calls = 0
        until(lambda: server.connections() == 0)


# ---- headers that do not end


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"G", b"GET /echo HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_never_come_or_never_end(quick: Running, begun: bytes) -> None:
    with quick.connect() as line:
        line.sendall(begun)
        said = rest(line)
        assert said == b"" or answer(said)[0] == 400  # an empty line is no request
        assert quick.calls == 0


@pytest.mark.parametrize("part", [b"a", b"x: y\r\n", b"\r\n "])
def test_headers_by_drops(quick: Running, part: bytes) -> None:
    with quick.connect() as line:
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nx: ")
        said = drip(line, part)
        assert said == b"" or answer(said)[0] == 400  # where the drops are no header
        assert quick.calls == 0


def test_the_second_request_of_a_connection_is_watched_too(quick: Running) -> None:
    with quick.connect() as line:
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        heard(line, b"0 bytes")
        line.sendall(b"GET /echo HTTP/1.1\r\n")
        assert drip(line, b"x: y\r\n") == b""
        assert quick.calls == 1


def test_a_head_that_is_too_large() -> None:
    with running() as server, server.connect() as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n" + b"x: " + b"y" * 200_000)
        status, headers, body = answer(rest(line))
        assert status == 400
        assert headers[b"content-type"] == b"application/json"
        assert json.loads(body)["error"]["code"] == "bad_request"
        assert server.calls == 0


# ---- bodies that do not end


@pytest.mark.parametrize(
    ("announced", "part"), [(b"Content-Length: 1000000", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n")]
)
def test_a_body_by_drops(quick: Running, announced: bytes, part: bytes) -> None:
    with quick.connect() as line:
        line.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n" + announced + b"\r\n\r\n")
        status, _, body = answer(drip(line, part))
        assert status == 408
        assert json.loads(body)["error"]["code"] == "body_timeout"
        assert quick.calls == 0


def test_who_goes_on_sending_after_a_refusal_can_read_it_and_is_cut() -> None:
    with running(max_body=1024) as server, server.connect() as line:
        line.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        status, _, body = answer(drip(line, b"1000\r\n" + b"x" * 4096 + b"\r\n"))
        assert status == 413
        assert json.loads(body)["error"]["code"] == "too_large"
        assert server.calls == 0


def test_a_large_upload_gets_its_refusal_and_the_connection_can_be_used_on() -> None:
    """A client that sends all before it reads must not find a broken connection instead of the reason."""
    with running(max_body=1024) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE) as http:
        for _ in range(3):
            refused = http.post("/echo", content=b"x" * 3_000_000)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
            assert http.post("/echo", content=b"x" * 1000, headers={"Content-Type": "text/plain"}).text == "1000 bytes"


def test_who_asks_before_sending_is_told_to_go_on_or_not_to() -> None:
    with running(max_body=1024) as server:
        with server.connect() as line:
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: text/plain\r\n"
            line.sendall(head + b"Content-Length: 3\r\nConnection: close\r\n\r\n")
            assert line.recv(65536).startswith(b"HTTP/1.1 100")
            line.sendall(b"abc")
            assert b"3 bytes" in rest(line)
        with server.connect() as line:
            line.sendall(head + b"Content-Length: 2000\r\n\r\n")
            status, headers, _ = answer(rest(line))
            assert (status, headers[b"connection"]) == (413, b"close")


# ---- readers that do not read


def stuck(server: Running, path: bytes) -> socket.socket:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(PATIENCE)
    line.connect(("127.0.0.1", server.port))
    line.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: server.connections() == 1)
    return line


@pytest.mark.parametrize("path", [b"/stream", b"/lump"])
@pytest.mark.parametrize("drops", [False, True])
def test_who_does_not_read_or_reads_by_drops_is_cut(path: bytes, drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_RATE", 64 << 20)
    with running(**QUICK) as server, stuck(server, path) as line:

        def gone() -> bool:
            if drops:
                with contextlib.suppress(OSError):
                    line.recv(1)
            return server.connections() == 0

        assert server.connections() == 1
        until(gone)
        assert server.connections() == 0


def test_who_reads_slowly_but_steadily_gets_everything() -> None:
    with running(**QUICK) as server, stuck(server, b"/lump") as line:
        received = 0
        while received < 32 << 20:
            got = line.recv(1 << 20)
            assert got, f"cut after {received} bytes"
            received += len(got)
            if received < 1 << 19:
                time.sleep(0.005)


@pytest.mark.parametrize("reads", [True, False])
def test_each_buffer_that_was_read_gives_new_time(reads: bool) -> None:
    """Looked at always when 40,000 bytes are unread: whether they are the same ones only the transport tells."""
    connection = protocol.Connection.__new__(protocol.Connection)
    connection.conn = SimpleNamespace(their_state=None)
    connection.transport = SimpleNamespace(get_write_buffer_size=lambda: 40_000)
    connection.flow = SimpleNamespace(resume_writing=lambda: None)
    connection._head_since = connection._answered_since = connection._read_until = None
    connection._unread = 0
    said = []
    for second in range(60):
        said.append(connection._overdue(float(second)))
        if reads:
            connection.resume_writing()
    assert (set(said) == {None}) == reads
    if not reads:
        assert said.index("it does not read") == 11  # ten seconds, and a third of one for 40,000 bytes


def test_a_long_answer_read_steadily_is_not_cut() -> None:
    """Longer than a caller may take for one buffer, and the buffer is never empty when it is looked at."""
    with running(**QUICK) as server, stuck(server, b"/stream") as line:
        begun = time.monotonic()
        while time.monotonic() < begun + 2.5:
            got = line.recv(1 << 18)
            assert got, f"cut after {time.monotonic() - begun:.1f} s"
            time.sleep(0.002)


# ---- too many


def test_idle_connections_make_room_and_busy_ones_do_not() -> None:
    with running(connections=4) as server:
        idle = [server.connect() for _ in range(4)]
        until(lambda: server.connections() == 4)
        time.sleep(protocol.SILENT + 0.2)
        busy = [server.connect() for _ in range(4)]
        for line in busy:
            line.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.calls == 4)
        assert [rest(line) for line in idle] == [b""] * 4
        with server.connect() as line:
            line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, body = answer(rest(line))
            assert (status, headers[b"retry-after"]) == (503, b"1")
            assert json.loads(body)["error"]["code"] == "overloaded"
        server.go.set()
        for line in busy:
            heard(line, b"waited")
        for line in idle + busy:
            line.close()
        until(lambda: server.connections() == 0)


def test_slow_clients_who_hold_every_place_do_not_keep_others_out() -> None:
    with running(connections=8, header_seconds=30) as server:
        slow = [server.connect() for _ in range(8)]
        for line in slow:
            line.sendall(b"GET /echo HTTP/1.1\r\n")
        until(lambda: server.connections() == 8)
        begun = time.monotonic()
        while time.monotonic() < begun + protocol.SILENT + 0.2:
            for line in slow:
                line.sendall(b"x: y\r\n")
            time.sleep(0.1)
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{server.port}/echo", timeout=PATIENCE).text == "0 bytes"
        for line in slow:
            line.close()


# ---- garbage


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"PRI * HTTP/2.0\r\nHost: x\r\nConnection: close\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /echo HTTP/9.9\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n\r\n",  # no Host
        b"GET /echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: x\r\nx: a\x00b\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\n0\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://evil/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /echo%0d%0aSet-Cookie:a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
def test_garbage_gets_one_clear_refusal(quick: Running, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with quick.connect() as line:
        line.sendall(garbage)
        status, headers, body = answer(rest(line))
        assert 400 <= status < 500
        assert b"server" not in headers
        assert quick.calls == 0
        if headers[b"content-type"] == b"application/json":
            assert set(json.loads(body)) == {"error", "request_id"}
        else:
            assert status in (404, 405)  # of Starlette itself; the real application has its own shape
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_garbage_after_an_answer_cuts_the_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with running(max_body=1024) as server:
        with server.connect() as line:
            line.sendall(
                b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + b"x" * 4096 + b"\r\n"
            )
            heard(line, b"too_large")
            line.sendall(b"not a chunk\r\n")
            rest(line)
        with server.connect() as line:
            line.sendall(b"POST /wait HTTP/1.1\r\nHost: x\r\n\r\nGARBAGE\r\n\r\n")
            until(lambda: server.calls == 1)
            server.go.set()
            rest(line)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_request_that_turns_into_garbage_is_told_so_and_its_application_stops_waiting() -> None:
    connection = protocol.Connection.__new__(protocol.Connection)
    connection.conn = h11.Connection(h11.SERVER)
    connection.conn.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.conn.next_event(), h11.Request)
    written: list[bytes] = []
    connection.transport = SimpleNamespace(write=written.append, close=lambda: written.append(b"closed"))
    connection.cycle = SimpleNamespace(response_complete=False, disconnected=False, message_event=asyncio.Event())
    connection.send_400_response("whatever")
    assert b"".join(written).startswith(b"HTTP/1.1 400 ")
    assert written[-1] == b"closed"
    assert connection.cycle.disconnected
    assert connection.cycle.message_event.is_set()


def test_a_wish_for_another_protocol_is_not_heard() -> None:
    with running() as server, server.connect() as line:
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
        status, _, body = answer(rest(line))
        assert (status, body) == (200, b"0 bytes")


# ---- ordinary clients


def test_ordinary_clients_notice_nothing() -> None:
    """Requests in pieces, several on one connection with pauses, several at once, answers that take long."""
    with running(header_seconds=2, body_seconds=2) as server, server.connect() as line:
        for part in (
            b"POST /echo HT",
            b"TP/1.1\r\nHost: x\r\nContent-",
            b"Type: text/plain\r\nContent-Length: 6\r\n\r\nabc",
            b"def",
        ):
            line.sendall(part)
            time.sleep(0.1)
        heard(line, b"6 bytes")
        time.sleep(2.5)  # longer than headers may take; a connection at rest is no slow client
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        heard(line, b"0 bytes")
        line.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        heard(line, b"0 bytes", 5)
        line.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2.5)  # the application takes its time
        server.go.set()
        heard(line, b"waited")
        assert server.connections() == 1, "all of it on one connection"
