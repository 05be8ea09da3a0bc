"""Requests counted and timed by the template of their route."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atonce.serving.metrics import Metrics

OTHER = "other"
"""The label of every path that no route takes, and of every method that nobody expects."""
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class HttpMetrics:
    """Pure ASGI middleware: counts requests and measures their time by route template.

    Args:
        app: The application inside.
        metrics: Where it is counted.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, and measure it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        metrics, begun = self.metrics, time.perf_counter()
        status, size = "none", 0  # none: the caller went away before an answer

        async def watched(message: Any) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        metrics.http_open.inc()
        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = "500" if status == "none" else status
            raise
        finally:
            metrics.http_open.dec()
            route = route_of(scope)
            method = scope["method"] if scope["method"] in METHODS else OTHER
            metrics.http_requests.labels(route, method, status).inc()
            metrics.http_seconds.labels(route).observe(time.perf_counter() - begun)
            metrics.http_bytes.labels(route).inc(size)


def route_of(scope: Mapping[str, Any]) -> str:
    """The template of the route that took a request, for example ``/v1/jobs/{id}``; ``other`` where none did."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else OTHER
