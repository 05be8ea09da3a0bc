"""``POST /v1/generate``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from atonce.serving.access import Principal, require
from atonce.serving.answers import answer, engine_of, form_of
from atonce.serving.answers import generate as make
from atonce.serving.asking import read, while_there
from atonce.serving.document import body, images
from atonce.serving.schemas import Answer, GenerateRequest
from atonce.serving.service import service_of

router = APIRouter(tags=["generate"])


@router.post("/v1/generate", responses=images(Answer), openapi_extra=body(GenerateRequest, multipart=True))
async def generate(request: Request, principal: Annotated[Principal, Depends(require("generate"))]) -> Response:
    """Make images from noise.

    The answer is JSON with the images as base64, or the images themselves: by `response`, or by the `Accept` header
    (`image/png`, `image/webp`, `image/jpeg`, `application/zip`, `application/x-npz`; of several images an image is a grid).
    """
    service = service_of(request)
    wanted = await read(request, GenerateRequest)
    model = engine_of(service, principal, wanted).model

    async def work() -> Response:
        many = max(wanted.n or 1, *(len(each) if isinstance(each, list) else 1 for each in (wanted.seeds, wanted.labels)))
        form, sent = form_of(request, wanted, many, model.image_shape)
        made = await make(request, service, principal, wanted)
        return await answer(request, service, made, form, sent)

    return await while_there(request, work())
