"""``/v1/models``: what is served, in the shape of OpenAI's list with more fields, and the card of each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from atonce.serving.access import Principal, require
from atonce.serving.document import ALWAYS, errors
from atonce.serving.service import Service, service_of

router = APIRouter(tags=["models"])


class LimitsAnswer(BaseModel):
    """What one request may ask."""

    images: int
    job_images: int
    steps: int
    pixels: int = Field(description="Of an uploaded picture")
    bytes: int = Field(description="Of a request")


class ModelAnswer(BaseModel):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this process began to serve it, seconds since 1970")
    owned_by: str = "atonce"
    version: str = Field(description="The version that answers this caller")
    kind: str = Field(description="consistency, flow_map or denoiser")
    shape: list[int] = Field(description="Channels, height and width of its images")
    labels: list[str] | None
    steps: list[int] = Field(description="Numbers of steps for which it has noise levels of its own; any other works too")
    sigma_min: float
    sigma_max: float
    sigma_data: float
    guidance: str | None = Field(description="free, fixed or embedded")
    ema: list[str]
    edits: bool = Field(description="Whether its images can be edited")
    backend: str
    images_per_second: float
    limits: LimitsAnswer


class ModelsAnswer(BaseModel):
    """All models; the first one is the default."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class CardAnswer(BaseModel):
    """What is known about a model."""

    model: str
    version: str
    card: dict[str, Any]
    records: list[dict[str, Any]] = Field(description="Results of evaluations with their provenance")


@router.get("/v1/models", responses=errors(*ALWAYS))
async def models(request: Request, principal: Annotated[Principal, Depends(require("models"))]) -> ModelsAnswer:
    """The models that are served."""
    service = service_of(request)
    names = sorted(service.hosts.names(), key=lambda name: name != service.hosts.default)
    return ModelsAnswer(data=[_about(service, request, principal, name) for name in names])


@router.get("/v1/models/{name}", responses=errors(404, *ALWAYS))
async def model(request: Request, name: str, principal: Annotated[Principal, Depends(require("models"))]) -> ModelAnswer:
    """One model."""
    return _about(service_of(request), request, principal, name)


@router.get(
    "/v1/models/{name}/card",
    response_class=Response,
    responses={
        200: {"model": CardAnswer, "description": "The card", "content": {"text/markdown": {"schema": {"type": "string"}}}},
        **errors(404, *ALWAYS),
    },
)
async def card(request: Request, name: str, principal: Annotated[Principal, Depends(require("models"))]) -> Response:
    """The model card as Markdown; with `Accept: application/json` as JSON with the records of evaluations."""
    from atonce.model_files import model_card

    engine = service_of(request).hosts.host(name).engine(principal.id)
    found, version = engine.model, engine.status().version
    if "application/json" in request.headers.get("accept", ""):
        records = [record.as_dict() for record in found.records]
        answer = CardAnswer(model=name, version=version, card=found.card, records=records)
        return JSONResponse(answer.model_dump(mode="json"), headers={"X-Model-Version": version})
    return PlainTextResponse(model_card(found), media_type="text/markdown", headers={"X-Model-Version": version})


def _about(service: Service, request: Request, principal: Principal, name: str) -> ModelAnswer:
    engine = service.hosts.host(name).engine(principal.id)
    found, status, settings = engine.model, engine.status(), service.settings
    guidance = found.config.guidance
    pictures = found.shape[0] in (1, 3) and found.shape == found.image_shape and found.clip == (-1.0, 1.0)
    return ModelAnswer(
        id=name,
        created=request.app.state.started,
        version=status.version,
        kind=found.kind,
        shape=list(found.image_shape),
        labels=found.labels,
        steps=sorted(found.config.time_points),
        sigma_min=found.sigma_min,
        sigma_max=found.sigma_max,
        sigma_data=found.sigma_data,
        guidance=None if guidance is None else guidance.form,
        ema=found.ema_names,
        edits=pictures and found.kind != "denoiser",
        backend=status.backend,
        images_per_second=round(status.rate, 3),
        limits=LimitsAnswer(
            images=settings.max_images,
            job_images=settings.max_job_images,
            steps=settings.max_steps,
            pixels=settings.max_pixels,
            bytes=settings.max_body,
        ),
    )
