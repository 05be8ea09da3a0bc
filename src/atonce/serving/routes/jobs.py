"""Large requests: submit, follow, fetch, cancel. Their results come with a digest and in ranges."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from atonce.serving.access import Principal, charge, require
from atonce.serving.asking import check_lists, note, read, refuse_form
from atonce.serving.document import ALWAYS, POSTED, errors
from atonce.serving.encode import MEDIA
from atonce.serving.errors import ServiceError
from atonce.serving.job_kinds import KINDS
from atonce.serving.job_rows import Job
from atonce.serving.jobs import Jobs
from atonce.serving.schemas import ErrorAnswer, Strict, Wanted
from atonce.serving.service import Service, service_of

LONGEST_WAIT = 30.0
_BLOCK = 1 << 20

Status = Literal["queued", "running", "cancelling", "cancelled", "done", "failed", "expired"]


class ResultAnswer(BaseModel):
    """What came of a job."""

    url: str = Field(description="Where it is, on this server")
    media: str = Field(description="Its content type")
    suffix: str = Field(
        description=".zip: pictures and manifest.json; .npz: arr_0 images, arr_1 labels, arr_2 seeds, manifest.json"
    )
    bytes: int
    sha256: str
    expires: int = Field(description="When it is deleted, in seconds since 1970")


class ProblemAnswer(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class JobAnswer(BaseModel):
    """A job; times are seconds since 1970."""

    id: str
    object: Literal["job"] = "job"
    kind: str = Field(description="generate, or the name of an edit")
    status: Status
    model: str
    version: str | None = Field(description="The version that it began with; before that the one that was asked for, if any")
    total: int = Field(description="Images in all")
    done: int = Field(description="Images that are done")
    rate: float | None = Field(description="Images per second, since it was last taken up")
    seconds_left: float | None = Field(description="At that rate")
    created: int
    started: int | None
    finished: int | None
    attempts: int = Field(description="How often it was taken up; more than once after a restart")
    note: str | None = Field(description="What happened to it, for example that it waits for space on the disk")
    error: ProblemAnswer | None
    result: ResultAnswer | None


class JobsAnswer(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    has_more: bool = Field(description="Whether there are older ones: ask again with before=ID of the last")


class JobRequest(Strict):
    """A request that is to be done in the background."""

    kind: str = Field(description="generate, or the name of an edit")
    request: dict[str, Any] = Field(description="What would be sent to /v1/generate or /v1/edits/...")


def _described() -> dict[str, Any]:
    """The body in the OpenAPI document: one form for each kind."""
    forms = []
    for kind, form in KINDS.items():
        schema = form.model_json_schema()
        schema.pop("example", None)
        told = {"kind": {"const": kind, "type": "string"}, "request": schema}
        title = f"{kind.capitalize()}Job"
        forms.append({"title": title, "type": "object", "properties": told, "required": [*told], "additionalProperties": False})
    example = {"kind": "generate", "request": {"n": 100, "seed": 7}}
    content = {"application/json": {"schema": {"oneOf": forms}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


Caller = Annotated[Principal, Depends(require("jobs"))]
Parts = Annotated[Service, Depends(service_of)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="A word of your own for this request: sent again with the same word (after a lost connection), it gives "
        "the same job instead of a second one",
    ),
]
Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT, allow_inf_nan=False, description="Answer when the job has ended, or after so many seconds"),
]
_FILES = {MEDIA[suffix]: {"schema": {"type": "string", "format": "binary"}} for suffix in ("zip", "npz")}
_BEHIND: dict[int | str, dict[str, Any]] = {
    416: {"model": ErrorAnswer, "description": "The range begins behind the end of the result"}
}

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    response_model=JobAnswer,
    responses={200: {"model": JobAnswer, "description": "This request was accepted before"}, **errors(*POSTED, 409)},
    openapi_extra=_described(),
)
async def submit(request: Request, caller: Caller, service: Parts, once: Key = None) -> Response:
    """Accept a large request: it is done in the background, and outlives a restart of the server.

    `response` has no meaning here: `format` npz gives one npz, any other a zip of pictures with `manifest.json`.
    """
    wanted, form = await _wanted(request, caller)

    loop = asyncio.get_running_loop()

    def pay(images: int) -> None:
        asyncio.run_coroutine_threadsafe(charge(request, caller, images), loop).result()

    def work() -> tuple[Job, bool]:
        check_lists(wanted.request, form, service.settings.max_job_images, "job", "make several jobs")
        try:
            checked = form.model_validate(wanted.request, strict=True)
        except ValidationError as problem:
            refuse_form(problem, form)
        return service.jobs.submit(caller, wanted.kind, checked, idempotency=once, charge=pay)

    # An edit's pictures are read here.
    job, new = await (run_in_threadpool(work) if wanted.kind == "generate" else service.decoders.run(work, of=caller.id))
    note(request, model=job.model, kind=job.kind, n=job.total, job=job.id)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return JSONResponse(_answer(service.jobs, job), 202 if new else 200, headers)


@router.get("", response_model=JobsAnswer, responses=errors(*ALWAYS, 400, 504))
async def listed(
    caller: Caller,
    service: Parts,
    status: Annotated[Status | None, Query(description="Only those with it")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(pattern="^job_[0-9a-f]{24}$", description="Only those older than this job")] = None,
) -> Response:
    """The caller's jobs, newest first; an admin's key sees those of all."""
    found = await run_in_threadpool(service.jobs.list, caller, status, limit + 1, before)
    data = [_answer(service.jobs, job) for job in found[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(found) > limit})


@router.get("/{id}", response_model=JobAnswer, responses=errors(*ALWAYS, 400, 404, 504))
async def followed(request: Request, id: str, caller: Caller, service: Parts, wait: Wait = 0.0) -> Response:
    """How far a job is; with ``wait`` the answer comes when it has ended, or after so many seconds."""
    until = time.monotonic() + min(wait, max(0.0, service.settings.request_seconds - 2.0))
    pause = 0.02
    while True:
        job = await run_in_threadpool(service.jobs.get, caller, id)
        left = until - time.monotonic()
        if job.ended or left <= 0 or getattr(request.app.state, "draining", False):
            return JSONResponse(_answer(service.jobs, job))
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, 0.5)


@router.delete("/{id}", response_model=JobAnswer, responses=errors(*ALWAYS, 400, 404, 504))
async def cancelled(id: str, caller: Caller, service: Parts) -> Response:
    """Cancel a job: at once where it waits, soon where it runs; one that has ended stays as it is."""
    job = await run_in_threadpool(service.jobs.cancel, caller, id)
    return JSONResponse(_answer(service.jobs, job))


@router.get(
    "/{id}/result",
    response_class=Response,
    responses={
        200: {
            "content": {MEDIA["zip"]: {}, MEDIA["npz"]: {}},
            "description": "The result; ETag and Repr-Digest are its SHA-256",
        },
        206: {"content": {MEDIA["zip"]: {}, MEDIA["npz"]: {}}, "description": "The range that was asked for"},
        **errors(*ALWAYS, 404, 409, 504),
        **_BEHIND,
    },
)
async def fetched(request: Request, id: str, caller: Caller, service: Parts) -> Response:
    """The file that came of a job. A ``Range`` gives a part of it, to go on after a broken connection."""
    job, path = await run_in_threadpool(service.jobs.result, caller, id)
    assert job.sha256 is not None
    assert job.bytes is not None
    etag, size = f'"{job.sha256}"', job.bytes
    suffix = path.suffix
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(job.sha256)).decode()}:",
        "Content-Disposition": f'attachment; filename="{job.id}{suffix}"',
    }
    part = None
    if request.headers.get("if-range", etag) == etag:
        part = _range(request.headers.get("range"), size)
    start, stop = part or (0, size)
    if start >= stop:
        raise ServiceError(416, "range_not_satisfiable", f"the range begins behind the end: the result has {size} bytes")
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    # Opened now: if the job expires meanwhile, what was begun is still sent whole.
    file = await run_in_threadpool(path.open, "rb")
    media = MEDIA[suffix.removeprefix(".")]
    return StreamingResponse(_blocks(file, start, stop), 200 if part is None else 206, headers, media)


async def _wanted(request: Request, caller: Principal) -> tuple[JobRequest, type[Wanted]]:
    """What is asked for, and the form that it must have.

    Raises:
        ServiceError: It is no JSON, of no known kind, or the caller may not do this at all.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise ServiceError(415, "unsupported_media_type", "a job is no form: send application/json, with pictures as base64")
    wanted = await read(request, JobRequest)
    if wanted.kind not in KINDS:
        raise ServiceError(
            400, "bad_request", f"kind is {wanted.kind[:40]!r}, should be one of {', '.join(KINDS)}", param="kind"
        )
    scope = "generate" if wanted.kind == "generate" else "edit"
    if scope not in caller.scopes:
        raise ServiceError(403, "forbidden", f"this key has the scope jobs, but not {scope}, which this job needs: ask for it")
    return wanted, KINDS[wanted.kind]


def _answer(jobs: Jobs, job: Job) -> dict[str, Any]:
    result = error = None
    if job.status == "done" and job.file is not None and job.finished is not None:
        suffix = "." + job.file.rpartition(".")[2]
        result = {
            "url": f"/v1/jobs/{job.id}/result",
            "media": MEDIA[suffix[1:]],
            "suffix": suffix,
            "bytes": job.bytes,
            "sha256": job.sha256,
            "expires": int(job.finished + jobs.settings.job_keep),
        }
    if job.error is not None:
        error = {"code": job.error_code or "failed", "message": job.error}
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "status": job.status,
        "model": job.model,
        "version": job.version,
        "total": job.total,
        "done": job.done,
        "rate": None if job.rate is None else round(job.rate, 3),
        "seconds_left": None if job.left is None else round(job.left, 1),
        "created": int(job.created),
        "started": None if job.started is None else int(job.started),
        "finished": None if job.finished is None else int(job.finished),
        "attempts": job.attempt,
        "note": job.note,
        "error": error,
        "result": result,
    }


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes that a header asks for: start and stop.

    Args:
        header: One range; what is malformed or several is ignored, as RFC 9110 (section 14.2) allows.
        size: Of the file.

    Returns:
        Start and stop, an empty range where it begins behind the end; ``None`` for the whole file.
    """
    found = None if header is None else re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*", header, re.ASCII)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last = int(found[2])
        return (max(0, size - last), size) if last else (size, size)
    start, stop = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < start:
        return None
    return (start, stop) if start < size else (size, size)


def _blocks(file: Any, start: int, stop: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < stop:
            block = file.read(min(_BLOCK, stop - start))
            if not block:
                return
            start += len(block)
            yield block
