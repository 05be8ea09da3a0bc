"""What stands between the network and the application: ids, limits of size and time, safe headers, errors without internals.

Plain ASGI: a response passes through without being copied or held. From the outside in: :class:`Guard` gives the request an id
and the response its headers and writes the audit log; then CORS, where origins are set; then :class:`_Gate`, which looks at the
request, knows the caller, reads the body, watches the clock and answers every error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from atonce.serving.access import Scope, admit, caller_address, limit_headers, trusted_networks
from atonce.serving.beside import is_beside
from atonce.serving.bodies import Bodies, GoneError, Message, Receive, Send, check_body, replay
from atonce.serving.errors import ServiceError, draining
from atonce.serving.service import Service
from atonce.serving.settings import ServeSettings

MAX_HEADERS = 100
MAX_HEAD = 32 * 1024
"""Bytes of all headers and the path together."""
MAX_PATH = 8 * 1024

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
"""Added where a route says nothing else."""
TOLD_HEADERS = ("X-Request-ID", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")
"""Headers that scripts of other origins may read."""
UNLOGGED = ("/livez", "/readyz", "/healthz", "/metrics")
"""Asked every few seconds by machines; not in the audit log, and answered while the server drains."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_log = logging.getLogger("atonce.serving")


class Guard:
    """The outermost middleware of the service: ``app.add_middleware(Guard, settings=settings)``.

    In ``scope["state"]`` (``request.state``) the application finds ``request_id``, ``deadline`` (of :func:`time.monotonic`) and
    ``principal``; it may put into ``audit`` a dict of facts (model, n, seed) that go into the audit log.

    Args:
        app: What is guarded.
        settings: Limits, times and origins.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        inner: ASGIApp = _Gate(app, settings)
        if settings.cors_origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("Authorization", "X-API-Key", "Content-Type", "X-Request-ID", "Idempotency-Key"),
                expose_headers=TOLD_HEADERS,
            )
        self.app, self._outside, self._settings = inner, app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; other kinds of events pass."""
        if scope["type"] != "http":
            await self._outside(scope, receive, send)
            return
        begun = time.monotonic()
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = _request_id(scope)
        state["deadline"] = begun + self._settings.request_seconds
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                for name, value in limit_headers(state.get("limits", ())).items():
                    headers[name] = value
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            self._note(scope, status or 499, begun)

    def _note(self, scope: Scope, status: int, begun: float) -> None:
        """Write the audit log; 499 is a caller who went away."""
        service = _service(scope)
        state = scope["state"]
        if service is None or scope["path"] in UNLOGGED or state.get("unlogged", False):
            return
        principal = state.get("principal")
        service.audit.write(
            {
                "request_id": state["request_id"],
                "caller": principal.id if principal else None,
                "address": caller_address(scope, trusted_networks(self._settings.trusted_proxies)),
                "method": scope["method"][:20],
                "route": getattr(scope.get("route"), "path", None),
                "status": status,
                "ms": round(1000 * (time.monotonic() - begun), 1),
                **state.get("audit", {}),
            }
        )


class _Gate:
    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._bodies = Bodies(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        started = False
        clock: asyncio.Timeout | None = None

        async def told(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if clock is not None and not clock.expired():
                    clock.reschedule(None)  # how slowly a caller may read is for the connection to say
            await send(message)

        held = 0
        try:
            _check_head(scope)
            self._check_draining(scope)
            if is_beside(scope):
                await self._app(scope, receive, told)
                return
            headers = dict(scope["headers"])
            if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
                service = _service(scope)
                if service is not None and service.keys is not None:
                    await admit(scope, service)
                body = await self._bodies.read(receive, headers)
                held = len(body)
                await check_body(body, headers)
                receive = replay(body, receive)
                del body
            async with asyncio.timeout(self._settings.request_seconds) as clock:
                await self._app(scope, receive, told)
            return
        except GoneError:
            return
        except ServiceError as error:
            failure = error
        except asyncio.CancelledError:
            if not started:
                await _answer(send, draining(), scope)
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and clock is not None and clock.expired():
                message = (
                    f"the request took longer than {self._settings.request_seconds:g} s: ask for less at once, or make it a job"
                )
                failure = ServiceError(504, "timeout", message)
            else:
                if started:
                    raise
                request_id = scope["state"]["request_id"]
                _log.exception("request %s failed", request_id, extra={"request_id": request_id})
                failure = ServiceError(500, "internal", "the server failed at this request; its owner finds the id in the log")
        finally:
            self._bodies.release(held)
        if started:  # half a response cannot be taken back: let the connection end, so that nobody takes it for whole
            raise failure
        await _answer(send, failure, scope)

    def _check_draining(self, scope: Scope) -> None:
        app = scope.get("app")
        if app is not None and getattr(app.state, "draining", False) and scope["path"] not in UNLOGGED:
            raise draining()


async def _answer(send: Send, error: ServiceError, scope: Scope) -> None:
    content = json.dumps(error.body(scope["state"]["request_id"])).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers()}
    if any(name == b"expect" for name, _ in scope["headers"]):  # the body may never come, so nothing can follow on this line
        headers["connection"] = "close"
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


def _check_head(scope: Scope) -> None:
    """Refuse what no honest client sends.

    Raises:
        ServiceError: 400, 404, 414 or 431.
    """
    headers = scope["headers"]
    path = scope["path"]
    if len(scope.get("raw_path") or path.encode()) + len(scope["query_string"]) > MAX_PATH:
        raise ServiceError(414, "path_too_long", f"the address is longer than {MAX_PATH} bytes")
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
        raise ServiceError(431, "headers_too_large", f"at most {MAX_HEADERS} headers of {MAX_HEAD} bytes in all are read")
    if scope.get("http_version", "1.1") not in ("1.0", "1.1", "2", "3"):
        raise ServiceError(400, "bad_request", "this version of HTTP is not spoken here: send HTTP/1.1")
    if not path.startswith("/") or not path.isprintable():
        raise ServiceError(404, "not_found", "there is nothing at this address")
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        # Two lengths for one body: a proxy in front may have believed the other one.
        raise ServiceError(400, "bad_request", "the request has both Transfer-Encoding and Content-Length: send one")
    if names.count(b"content-type") > 1:
        raise ServiceError(400, "bad_request", "the request has several headers Content-Type: send one")


def _request_id(scope: Scope) -> str:
    """The caller's id for the request where it is sane, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def _service(scope: Scope) -> Service | None:
    found: Any = getattr(getattr(scope.get("app"), "state", None), "service", None)
    return found
