"""The door of the studio: who comes in, from where, with how much; and the end of what would never end.

Plain ASGI around Gradio's application. It finds the person by the cookie, refuses what another site's page sends, lets only the
addresses through that the page needs, keeps the size and the time of bodies, gives the page its headers, and ends event streams
when the server drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse
from starlette.types import ASGIApp

from atonce.core.errors import InputError
from atonce.serving.access import FAILED_ATTEMPTS, Scope, caller_address, trusted_networks
from atonce.serving.bodies import Bodies, Message, Receive, Send, replay
from atonce.serving.errors import ServiceError, bad_request
from atonce.serving.limits import Wanted
from atonce.studio import login
from atonce.studio.context import Studio
from atonce.studio.data_packs import file_of
from atonce.studio.files import Files
from atonce.studio.frame import Frame
from atonce.studio.generate_kept import archive
from atonce.studio.origin import check_origin, is_own_machine, is_secure
from atonce.studio.people import COOKIE, People
from atonce.studio.sessions import Sessions, named

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio makes functions of its page's own texts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Nothing is fetched from anywhere else, whatever a part of the page might wish."""

DOWNLOADS: dict[str, Callable[[Path], bytes]] = {"/kept.zip": archive}
"""What a person can fetch from the own folder, as files made when they are asked for."""
ATTACHED = {"Content-Type": "application/zip", "Content-Security-Policy": "default-src 'none'"}

_API = "/gradio_api"
_PAGE = re.compile(
    r"/(config|theme\.css|app_id|heartbeat/[A-Za-z0-9_-]{1,64}|queue/(join|data)|run/[A-Za-z0-9_-]{1,100}/?|cancel|reset"
    r"|upload|upload_progress|component_server|startup-events|login_check|file=.+|stream/.+)"
)
"""Addresses that the page asks; all others of Gradio (its API pages, proxies, monitors, deep links) are not there."""
_UPLOAD_SECONDS = 900.0
_TICK = 0.2


class Door:
    """Stands in front of Gradio's application.

    Args:
        app: What is behind it.
        studio: The studio.
        path: Where it is mounted.
        draining: Whether the server is stopping.
    """

    def __init__(self, app: ASGIApp, studio: Studio, path: str, draining: Callable[[], bool]) -> None:
        self._app, self._studio, self._path = app, studio, path
        self._settings, self._draining = studio.service.settings, draining
        self.people = People(studio.service, studio.private, path)
        self._bodies = Bodies(self._settings)
        self._sessions = Sessions()
        self._files, self._frame = Files(), Frame(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] in ("GET", "HEAD") and await self._files(inner, scope, send):
            return  # the same for everybody, and no secret
        check_origin(scope, headers, self._settings)
        if inner in ("/login", "/logout"):
            await self._sign(inner, scope, receive, send, headers)
            return
        who = self.people.known(scope)
        if inner == "/" and scope["method"] in ("GET", "HEAD"):
            await self._page(who, scope, receive, send, headers)
            return
        if who is None:
            raise ServiceError(401, "not_signed_in", "this page does not know you any more: load it again")
        scope["state"]["person"], scope["state"]["principal"] = who, who.principal
        if scope["method"] == "GET" and inner in DOWNLOADS:
            try:
                content = await asyncio.to_thread(DOWNLOADS[inner], who.folder)
            except InputError as error:
                raise bad_request(str(error)) from error
            await login.respond(send, 200, content, ATTACHED | {"Content-Disposition": f'attachment; filename="{inner[1:]}"'})
            return
        if scope["method"] == "GET" and (file := await asyncio.to_thread(file_of, who.folder, inner)) is not None:
            only = {"Content-Security-Policy": "default-src 'none'"}
            await FileResponse(file, filename=file.name, headers=only)(scope, receive, send)
            return
        if _PAGE.fullmatch(inner.removeprefix(_API)) is None:
            raise ServiceError(404, "not_found", "there is nothing at this address")
        await self._ask(inner, scope, receive, send, headers)

    async def _page(self, who: Any, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        secure, given = is_secure(scope, headers, self._settings), {"Content-Security-Policy": POLICY}
        if who is None and headers.get("sec-fetch-site") == "cross-site":
            # A strict cookie does not come along from another site's link; this page's own step to itself brings it.
            await login.respond(send, 200, login.step(), given)
            return
        if who is None and self._studio.service.keys is not None:
            await login.respond(send, 200, login.page(), given)
            return
        if who is None:
            value = self.people.newcomer()
            given["Set-Cookie"] = self.people.cookie(value, secure)
            cookie = f"{COOKIE}={value}".encode()
            scope["headers"] = [(n, v) for n, v in scope["headers"] if n != b"cookie"] + [(b"cookie", cookie)]
            who = self.people.known(scope)
        scope["state"]["person"], scope["state"]["principal"] = who, who.principal
        page = await self._frame.page(scope, receive, signed_in=self._studio.service.keys is not None)
        await login.respond(send, 200, page, given, "gzip" in headers.get("accept-encoding", ""))

    async def _sign(self, inner: str, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        """Sign in with an API key, or out."""
        if scope["method"] != "POST":
            await login.respond(send, 303, "", {"Location": f"{self._path}/"})
            return
        secure = is_secure(scope, headers, self._settings)
        if inner == "/logout":
            await login.respond(send, 303, "", {"Location": f"{self._path}/", "Set-Cookie": self.people.cookie("", secure)})
            return
        raw = dict(scope["headers"])
        body = await self._bodies.read(receive, raw)
        self._bodies.release(len(body))
        try:
            value = self.people.with_key(login.key_in(body))
        except ServiceError as refusal:
            status, line = refusal.status, refusal.message
            if refusal.status == 401:
                address = caller_address(scope, trusted_networks(self._settings.trusted_proxies))
                try:
                    await self._studio.service.limits.take(f"failed:{address}", [Wanted("requests", FAILED_ATTEMPTS)])
                except ServiceError as too_often:
                    status, line = too_often.status, too_often.message
            await login.respond(send, status, login.page(line), {"Content-Security-Policy": POLICY})
            return
        await login.respond(send, 303, "", {"Location": f"{self._path}/", "Set-Cookie": self.people.cookie(value, secure)})

    async def _ask(self, inner: str, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        """Something the page asks for."""
        started = asyncio.Event()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.set()
                found = MutableHeaders(scope=message)
                for name in [name for name in found if name.lower().startswith("access-control-")]:
                    del found[name]  # Gradio would let pages of other sites read this
                if found.get("content-type", "").startswith("text/event-stream"):
                    found["X-Accel-Buffering"] = "no"  # a proxy in front is to pass on what it gets at once
                found["Content-Security-Policy"] = POLICY if inner != f"{_API}/upload" else "default-src 'none'"
            await send(message)

        if scope["method"] == "POST" and (self._studio.service.keys is not None or not is_own_machine(self._settings)):
            principal = scope["state"]["principal"]
            await self._studio.service.limits.take(principal.id, [Wanted("requests", principal.rate, name="studio")])
        held, body = 0, b""
        try:
            if inner == f"{_API}/upload":
                receive = self._counted(receive, headers)
                seconds = _UPLOAD_SECONDS
            else:
                seconds = self._settings.request_seconds
                if scope["method"] not in ("GET", "HEAD"):
                    body = await self._bodies.read(receive, dict(scope["headers"]))
                    held = len(body)
                    receive = replay(body, receive)
            if (session := named(inner, scope, body)) is not None:
                self._sessions.claim(session, scope["state"]["person"].id)
            endless = inner.startswith(f"{_API}/heartbeat/")
            await self._run(scope, receive, told, started, seconds, endless)
        finally:
            self._bodies.release(held)

    async def _run(
        self, scope: Scope, receive: Receive, send: Send, started: asyncio.Event, seconds: float, endless: bool
    ) -> None:
        """Run Gradio's answer: within a time until it begins, and where it has no end, until the server drains.

        Raises:
            ServiceError: 504, it did not begin in time.
        """
        task = asyncio.ensure_future(self._app(scope, receive, send))
        until = asyncio.get_running_loop().time() + seconds
        try:
            while not task.done():
                left = until - asyncio.get_running_loop().time()
                if started.is_set() and not endless:
                    break
                if not started.is_set() and left <= 0:
                    raise ServiceError(504, "timeout", f"this took longer than {seconds:g} s: ask for less at once")
                if endless and self._draining():
                    return
                await asyncio.wait({task}, timeout=_TICK if endless else min(left, 1.0))
            await task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    def _counted(self, receive: Receive, headers: Mapping[str, str]) -> Receive:
        """A body that goes straight to a file, up to a size."""
        most, seen = self._settings.studio_upload, 0
        refusal = ServiceError(413, "too_large", f"the upload is larger than the limit of {most:,} bytes: send less at once")
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > most:
            raise refusal

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise refusal
            return message

        return counted
