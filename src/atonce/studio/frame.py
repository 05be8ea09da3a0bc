"""Gradio's page, without what it would fetch or tell elsewhere, and with our own files and words in its head."""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.types import ASGIApp

from atonce.core.version import VERSION
from atonce.serving.bodies import Message, Receive
from atonce.serving.errors import ServiceError
from atonce.studio.files import own_files

_OUTSIDE = (
    re.compile(r"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*?>", re.S),
    re.compile(r"<link\s+rel=\"manifest\"[^>]*>"),
    re.compile(r"<script>\s*\(\(\) => \{\s*const root = .*?iframeResizer.*?</script>", re.S),
    re.compile(r"<script data-gradio-mode>.*?</script>", re.S),
)
_MODE = '<script>window.__gradio_mode__ = "app";</script>'
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4'"
    " fill='%23265c8f'/%3E%3Ccircle cx='8' cy='8' r='3.4' fill='%23fff'/%3E%3C/svg%3E"
)


class Frame:
    """Makes the page.

    Args:
        app: Gradio's application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def page(self, scope: MutableMapping[str, Any], receive: Receive, signed_in: bool) -> str:
        """The page for one person.

        Args:
            scope: Of their request.
            receive: Of their request.
            signed_in: Whether there is something to sign out of.

        Returns:
            HTML.

        Raises:
            ServiceError: 500, Gradio did not give its page.
        """
        parts: list[bytes] = []
        status = 0

        async def collect(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        plain = [(name, value) for name, value in scope["headers"] if name not in (b"accept-encoding", b"origin")]
        await self._app({**scope, "method": "GET", "headers": plain}, receive, collect)
        if status != 200:
            raise ServiceError(500, "internal", "the page could not be made; the server's log says more")
        return framed(b"".join(parts).decode(), own_files(".css"), own_files(".js"), signed_in)


def framed(page: str, styles: Iterable[str], scripts: Iterable[str], signed_in: bool) -> str:
    """A page of ours made of Gradio's.

    Args:
        page: Gradio's.
        styles: Addresses of style sheets.
        scripts: Addresses of scripts; they run before Gradio's.
        signed_in: Whether there is something to sign out of.

    Returns:
        HTML that names no address outside.
    """
    for pattern in _OUTSIDE:
        page = pattern.sub("", page)
    head = [
        "<title>atonce studio</title>",
        f'<meta name="generator" content="atonce {VERSION}">',
        '<meta name="color-scheme" content="light dark">',
        f'<link rel="icon" href="{_ICON}">',
        _MODE,
        f"<script>window.atonceSignedIn = {'true' if signed_in else 'false'};</script>",
        *(f'<link rel="preload" as="style" href="{address}">' for address in styles),
        *(f'<script src="{address}" defer></script>' for address in scripts),
    ]
    # In the body our style sheets come after all that Gradio adds to the head, so that of equal rules ours hold.
    body = [f'<link rel="stylesheet" href="{address}">' for address in styles]
    marked = re.sub(r"(<base [^>]*>)", lambda found: found[1] + "\n" + "\n".join(head), page, count=1)
    marked = re.sub(r"(<body[^>]*>)", lambda found: found[1] + "\n" + "\n".join(body), marked, count=1)
    return marked.replace("shrink-to-fit=no", "viewport-fit=cover")
