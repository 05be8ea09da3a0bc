"""OpenAI's images API: ``/v1/images/generations``, ``edits`` and ``variations``, and the links that they give."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from atonce.serving import openai
from atonce.serving.access import Principal, caller_address, require, trusted_networks
from atonce.serving.answers import edit, engine_of, form_of, generate, made_by
from atonce.serving.asking import deadline_of, note, read, while_there
from atonce.serving.document import ALWAYS, POSTED, body, errors
from atonce.serving.encode import MEDIA, Made, encode
from atonce.serving.generate import ask_of
from atonce.serving.links import base_of, link_of
from atonce.serving.openai_schemas import (
    ImagesEditRequest,
    ImagesRequest,
    ImagesVariationRequest,
    OpenAIAnswer,
    OpenAIRequest,
)
from atonce.serving.schemas import EditRequest, GenerateRequest, Wanted
from atonce.serving.service import Service, service_of

if TYPE_CHECKING:
    from atonce.model import ConsistencyModel

router = APIRouter(tags=["OpenAI"])

_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": OpenAIAnswer, "description": "The images"}, **errors(*POSTED)}
_LINK = "/v1/images/link/"


@router.post("/v1/images/generations", responses=_ANSWERS, openapi_extra=body(ImagesRequest))
async def generations(request: Request, principal: Annotated[Principal, Depends(require("generate"))]) -> Response:
    """Make images as OpenAI's clients ask for them; the prompt is the name of a class."""
    service = service_of(request)
    asked = await read(request, ImagesRequest)
    name, model = _model(service, principal, asked)
    wanted = openai.generation(asked, model, name)
    form_of(request, Wanted(format=asked.output_format or "png", response="json"), wanted.n or 1, model.image_shape)

    async def work() -> Response:
        made = await generate(request, service, principal, wanted)
        start = base_of(request.scope, service.settings) + _LINK
        links = (start, service.secret, service.settings.link_seconds) if asked.response_format == "url" else None
        return await _answer(service, made, asked, links)

    return await while_there(request, work())


@router.post("/v1/images/edits", responses=_ANSWERS, openapi_extra=body(ImagesEditRequest, multipart=True))
async def edits(request: Request, principal: Annotated[Principal, Depends(require("edit"))]) -> Response:
    """Make the transparent parts of a picture, or of its mask, anew; the prompt is the name of a class."""
    asked = await read(request, ImagesEditRequest)
    return await _edited(request, principal, asked, "inpaint", lambda model, name: openai.inpainting(asked, model, name))


@router.post("/v1/images/variations", responses=_ANSWERS, openapi_extra=body(ImagesVariationRequest, multipart=True))
async def variations(request: Request, principal: Annotated[Principal, Depends(require("edit"))]) -> Response:
    """Make images that are like a given one."""
    asked = await read(request, ImagesVariationRequest)
    return await _edited(request, principal, asked, "variations", lambda model, name: openai.variation(asked, model, name))


async def _edited(
    request: Request,
    principal: Principal,
    asked: OpenAIRequest,
    kind: str,
    as_ours: Callable[[ConsistencyModel, str], EditRequest],
) -> Response:
    service = service_of(request)
    name, model = _model(service, principal, asked)
    wanted = as_ours(model, name)

    async def work() -> Response:
        return await _answer(service, await edit(request, service, principal, kind, wanted), asked, None)

    return await while_there(request, work())


_PICTURE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    _LINK + "{token}",
    response_class=Response,
    responses={
        200: {"description": "The image", "content": {MEDIA[form]: _PICTURE for form in ("png", "webp", "jpeg")}},
        **errors(404, *(status for status in ALWAYS if status not in (401, 403)), 504),
    },
)
async def link(request: Request, token: str) -> Response:
    """One image, made again from what its link says; the link is signed, so no key is needed."""
    service = service_of(request)
    settings = service.settings
    address = caller_address(request.scope, trusted_networks(settings.trusted_proxies))
    request.state.limits = await service.limits.hit(f"link:{address}", settings.rate or None)
    found = link_of(token, service.secret)
    host = service.hosts.host(found.model)
    engine = host.engine(f"link:{address}", found.version)
    wanted = GenerateRequest(
        n=1,
        seed=found.seed,
        first=found.index,
        labels=found.label,
        sigmas=list(found.sigmas),
        guidance=found.guidance,
    )
    ask = ask_of(engine.model, wanted)
    note(request, model=found.model, version=found.version, kind="link", n=1, seed=found.seed)

    async def work() -> Response:
        made = await made_by(service, engine, ask, deadline_of(request, service))
        content = await service.coders.run(encode, made.images[0], found.format, made.about(0))
        keep = max(0, int(found.until - time.time()))
        headers = {"Cache-Control": f"private, max-age={keep}, immutable", "X-Model-Version": found.version}
        return Response(content, media_type=MEDIA[found.format], headers=headers)

    return await while_there(request, work())


def _model(service: Service, principal: Principal, asked: OpenAIRequest) -> tuple[str, Any]:
    """Name and model that a request is for, once it is known that they can honour it."""
    engine = engine_of(service, principal, Wanted(model=asked.model, version=asked.version))
    openai.check(engine.model, asked)
    return engine.status().name, engine.model


async def _answer(service: Service, made: Made, asked: OpenAIRequest, links: tuple[str, bytes, float] | None) -> Response:
    content, seconds = await service.coders.run(openai.body, made, asked, links)
    service.metrics.encoded(asked.output_format or "png", len(made.images), seconds)
    return Response(content, media_type="application/json", headers={"X-Model-Version": made.version})
