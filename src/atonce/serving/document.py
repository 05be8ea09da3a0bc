"""The OpenAPI document: bodies that are read by hand, errors that every route can give, and what is not used removed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from atonce.core.version import VERSION
from atonce.serving.encode import MEDIA
from atonce.serving.openai_schemas import ImagesEditRequest, ImagesRequest, ImagesVariationRequest
from atonce.serving.schemas import EDITS, ErrorAnswer, GenerateRequest, LoadRequest, Strict

_MEANINGS = {
    400: "A field does not fit: the message has its value, the limit and the remedy, `param` its name",
    401: "No API key, or one that does not work",
    403: "The API key lacks the scope",
    404: "There is no such thing, or it is gone",
    405: "This address does not take this method",
    408: "The body took too long to arrive",
    409: "Not in this state",
    413: "Too many bytes, pixels or images for one request",
    415: "Another type of body is needed",
    429: "A limit on requests or images is reached: wait for Retry-After seconds",
    500: "The server failed; its log tells more, under the request's id",
    503: "Starting, stopping, or too busy to keep its promise: wait for Retry-After seconds",
    504: "It took too long",
}
_RETRY = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_ID = {"X-Request-ID": {"description": "Id of the request, the caller's own where it sent one", "schema": {"type": "string"}}}
_VERSION = {"X-Model-Version": {"description": "The version that made the images", "schema": {"type": "string"}}}
_BACKEND = {
    "X-Backend": {"description": "What ran the network: equal bytes are promised for each", "schema": {"type": "string"}}
}
_FILES = ("image", "images", "mask")

REQUESTS: tuple[type[Strict], ...] = (
    GenerateRequest,
    *EDITS.values(),
    ImagesRequest,
    ImagesEditRequest,
    ImagesVariationRequest,
    LoadRequest,
)
"""Bodies that routes read themselves."""

ALWAYS = (401, 403, 429, 500, 503)
"""What every route behind a key can answer."""
POSTED = (400, 404, 408, 413, 415, 504, *ALWAYS)
"""What routes that take a body can answer besides."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of errors for ``responses=`` of a route."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted(set(statuses)):
        told = {"model": ErrorAnswer, "description": _MEANINGS[status], "headers": dict(_ID)}
        if status in (429, 503):
            told["headers"] = {**_ID, **_RETRY}
        found[status] = told
    return found


def images(form: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The description of an answer that is JSON or files, by what the request wants."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {MEDIA[kind]: binary for kind in ("png", "webp", "jpeg", "zip", "npz")}
    told = {"model": form, "description": "The images", "content": files, "headers": {**_ID, **_VERSION, **_BACKEND}}
    return {200: told, **errors(*POSTED)}


def body(form: type[Strict], *, multipart: bool = False, plain: bool = True) -> dict[str, Any]:
    """The description of a body that the route reads itself, for ``openapi_extra=``.

    Args:
        form: Its model; its schema must not refer to others. :func:`describe` adds it to the document.
        multipart: Whether a form is taken.
        plain: Whether JSON is taken.

    Returns:
        The part of the operation.
    """
    schema = form.model_json_schema()
    example = schema.pop("example", None)
    content: dict[str, Any] = {}
    if plain:
        told = {"schema": {"$ref": f"#/components/schemas/{form.__name__}"}}
        content["application/json"] = told | ({} if example is None else {"example": example})
    if multipart:
        content["multipart/form-data"] = {"schema": _form(schema)}
    return {"requestBody": {"required": True, "content": content}}


def _form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a form: pictures are files, lists of numbers have commas."""
    found = copy.deepcopy(dict(schema))
    for name, each in found["properties"].items():
        choices = [choice for choice in each.pop("anyOf", [each]) if choice.get("type") not in ("null", "array")]
        told = {key: each[key] for key in ("description", "title") if key in each}
        if name in _FILES:
            file = {"type": "string", "format": "binary"}
            each.clear()
            each |= told | ({"type": "array", "items": file, "minItems": 2, "maxItems": 2} if name == "images" else file)
        elif not choices:
            each.clear()
            each |= told | {"type": "string", "minLength": 1}
        else:
            only = dict(choices[0]) if len(choices) == 1 else {"anyOf": choices}
            each.clear()
            each |= only | told
    return found


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document of an application, without FastAPI's 422, which is never sent, and keys where there are none."""
    if app.openapi_schema is None:
        found = get_openapi(
            title="atonce",
            version=VERSION,
            summary="One-step generative models behind an HTTP interface",
            description="Generate and edit images. Equal model, version, backend and seed give equal bytes, whatever the load.",
            routes=app.routes,
        )
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for form in REQUESTS:
            schemas[form.__name__] = {key: value for key, value in form.model_json_schema().items() if key != "example"}
        for operation in _operations(found):
            operation["responses"].pop("422", None)
            if app.state.service.keys is None and "admin" not in operation.get("tags", ()):
                for name in ("401", "403"):
                    operation["responses"].pop(name, None)
                operation.pop("security", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema


def _operations(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for path in document["paths"].values():
        yield from (operation for operation in path.values() if isinstance(operation, dict) and "responses" in operation)
