"""The body of a request, read whole before the application sees anything of it: within a size, a time and a memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from atonce.serving.errors import ServiceError
from atonce.serving.settings import MIB, ServeSettings
from atonce.serving.strict_json import read_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

IN_A_THREAD = 64 * 1024
"""Bytes from which on JSON is checked in a thread, so that other requests go on."""


class GoneError(Exception):
    """The caller closed the connection before its request was whole."""


class Bodies:
    """Reads bodies, and knows how much of them this process holds.

    Args:
        settings: ``max_body`` and ``body_seconds``.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._most, self._seconds = settings.max_body, settings.body_seconds
        self._room = max(16 * settings.max_body, 64 * MIB)
        self.held = 0

    async def read(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """Read a body. What is read counts as held until :meth:`release` is called with its length.

        Args:
            receive: Of ASGI.
            headers: Of the request; a length that is announced above the limit is refused without reading.

        Returns:
            All of it.

        Raises:
            ServiceError: 413, 408, 503 where the bodies of others fill the memory set aside, 400 for a length that is none.
            GoneError: The caller went away.
        """
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit():
            raise ServiceError(400, "bad_request", "the header Content-Length is no number")
        self._check(int(announced[:20]))
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    part: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(part)
                    self.held += len(part)
                    parts.append(part)
                    self._check(size)
        except TimeoutError:
            self.release(size)
            message_text = f"the body did not arrive within {self._seconds:g} s: send it faster or less of it"
            raise ServiceError(408, "body_timeout", message_text) from None
        except BaseException:
            self.release(size)
            raise
        return b"".join(parts)

    def release(self, size: int) -> None:
        """A body of this length is done with."""
        self.held -= size

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ServiceError(
                413, "too_large", f"the body is larger than the limit of {self._most:,} bytes: send less at once"
            )
        if self.held > self._room:
            raise ServiceError(503, "overloaded", "too many large requests at once: try again in a moment", retry_after=2.0)


async def check_body(body: bytes, headers: dict[bytes, bytes]) -> None:
    """Refuse a body that no route takes, and JSON that is unsound.

    Args:
        body: All of it.
        headers: Of the request.

    Raises:
        ServiceError: 400, 413 or 415.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
        raise ServiceError(415, "unsupported_encoding", "a compressed body is not read: send it without Content-Encoding")
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if body and (not kind or kind == b"application/json" or kind.endswith(b"+json")):
        if len(body) < IN_A_THREAD:
            read_json(body)
        else:
            await asyncio.to_thread(read_json, body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that brings a body at once, and after it what the connection brings.

    Args:
        body: What was read.
        receive: Where it came from.

    Returns:
        The function.
    """
    brought = False

    async def again() -> Message:
        nonlocal brought
        if brought:
            return await receive()
        brought = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
