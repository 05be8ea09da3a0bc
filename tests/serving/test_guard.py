"""The guard: sizes and times, headers, errors that tell nothing of the inside, what no honest client sends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from atonce.serving.errors import ServiceError, not_found
from atonce.serving.guard import MAX_HEADERS, SAFE_HEADERS, Guard
from atonce.serving.settings import ServeSettings


async def echo(request: Request) -> Response:
    body = await request.body()
    request.state.audit = {"model": "digits", "n": 2}
    return JSONResponse({"bytes": len(body), "id": request.state.request_id, "deadline": request.state.deadline})


async def fail(request: Request) -> Response:
    raise RuntimeError("secret of /home/someone/models")


async def fail_late(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("secret")

    return StreamingResponse(parts())


async def refuse(request: Request) -> Response:
    raise not_found("there is no model 'x'", "model")


async def sleep(request: Request) -> Response:
    await asyncio.sleep(3600)
    return PlainTextResponse("late")


async def own(request: Request) -> Response:
    return PlainTextResponse("picture", headers={"Cache-Control": "public, max-age=60"})


def small_app(**settings: Any) -> Starlette:
    paths = {"/echo": echo, "/fail": fail, "/fail-late": fail_late, "/refuse": refuse, "/sleep": sleep, "/own": own}
    app = Starlette(routes=[Route(path, function, methods=["GET", "POST"]) for path, function in paths.items()])
    app.add_middleware(Guard, settings=ServeSettings(**settings))
    app.state.draining = False
    app.state.events = []
    audit = SimpleNamespace(write=app.state.events.append)
    app.state.service = SimpleNamespace(settings=ServeSettings(**settings), keys=None, audit=audit)
    return app


def ask(app: Starlette, method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return await http.request(method, path, **options)

    return asyncio.run(run())


def raw(app: Starlette, receive: Callable[[], Any], headers: list[tuple[bytes, bytes]] = (), **changes: Any) -> list[Any]:  # type: ignore[assignment]
    """Messages that the application sends for a request made by hand."""
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/echo", "raw_path": b"/echo", "query_string": b"", "scheme": "http",
        "headers": list(headers), "client": ("10.0.0.1", 1), "server": ("test", 80), "http_version": "1.1", "root_path": "",
        "asgi": {"version": "3.0"}, **changes,
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    return said


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


# ---- ids and headers


def test_a_sane_id_is_kept_and_any_other_replaced() -> None:
    app = small_app()
    for sent in ("abc-123", "A" * 64, "trace:1.2_3"):
        answer = ask(app, "GET", "/echo", headers={"X-Request-ID": sent})
        assert answer.headers["x-request-id"] == answer.json()["id"] == sent
    for sent in ("", "A" * 65, "a b", "a\tb", "é", '"', "<script>"):
        answer = ask(app, "GET", "/echo", headers=[(b"x-request-id", sent.encode("latin-1"))])
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert ask(app, "GET", "/echo").headers["x-request-id"] != ask(app, "GET", "/echo").headers["x-request-id"]


@pytest.mark.parametrize("path", ["/echo", "/fail", "/refuse", "/nothing", "/own"])
def test_every_answer_has_safe_headers(path: str) -> None:
    answer = ask(small_app(), "GET", path)
    for name, value in SAFE_HEADERS.items():
        expected = "public, max-age=60" if (path, name) == ("/own", "Cache-Control") else value
        assert answer.headers.get_list(name) == [expected]
    assert "server" not in answer.headers


def test_cors_is_off_and_on_for_named_origins_only() -> None:
    sent = {"Origin": "https://shop.example"}
    assert not any(name.startswith("access-control") for name in ask(small_app(), "GET", "/echo", headers=sent).headers)
    app = small_app(cors_origins=("https://shop.example",))
    for path, status in (("/echo", 200), ("/refuse", 404), ("/fail", 500)):
        answer = ask(app, "GET", path, headers=sent)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "RateLimit-Remaining" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in ask(app, "GET", "/echo", headers={"Origin": "https://evil.example"}).headers
    asked = {**sent, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = ask(app, "OPTIONS", "/echo", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ask(app, "OPTIONS", "/echo", headers={**asked, "Origin": "https://evil.example"}).status_code == 400


# ---- errors


def test_a_failure_tells_nothing_of_the_inside_and_the_log_everything(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "atonce.serving"):
        answer = ask(small_app(), "GET", "/fail")
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal"
    assert "secret" not in answer.text
    assert "home" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "secret of /home/someone/models" in caplog.text
    assert "Traceback" in caplog.text


def test_half_an_answer_is_not_ended_as_if_it_were_whole() -> None:
    with pytest.raises(RuntimeError):
        ask(small_app(), "GET", "/fail-late")


def test_errors_of_the_service_keep_their_shape() -> None:
    answer = ask(small_app(), "GET", "/refuse")
    assert answer.status_code == 404
    assert error_of(answer) == {
        "message": "there is no model 'x'", "type": "invalid_request_error", "code": "not_found", "param": "model"
    }  # fmt: skip


def test_while_it_drains_nothing_new_is_begun() -> None:
    app = small_app()
    app.state.draining = True
    answer = ask(app, "POST", "/echo", json={})
    assert (answer.status_code, error_of(answer)["code"], answer.headers["retry-after"]) == (503, "draining", "1")
    assert ask(app, "GET", "/readyz").status_code == 404  # passes to the application, which says no by itself


def test_a_request_cut_off_at_the_end_of_draining_is_told_so() -> None:
    app = small_app()
    said: list[Any] = []

    async def run() -> None:
        begun = asyncio.Event()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        async def outside(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await asyncio.sleep(3600)

        guard = Guard(outside, ServeSettings())
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "app": app, "client": None}
        task = asyncio.create_task(guard(scope, receive, send))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert said[0]["status"] == 503
    assert json.loads(said[1]["body"])["error"]["code"] == "draining"


# ---- bodies


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    app = small_app(max_body=2000)
    for size, status in ((0, 200), (1999, 200), (2000, 200), (2001, 413), (100_000, 413)):
        for content in (b"x" * size, _parts(b"x" * size)):
            answer = ask(app, "POST", "/echo", content=content, headers={"Content-Type": "application/octet-stream"})
            assert answer.status_code == status, size
            if status == 413:
                assert "2,000 bytes" in error_of(answer)["message"]
            else:
                assert answer.json()["bytes"] == size


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    for k in range(0, len(body), 100):
        yield body[k : k + 100]


def test_an_announced_length_above_the_limit_is_refused_without_reading() -> None:
    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    for length in (b"2001", b"9" * 30):
        said = raw(small_app(max_body=2000), receive, [(b"content-length", length)])
        assert said[0]["status"] == 413
    for length in (b"-1", b"ten", b"", b"1e3", b"\xb2"):
        said = raw(small_app(max_body=2000), receive, [(b"content-length", length)])
        assert said[0]["status"] == 400


def test_a_length_that_lies_does_not_get_more_in() -> None:
    """An endless body behind a small announced length stops being read just above the limit."""
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"x" * 500, "more_body": True}

    said = raw(small_app(max_body=2000), receive, [(b"content-length", b"10")])
    assert said[0]["status"] == 413
    assert asked == 5
    asked = 0
    said = raw(small_app(max_body=2000), receive, [(b"transfer-encoding", b"chunked")])
    assert said[0]["status"] == 413
    assert asked == 5


def test_the_bodies_of_all_together_have_a_limit_and_give_their_room_back() -> None:
    app = small_app(max_body=16 << 20)  # so at most 256 MiB at once
    part = b"\0" * (8 << 20)
    release = asyncio.Event()
    reading = 0

    async def run() -> list[int]:
        nonlocal reading
        full = asyncio.Event()

        async def one() -> int:
            said: list[Any] = []
            sent = 0

            async def receive() -> Any:
                nonlocal sent, reading
                sent += 1
                if sent == 2:
                    reading += 1
                    if reading == 32:
                        full.set()
                    await release.wait()
                return {"type": "http.request", "body": part, "more_body": sent == 1}

            async def send(message: Any) -> None:
                said.append(message)

            headers = [(b"transfer-encoding", b"chunked"), (b"content-type", b"application/octet-stream")]
            scope = {
                "type": "http", "method": "POST", "path": "/nothing", "raw_path": b"/nothing", "query_string": b"",
                "headers": headers, "client": None, "app": app, "root_path": "",
            }  # fmt: skip
            await app(scope, receive, send)
            return said[0]["status"]

        first = [asyncio.create_task(one()) for _ in range(32)]
        await full.wait()  # 32 times 8 MiB are held
        late = await one()
        release.set()
        return [late, *await asyncio.gather(*first)]

    late, *first = asyncio.run(run())
    assert late == 503
    assert 404 in first  # there is no such route, but the body was taken
    assert set(first) <= {404, 503}
    for _ in range(3):  # the room is free again
        assert ask(app, "POST", "/echo", content=part, headers={"Content-Type": "application/x"}).status_code == 200


def test_a_body_that_does_not_end_is_given_up() -> None:
    sent = 0

    async def receive() -> Any:
        nonlocal sent
        sent += 1
        if sent > 1:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": b"x", "more_body": True}

    said = raw(small_app(body_seconds=0.05), receive, [(b"content-length", b"10")])
    assert said[0]["status"] == 408
    assert json.loads(said[1]["body"])["error"]["code"] == "body_timeout"


def test_who_goes_away_gets_no_answer_and_leaves_a_line() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    app = small_app()
    assert raw(app, receive, [(b"content-length", b"10")]) == []
    assert [event["status"] for event in app.state.events] == [499]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"a": NaN}', {"Content-Type": "application/json"}, 400),
        (b'{"a": NaN}', {"Content-Type": "Application/JSON; charset=utf-8"}, 400),
        (b'{"a": NaN}', {"Content-Type": "application/problem+json"}, 400),
        (b'{"a": NaN}', {}, 400),
        (b'{"a": NaN}', {"Content-Type": "text/plain"}, 200),
        (b'{"a": 1}', {"Content-Type": "application/json"}, 200),
        (b"", {"Content-Type": "application/json"}, 200),
        (b'{"a": "' + b"x" * 200_000 + b'", "b": 1, "b": 2}', {"Content-Type": "application/json"}, 400),
        (b"\x1f\x8b", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "identity"}, 200),
    ],
)
def test_json_is_checked_before_the_application_sees_it(body: bytes, headers: dict[str, str], status: int) -> None:
    answer = ask(small_app(), "POST", "/echo", content=body, headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["bytes"] == len(body)


# ---- time


def test_a_request_that_takes_too_long_ends() -> None:
    answer = ask(small_app(request_seconds=0.05), "GET", "/sleep")
    assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")


def test_the_time_is_for_the_answer_to_begin_not_for_reading_it() -> None:
    async def slow(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(5):
                await asyncio.sleep(0.05)
                yield b"part"

        return StreamingResponse(parts())

    app = small_app(request_seconds=0.1)
    app.router.routes.append(Route("/slow", slow))
    answer = ask(app, "GET", "/slow")
    assert (answer.status_code, answer.content) == (200, b"part" * 5)


def test_a_timeout_of_our_own_code_is_not_taken_for_the_callers() -> None:
    async def own_timeout(request: Request) -> Response:
        raise TimeoutError("a database")

    app = small_app()
    app.router.routes.append(Route("/own-timeout", own_timeout))
    assert ask(app, "GET", "/own-timeout").status_code == 500


# ---- what no honest client sends


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({"path": "echo"}, [], 404),
        ({"path": "*", "method": "OPTIONS"}, [], 404),
        ({"path": "http://elsewhere/echo"}, [], 404),
        ({"path": "/echo\0"}, [], 404),
        ({"path": "/echo\r\nSet-Cookie: a=b"}, [], 404),
        ({"path": "/../../etc/passwd"}, [], 404),
        ({"path": "/" + "a" * 9000, "raw_path": b"/" + b"a" * 9000}, [], 414),
        ({"query_string": b"a" * 9000}, [], 414),
        ({"method": "BREW"}, [], 405),
        ({"method": "TRACE"}, [], 405),
        ({}, [(b"x-%d" % k, b"v") for k in range(MAX_HEADERS + 1)], 431),
        ({}, [(b"x", b"v" * 40_000)], 431),
        ({}, [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")], 400),
        ({}, [(b"content-type", b"application/json"), (b"content-type", b"text/plain"), (b"content-length", b"3")], 400),
        ({}, [(b"x-%d" % k, b"v") for k in range(MAX_HEADERS)], 200),
    ],
)
def test_oddities_of_the_head(changes: dict[str, Any], headers: list[tuple[bytes, bytes]], status: int) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    said = raw(small_app(), receive, headers, **changes)
    assert said[0]["status"] == status
    sent = dict(said[0]["headers"])
    assert not any(b"\r" in value or b"\n" in value for value in sent.values())
    assert b"Set-Cookie" not in said[1]["body"]


# ---- the audit log


def test_a_line_for_each_request_and_no_more_than_facts() -> None:
    app = small_app()
    ask(app, "POST", "/echo", json={"labels": ["secret"]}, headers={"Authorization": "Bearer atonce_secret"})
    ask(app, "GET", "/nothing?atonce_secret")
    ask(app, "GET", "/fail")
    ask(app, "GET", "/livez")
    first, second, third = app.state.events
    assert first | {"ms": 0, "request_id": ""} == {
        "request_id": "", "caller": None, "address": "127.0.0.1", "method": "POST", "route": "/echo", "status": 200, "ms": 0,
        "model": "digits", "n": 2,
    }  # fmt: skip
    assert (second["status"], second["route"]) == (404, None)
    assert third["status"] == 500
    assert "secret" not in json.dumps(app.state.events)


def test_other_events_than_requests_pass() -> None:
    seen: list[str] = []

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(outside, ServeSettings())({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_an_error_of_the_service_after_the_answer_began_ends_the_connection() -> None:
    async def late(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            raise ServiceError(503, "overloaded", "too late")

        return StreamingResponse(parts())

    app = small_app()
    app.router.routes.append(Route("/late", late))
    with pytest.raises(ServiceError):
        ask(app, "GET", "/late")
