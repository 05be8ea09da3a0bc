"""What an owner does to a running server: load a version, promote it, take it back, look at everything."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from atonce.core.errors import AtonceError
from atonce.serving.access import Principal, require
from atonce.serving.asking import note, read
from atonce.serving.document import ALWAYS, POSTED, body, errors
from atonce.serving.errors import ServiceError, bad_request
from atonce.serving.schemas import LoadRequest
from atonce.serving.service import Service, service_of

router = APIRouter(tags=["admin"])

Admin = Annotated[Principal, Depends(require("admin"))]


class VersionsAnswer(BaseModel):
    """The versions of a model after the change."""

    model: str
    versions: list[dict[str, Any]] = Field(description="Version, role (stable, canary, previous) and more of each")


class AdminAnswer(BaseModel):
    """Everything about the server."""

    engines: list[dict[str, Any]]
    versions: dict[str, list[dict[str, Any]]]
    jobs: dict[str, int]
    audit_lines_lost: int


@router.post("/v1/admin/models/{name}/load", responses=errors(409, *POSTED), openapi_extra=body(LoadRequest))
async def load(request: Request, name: str, principal: Admin) -> VersionsAnswer:
    """Load a version beside the one that serves; it takes over, for all callers or for a share, when it has proved to work."""
    service = service_of(request)
    wanted = await read(request, LoadRequest)
    note(request, model=name, kind="load", source=wanted.source, version=wanted.version)
    host = service.hosts.host(name)
    await _do(host.load, wanted.source, wanted.version, wanted.canary)
    return _versions(service, name)


@router.post("/v1/admin/models/{name}/promote", responses=errors(404, 409, *ALWAYS))
async def promote(request: Request, name: str, principal: Admin) -> VersionsAnswer:
    """Give the canary to all callers."""
    service = service_of(request)
    note(request, model=name, kind="promote")
    await _do(service.hosts.host(name).promote)
    return _versions(service, name)


@router.post("/v1/admin/models/{name}/roll-back", responses=errors(404, 409, *ALWAYS))
async def roll_back(request: Request, name: str, principal: Admin) -> VersionsAnswer:
    """Take the canary off, or go back to the version before; requests that were begun are finished."""
    service = service_of(request)
    note(request, model=name, kind="roll-back")
    await _do(service.hosts.host(name).roll_back)
    return _versions(service, name)


@router.get("/v1/admin/status", responses=errors(*ALWAYS))
async def status(request: Request, principal: Admin) -> AdminAnswer:
    """Everything about the server at once."""
    service = service_of(request)
    return AdminAnswer(
        engines=[dataclasses.asdict(each) for each in service.hosts.statuses()],
        versions={name: _versions(service, name).versions for name in service.hosts.names()},
        jobs=await run_in_threadpool(service.jobs.counts),
        audit_lines_lost=service.audit.lost,
    )


async def _do(function: Any, *arguments: Any) -> None:
    """Do something that may take long and may be refused.

    Raises:
        ServiceError: It is refused.
        bad_request: The owner's own words cannot be used; an admin may read paths of this machine.
    """
    try:
        await run_in_threadpool(function, *arguments)
    except ServiceError:
        raise
    except AtonceError as problem:
        raise bad_request(str(problem)) from problem


def _versions(service: Service, name: str) -> VersionsAnswer:
    return VersionsAnswer(model=name, versions=service.hosts.host(name).versions())
