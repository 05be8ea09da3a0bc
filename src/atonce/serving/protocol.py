"""Connections that do not get stuck: uvicorn's HTTP/1.1 protocol with a look at each connection every second.

uvicorn gives up on a connection only between two requests. A client that sends its headers or body by drops, or does not read
its answer, would keep a connection, its buffers and a place among ``connections`` for as long as it likes. Here each of these
has a time, after which the connection is cut; who sends and reads at an ordinary pace never meets one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from atonce.serving.bodies import Receive, Send
from atonce.serving.errors import ServiceError, overloaded
from atonce.serving.settings import ServeSettings

MAX_HEAD = 32 * 1024
"""Bytes of the head of a request that uvicorn collects before it gives up."""
LINGER = 3.0
"""Seconds in which the rest of a body is taken off the line after its request was refused, so that the refusal can be read.
Until then the guard keeps the time of bodies: it can answer."""
READ_RATE = 128 * 1024
"""Bytes a second at which a caller must read at least, beyond the time for headers, which it always has."""
SILENT = 1.0
"""Seconds of silence after which an idle connection makes room for another."""

_log = logging.getLogger("atonce.serving.protocol")


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may take.

    Attributes:
        header_seconds: From its beginning, or the first byte of a later request, to the end of the headers.
        read_seconds: Time to read what is sent, plus that which :data:`READ_RATE` gives.
        connections: At once. One more takes the place of the one that has been silent longest between two requests, or is
            answered 503 where none has.
        look_seconds: Time between two looks.
    """

    header_seconds: float = 10.0
    read_seconds: float = 10.0
    connections: int = 512
    look_seconds: float = 1.0


def protocol_for(settings: ServeSettings) -> type[asyncio.Protocol]:
    """The protocol for a server.

    Args:
        settings: Times, and the number of connections.

    Returns:
        A class for the argument ``http`` of ``uvicorn.Config``.
    """
    limits = ConnectionLimits(
        header_seconds=settings.header_seconds,
        read_seconds=settings.header_seconds,
        connections=settings.connections,
        look_seconds=min(1.0, settings.header_seconds / 4),
    )
    return type("Connection", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    """One connection; ``limits`` is set by :func:`protocol_for`."""

    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is room."""
        super().connection_made(transport)
        now = self.loop.time()
        self._head_since: float | None = now
        self._answered_since: float | None = None
        self._silent_since = now
        self._read_until: float | None = None
        self._unread = 0
        self._looking = self.loop.call_later(self.limits.look_seconds, self._look)
        if len(self.connections) > self.limits.connections and not self._make_room(now):
            self.app = _full

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and note what the connection waits for now."""
        super().data_received(data)
        now = self.loop.time()
        self._silent_since = now
        if self.conn.their_state is h11.IDLE:
            if self._head_since is None and self.timeout_keep_alive_task is None:
                self._head_since = now  # a part of a head; uvicorn's own timer runs only between requests
        else:
            self._head_since = None

    def resume_writing(self) -> None:
        """The caller has read most of what was sent: the time for the rest begins again."""
        self._read_until = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, in the shape of all other errors."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the rest of its request will not come, and its answer cannot go out
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        error = ServiceError(400, "bad_request", "this is no HTTP request that can be read")
        content = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Never: there is nothing here but HTTP/1.1, and a log line for each wish would be for callers to fill the log with."""
        return False

    def _look(self) -> None:
        """Cut the connection if it has used up a time; else look again later."""
        now = self.loop.time()
        reason = self._overdue(now)
        if reason is None:
            self._looking = self.loop.call_later(self.limits.look_seconds, self._look)
            return
        _log.info("cut a connection from %s: %s", self.client[0] if self.client else "unknown", reason)
        self.transport.abort()

    def _overdue(self, now: float) -> str | None:
        limits = self.limits
        sending = self.conn.their_state is h11.SEND_BODY
        answered = sending and self.cycle is not None and self.cycle.response_complete
        self._answered_since = (self._answered_since or now) if answered else None
        if self._head_since is not None and now - self._head_since > limits.header_seconds:
            return "its headers did not end"
        if self._answered_since is not None and now - self._answered_since > LINGER:
            return "it went on sending after it was answered"
        unread = self.transport.get_write_buffer_size()
        if not unread:
            self._read_until = None
        elif self._read_until is None or unread > self._unread:
            self._read_until = max(self._read_until or 0.0, now + limits.read_seconds + unread / READ_RATE)
        self._unread = unread
        return "it does not read" if self._read_until is not None and now > self._read_until else None

    def _make_room(self, now: float) -> bool:
        """Cut the connection that has been silent longest, among those for which nothing is being done."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        idle = [c for c in others if c._is_idle() and now - c._waiting_since() > SILENT]
        if not idle:
            return False
        longest = min(idle, key=Connection._waiting_since)
        longest.transport.abort()
        self.connections.discard(longest)
        return True

    def _is_idle(self) -> bool:
        between = self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)
        return between and not self.transport.get_write_buffer_size()

    def _waiting_since(self) -> float:
        """Since when nothing whole has come; bytes of a head do not count, or who sends them by drops would never be silent."""
        return self._silent_since if self._head_since is None else self._head_since


async def _full(scope: Any, receive: Receive, send: Send) -> None:
    """An application for a connection too many."""
    error = overloaded("this server has no place for another connection: try again in a moment", 1.0)
    content = json.dumps(error.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        **error.headers(),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
