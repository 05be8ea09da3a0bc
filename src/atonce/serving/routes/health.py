"""Whether the process lives, whether it can take requests, and how its parts are; and the metrics."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from atonce.core.version import VERSION
from atonce.serving.access import has_token, require
from atonce.serving.document import errors
from atonce.serving.errors import not_found
from atonce.serving.run import is_loopback
from atonce.serving.service import Service, service_of

router = APIRouter(tags=["health"])


class StateAnswer(BaseModel):
    """One word."""

    status: Literal["ok", "starting", "draining", "missing"] = Field(description="missing: a model does not run")


class EngineAnswer(BaseModel):
    """One loaded version of a model."""

    model: str
    version: str
    backend: str
    running: bool
    waiting: int = Field(description="Rows that wait for a network call")
    expected_seconds: float = Field(description="Wait that a request may expect now")
    promised_seconds: float = Field(description="Longest wait; beyond it requests are refused")
    images_per_second: float
    failures: int


class HealthAnswer(StateAnswer):
    """Details for people."""

    atonce: str | None = Field(None, description="Version of the software")
    models: list[EngineAnswer] = Field(description="Empty where details are not for this caller")
    quality: list[dict[str, Any]] = Field(description="What the quality watch finds, where it is on")


_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": StateAnswer, "description": "Not now"}}


@router.get("/livez")
async def livez() -> StateAnswer:
    """200 as long as this process answers."""
    return StateAnswer(status="ok")


@router.get("/readyz", responses=_NOT_READY, response_model=StateAnswer)
async def readyz(request: Request) -> Response:
    """200 where requests can be taken; 503 while it starts or stops, or where a model does not run."""
    status = state_of(request)
    return JSONResponse({"status": status}, _code(status))


@router.get(
    "/healthz",
    responses={503: {"model": HealthAnswer, "description": "Not now"}, **errors(401, 403, 429, 500)},
    response_model=HealthAnswer,
)
async def healthz(request: Request) -> Response:
    """The same with details, for whom they are: where there are keys and other machines can connect, for the scope metrics."""
    status = state_of(request)
    service = service_of(request)
    if not is_open(service, service.settings.health_open):
        if not has_token(request.scope):
            return JSONResponse(HealthAnswer(status=status, atonce=None, models=[], quality=[]).model_dump(), _code(status))
        await require("metrics")(request, None, None)
    engines = [_engine(each) for each in service.hosts.statuses()]
    quality = [] if service.watch is None else service.watch.state()
    answer = HealthAnswer(status=status, atonce=VERSION, models=engines, quality=quality)
    return JSONResponse(answer.model_dump(mode="json"), _code(status))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401, 403, 404, 429, 500, 503)},
)
async def metrics(request: Request) -> Response:
    """What is measured, for Prometheus."""
    service = service_of(request)
    if not service.settings.metrics:
        raise not_found("this server shows no metrics")
    if not is_open(service, service.settings.metrics_open):
        await require("metrics")(request, None, None)
    service.metrics.limits_store(await service.limits.working())
    content, kind = service.metrics.text(request.headers.get("accept", ""))
    return Response(content, media_type=None, headers={"Content-Type": kind})


def is_open(service: Service, said: bool | None) -> bool:
    """Whether what is told about the inside of a server is for everybody.

    Args:
        service: The server.
        said: What its owner says, if anything.

    Returns:
        What the owner says; else true where there are no keys, or where only this machine can connect and no proxy stands
        before it.
    """
    settings = service.settings
    alone = is_loopback(settings.host) and not settings.trusted_proxies and settings.public_url is None
    return (service.keys is None or alone) if said is None else said


def _code(status: str) -> int:
    return 200 if status == "ok" else 503


def state_of(request: Request) -> Literal["ok", "starting", "draining", "missing"]:
    """Whether requests can be taken."""
    state = request.app.state
    service: Service | None = getattr(state, "service", None)
    if getattr(state, "draining", False):
        return "draining"
    if service is None or not getattr(state, "ready", False):
        return "starting"
    return "ok" if service.hosts.ready else "missing"


def _engine(status: Any) -> EngineAnswer:
    return EngineAnswer(
        model=status.name,
        version=status.version,
        backend=status.backend,
        running=status.running,
        waiting=status.waiting,
        expected_seconds=round(status.wait, 4),
        promised_seconds=status.promise,
        images_per_second=round(status.rate, 3),
        failures=status.failures,
    )
