"""The log: one line a request with its id, everything through one door, no secrets and no content."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch

from atonce.serving import logs

KEY = "atonce_3f9a0c2b7d_S3cr3tS3cr3tS3cr3t"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.set_up("json", "info", stream)
    yield stream
    root.handlers[:], root.level = before, level
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_ours_the_standard_librarys_and_uvicorns_go_one_way(out: io.StringIO) -> None:
    logs.bind(request_id="r-1", caller="key:abc")
    logs.get("atonce.x").info("loaded", model="digits", rows=4)
    logging.getLogger("atonce.serving.jobs").warning("job %s failed", "j1", extra={"attempt": 2})
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "Started"})
    logging.getLogger("uvicorn.access").info("GET /nobody/needs/this/twice")
    logging.getLogger("x").debug("too quiet")
    found = lines(out)
    assert [each["event"] for each in found] == ["loaded", "job j1 failed", "Started server process [7]"]
    assert [each["level"] for each in found] == ["info", "warning", "info"]
    assert {each["request_id"] for each in found} == {"r-1"}
    assert (found[0]["model"], found[0]["rows"], found[1]["attempt"]) == ("digits", 4, 2)
    assert found[2]["logger"] == "uvicorn.error"
    assert "color_message" not in found[2]
    assert all(each["timestamp"].endswith("Z") for each in found)


def test_text_is_for_people(out: io.StringIO) -> None:
    logs.set_up("text", "debug", out)
    logs.get("a").debug("hello", n=3)
    assert "hello" in out.getvalue()
    assert "n=3" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_traceback_is_in_the_line(out: io.StringIO) -> None:
    try:
        raise RuntimeError(f"cannot reach redis://user:hunter22@host with {KEY}")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    (found,) = lines(out)
    assert "RuntimeError: cannot reach redis://[redacted]@host" in found["exception"]
    assert KEY not in out.getvalue()


@pytest.mark.parametrize(
    "facts",
    [
        {"authorization": f"Bearer {KEY}"},
        {"headers": {"X-API-Key": KEY, "Cookie": "a=hunter22"}},
        {"text": f"called with {KEY}!"},
        {"text": f"Authorization: Bearer {KEY[7:]}"},
        {"api_key": KEY[7:], "link_secret": "S3cr3tS3cr3tS3cr3t", "password": "hunter22"},
        {"url": "postgresql://me:hunter22@db/jobs"},
        {"redis": "hunter22", "database_url": "hunter22"},
        {"note": "token=hunter22&x=1", "more": 'password: "hunter22"'},
        {"nested": [{"deep": {"secret": "hunter22"}}]},
        {"path": "/v1/images/link/hunter22.S3cr3t?x=1"},
        {"body": "hunter22", "image": "hunter22", "prompt": "hunter22"},
        {"raw": b"hunter22", "tensor": torch.zeros(2, 3)},
        {"value": "iVBORw0KGgo" * 60},
        {"object": SimpleNamespace(x=KEY)},
    ],
)
def test_secrets_and_content_are_taken_out(out: io.StringIO, facts: dict[str, Any]) -> None:
    logs.get("a").info("event", **facts)
    logging.getLogger("b").info("said %s", [value for value in facts.values() if isinstance(value, str) and KEY in value])
    said = out.getvalue()
    for secret in (KEY, KEY[7:], "hunter22", "S3cr3tS3cr3t", "iVBORw0KGgoiVBORw0KGgo"):
        assert secret not in said
    assert len(lines(out)) == 2
    assert "event" in said


def test_what_is_no_secret_stays(out: io.StringIO) -> None:
    logs.get("a").info(
        "model loaded", model="atonce", key_id="abc", tokens=3, caller="key:abc", share=0.25, ok=True, nothing=None
    )
    (found,) = lines(out)
    told = {name: found[name] for name in ("model", "key_id", "tokens", "caller", "share", "ok", "nothing")}
    assert told == {
        "model": "atonce", "key_id": "abc", "tokens": 3, "caller": "key:abc", "share": 0.25, "ok": True, "nothing": None,
    }  # fmt: skip


def test_nobody_forges_a_line(out: io.StringIO) -> None:
    logging.getLogger("a").info("x\n%s", '{"event": "forged"}')
    assert len(out.getvalue().splitlines()) == 1
    assert lines(out)[0]["event"] == 'x\n{"event": "forged"}'
    logs.get("a").info("long", text="ab " * 5000)
    assert len(lines(out)[1]["text"]) < 2100


def test_nobody_forges_a_line_of_text(out: io.StringIO) -> None:
    logs.set_up("text", "info", out)
    logs.get("a").info("x\nforged", more="\x1b[2Jforged", fine="Grüße")
    (said,) = out.getvalue().splitlines()
    assert "x\\nforged" in said
    assert "\x1b" not in said
    assert "Grüße" in said


def request(app: Any, path: str = "/v1/jobs/42", state: dict[str, Any] | None = None) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "state": state or {}}
    asyncio.run(logs.RequestLog(app)(scope, None, send))
    return sent


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    scope["state"]["request_id"] = "r-7"
    scope["state"]["principal"] = SimpleNamespace(id="key:abc", name="me")
    scope["state"]["audit"] = {"model": "digits", "n": 4, "seed": 5}
    scope["route"] = SimpleNamespace(path="/v1/jobs/{id}")
    await asyncio.to_thread(logging.getLogger("inside").info, "working")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"12345"})


def test_one_line_a_request(out: io.StringIO) -> None:
    assert len(request(_answer)) == 2
    inside, found = lines(out)
    assert (inside["request_id"], inside["caller"]) == ("r-7", "key:abc")
    assert found["event"] == "request"
    told = {name: found[name] for name in ("method", "route", "status", "bytes", "request_id", "caller", "model", "n")}
    assert told == {
        "method": "POST", "route": "/v1/jobs/{id}", "status": 200, "bytes": 5, "request_id": "r-7", "caller": "key:abc",
        "model": "digits", "n": 4,
    }  # fmt: skip
    assert found["ms"] >= 0
    assert structlog.contextvars.get_contextvars() == {}  # the next request begins with nothing


def test_probes_are_quiet_and_failures_are_not(out: io.StringIO) -> None:
    request(_answer, "/livez")
    assert [each["event"] for each in lines(out)] == ["working"]

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError):
        request(fails)
    found = lines(out)[-1]
    assert (found["status"], found["level"], found["route"]) == (500, "warning", "other")

    async def left(scope: Any, receive: Any, send: Any) -> None:
        return

    request(left)
    assert lines(out)[-1]["status"] == 499
