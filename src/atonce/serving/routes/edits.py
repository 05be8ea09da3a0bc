"""``POST /v1/edits/...``: one route for each edit of ``atonce.edit``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from atonce.serving.access import Principal, require
from atonce.serving.answers import answer, edit, engine_of, form_of
from atonce.serving.asking import read, while_there
from atonce.serving.document import body, images
from atonce.serving.edits import count_results
from atonce.serving.schemas import EDITS, EditAnswer, EditRequest
from atonce.serving.service import service_of

router = APIRouter(tags=["edits"])

_HOW = (
    "\n\nPictures are PNG, JPEG or WebP: base64 (or `data:` addresses) in JSON, or files of a form. EXIF's orientation is "
    "applied, 16 bits become 8, transparency is laid on white and says what is to be made where there is no mask. Answers are "
    "as for `/v1/generate`."
)


def _route(kind: str, form: type[EditRequest]) -> Callable[..., Awaitable[Response]]:
    async def route(request: Request, principal: Annotated[Principal, Depends(require("edit"))]) -> Response:
        service = service_of(request)
        wanted = await read(request, form)
        model = engine_of(service, principal, wanted).model

        async def work() -> Response:
            how, sent = form_of(request, wanted, count_results(kind, wanted), model.image_shape)
            made = await edit(request, service, principal, kind, wanted)
            return await answer(request, service, made, how, sent)

        return await while_there(request, work())

    route.__name__ = kind
    route.__doc__ = " ".join((form.__doc__ or "").split()) + _HOW
    return route


for _kind, _form in EDITS.items():
    router.add_api_route(
        f"/v1/edits/{_kind}",
        _route(_kind, _form),
        methods=["POST"],
        responses=images(EditAnswer),
        openapi_extra=body(_form, multipart=True),
        operation_id=f"edit_{_kind}",
        summary=_kind.capitalize(),
    )
