"""The application: parts are made and started, routes are put together, errors get one shape."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from atonce.core.version import VERSION
from atonce.serving.asking import request_id
from atonce.serving.audit import Audit
from atonce.serving.document import describe
from atonce.serving.errors import ServiceError
from atonce.serving.guard import Guard
from atonce.serving.jobs import Jobs
from atonce.serving.keys import KeyFile
from atonce.serving.limits import Limits
from atonce.serving.logs import RequestLog
from atonce.serving.metrics import Metrics
from atonce.serving.metrics_http import HttpMetrics
from atonce.serving.pools import Pool
from atonce.serving.routes import admin, edits, generate, health, images, jobs, models
from atonce.serving.service import Service
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.hosts import Hosts

_log = logging.getLogger("atonce.serving")


def create_app(
    settings: ServeSettings, hosts: Hosts | None = None, extend: Callable[[FastAPI], object] | None = None
) -> FastAPI:
    """The application of one server process.

    Args:
        settings: What the owner set.
        hosts: Models, for those who have them already; default: those of the settings. They start and stop with the
            application.
        extend: Adds what stands beside the API, such as the studio (:mod:`atonce.serving.beside`).

    Returns:
        The application; the models are loaded when its lifespan begins.
    """
    metrics = Metrics(settings)
    if hosts is None:
        from atonce.serving.hosts import Hosts

        hosts = Hosts(settings, metrics)
    threads = max(2, min(8, os.cpu_count() or 2))
    service = Service(
        settings=settings,
        hosts=hosts,
        keys=None if settings.keys is None else KeyFile(settings.keys),
        limits=Limits(settings),
        jobs=Jobs(settings, hosts, metrics),
        audit=Audit(settings),
        metrics=metrics,
        watch=_watch(settings, hosts, metrics),
        coders=Pool(threads, settings.queue_seconds, "pictures", waiting=512),
        decoders=Pool(threads, settings.queue_seconds, "decoders", waiting=512, share=0.5),
        editors=Pool(settings.edit_threads, settings.queue_seconds, "edits"),
        secret=secrets.token_bytes(32) if settings.link_secret is None else settings.link_secret.encode(),
    )
    app = FastAPI(
        title="atonce",
        version=VERSION,
        lifespan=_lifespan(service),
        docs_url=None,  # the page would be fetched from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # the address of such an answer would be made of the caller's Host header
    )
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.state.service = service
    app.state.started = int(time.time())
    app.state.ready = False
    app.state.draining = False
    app.state.beside = []
    for part in (generate, edits, images, jobs, models, admin, health):
        app.include_router(part.router)
    if extend is not None:
        extend(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ServiceError, _refused)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(HttpMetrics, metrics=metrics)
    app.state.tracing = _trace(app, settings)
    app.add_middleware(RequestLog)  # the outermost
    metrics.attach(statuses=hosts.statuses, jobs=service.jobs.counts, ready=lambda: app.state.ready and not app.state.draining)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            # What was started is stopped in reverse, also where a later part fails to start.
            stack.push_async_callback(asyncio.to_thread, service.audit.close)
            stack.push_async_callback(service.limits.close)
            if app.state.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, app.state.tracing.close)
            stack.push_async_callback(asyncio.to_thread, service.coders.close, False)
            stack.push_async_callback(asyncio.to_thread, service.decoders.close, False)
            stack.push_async_callback(asyncio.to_thread, service.editors.close, False)
            stack.push_async_callback(asyncio.to_thread, service.hosts.stop)
            await asyncio.to_thread(service.hosts.start)
            for name in service.hosts.names():
                service.metrics.drift.expect(name, service.hosts.host(name).engine("").model.card)
            stack.push_async_callback(asyncio.to_thread, service.jobs.stop)
            await asyncio.to_thread(service.jobs.start)
            if service.watch is not None:
                stack.push_async_callback(asyncio.to_thread, service.watch.stop)
                service.watch.start()
            await asyncio.to_thread(app.openapi)  # takes a second, which no request should wait for
            app.state.ready = True
            _log.info("ready: %s", ", ".join(service.hosts.names()))
            try:
                yield
            finally:
                app.state.ready = False
                app.state.draining = True

    return lifespan


def _watch(settings: ServeSettings, hosts: Hosts, metrics: Metrics) -> Any:
    if settings.watch_seconds <= 0:
        return None
    from atonce.serving.watch import Watch

    return Watch(settings, hosts, metrics)


def _trace(app: FastAPI, settings: ServeSettings) -> Any:
    if settings.otlp is None:
        return None
    from atonce.serving.tracing import set_up

    return set_up(app, settings)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return JSONResponse(error.body(request_id(request)), error.status, headers=error.headers())


async def _http(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such address, no such method, a form that cannot be read."""
    assert isinstance(error, HTTPException)
    messages = {
        404: ("not_found", "there is nothing at this address: /openapi.json lists all"),
        405: ("method_not_allowed", f"{request.method[:20]} is not possible at this address"),
        400: ("bad_request", f"the body cannot be read: {str(error.detail)[:200]}"),
    }
    code, message = messages.get(error.status_code, ("error", str(error.detail)[:200]))
    told = ServiceError(error.status_code, code, message)
    headers = {**told.headers(), **(error.headers or {})}
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return JSONResponse(told.body(request_id(request)), told.status, headers=headers)


def _methods(request: Request) -> set[str]:
    """What is possible at an address: Starlette's own answer names the methods of the first of its routes only."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found


async def _invalid(request: Request, error: Exception) -> Response:
    """A field that FastAPI itself has read: of the path, the query, or a body that a route declares."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"][1:]] or [str(fault["loc"][0])]
    if fault["type"] == "json_invalid":
        told = ServiceError(400, "invalid_json", "the body is no JSON")
    else:
        text = f"{'.'.join(place)} is {str(fault.get('input'))[:60]!r}: {fault['msg'].removeprefix('Value error, ')}"
        told = ServiceError(400, "bad_request", text, param=place[0])
    return await _refused(request, told)
