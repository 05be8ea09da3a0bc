"""Spans for OpenTelemetry: requests, the wait in the queue, network calls, encoding. Nothing happens without a collector.

The parts of the service know nothing of it: it listens as they report (:class:`~atonce.serving.observe.Observer`) and gives
spans the times that they tell. What is told within a request (its encoding) is part of the request's trace. A network call
serves many requests at once, so it is a trace of its own, with the model and the rows as attributes; so is a wait that the
engine's thread tells of.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from atonce.core.errors import InputError, MissingExtraError
from atonce.core.version import VERSION
from atonce.serving.metrics_http import route_of
from atonce.serving.observe import Silent

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atonce.serving.settings import ServeSettings

QUIET = ("/livez", "/readyz", "/healthz", "/metrics")
"""Requests that are no spans."""


def set_up(app: FastAPI, settings: ServeSettings, exporter: Any = None) -> Tracing | None:
    """Trace an application, where a collector is set.

    Args:
        app: The application; gets a middleware, and its ``state.service.metrics`` tells of queue, network and encoding.
        settings: ``otlp`` is the address of the collector.
        exporter: Where spans go instead, for tests.

    Returns:
        What traces; None where ``settings.otlp`` is not set.

    Raises:
        InputError: The address cannot be used.
        MissingExtraError: The packages of OpenTelemetry are not installed.
    """
    if settings.otlp is None:
        return None
    tracing = Tracing(settings.otlp, exporter)
    service = getattr(app.state, "service", None)
    if service is not None:
        service.metrics.also = tracing
    app.add_middleware(TraceHttp, tracing=tracing)
    return tracing


class Tracing(Silent):
    """Makes spans and sends them, in a thread of its own, in batches; what the collector does not take is dropped.

    Args:
        address: Of the collector, for example ``http://collector:4318``.
        exporter: Where spans go instead.
    """

    def __init__(self, address: str, exporter: Any = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise InputError(f"the collector {address!r} cannot be used: give an address like http://collector:4318")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as problem:
            raise MissingExtraError("traces need the packages of OpenTelemetry: pip install 'atonce[trace]'") from problem
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()
        resource = Resource.create({"service.name": "atonce", "service.version": VERSION})
        self.provider = TracerProvider(resource=resource)  # our own: nothing is set for the whole process
        if exporter is None:
            sends = BatchSpanProcessor(OTLPSpanExporter(endpoint=address.rstrip("/") + "/v1/traces", timeout=5))
            self.provider.add_span_processor(sends)
        else:
            self.provider.add_span_processor(SimpleSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("atonce.serving", VERSION)

    def close(self) -> None:
        """Send what waits, for at most five seconds; the end of the process does it too."""
        self.provider.force_flush(5000)
        self.provider.shutdown()

    # ---- the observer

    def batch(self, model: str, version: str, rows: int, padded: int, seconds: float) -> None:
        """A span of a network call."""
        self._past("network", seconds, alone=True, model=model, version=version, rows=rows, padded=padded)

    def waited(self, model: str, version: str, lane: str, seconds: float) -> None:
        """A span of the wait of a request."""
        self._past("queue wait", seconds, model=model, version=version, lane=lane)

    def encoded(self, form: str, images: int, seconds: float) -> None:
        """A span of the writing of images."""
        self._past("encode", seconds, format=form, images=images)

    def _past(self, name: str, seconds: float, *, alone: bool = False, **attributes: Any) -> None:
        """A span that has just ended; inside the request's where there is one."""
        from opentelemetry.context import Context

        now = time.time_ns()
        named = {f"atonce.{key}": value for key, value in attributes.items()}
        context = Context() if alone else None
        span = self.tracer.start_span(name, context=context, attributes=named, start_time=now - max(0, int(1e9 * seconds)))
        span.end(now)

    def request(self, scope: Any) -> Any:
        """The span of a request as a context manager; one of the caller's trace, where it sends a ``traceparent``."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name[:5] == b"trace"}
        outside = self._propagator.extract(headers)
        kind = self._trace.SpanKind.SERVER
        # Errors are in the log, with the request's id; their texts do not leave the machine.
        return self.tracer.start_as_current_span(
            scope["method"][:20], context=outside, kind=kind, record_exception=False, set_status_on_exception=False
        )


class TraceHttp:
    """Pure ASGI middleware: a span for each request, named by its route template. No body, no query and no address is in it.

    Args:
        app: The application inside.
        tracing: Makes the spans.
    """

    def __init__(self, app: Any, tracing: Tracing) -> None:
        self.app, self.tracing = app, tracing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request within a span."""
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self.app(scope, receive, send)
            return
        status, failed = 0, False

        async def told(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self.tracing.request(scope) as span:
            try:
                await self.app(scope, receive, told)
            except Exception:
                failed = True
                raise
            finally:
                status, route = status or (500 if failed else 499), route_of(scope)
                span.update_name(f"{scope['method'][:20]} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.request.method", scope["method"][:20])
                span.set_attribute("http.response.status_code", status)
                state = scope.get("state") or {}
                if state.get("request_id"):
                    span.set_attribute("atonce.request_id", state["request_id"])
                if status >= 500:
                    span.set_status(self.tracing._trace.StatusCode.ERROR)
