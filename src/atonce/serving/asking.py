"""From an HTTP request to a checked one: JSON or a form, the wanted kind of answer, and callers who go away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import difflib
import functools
import json
import time
from collections.abc import Awaitable
from typing import Any, Literal, NoReturn, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import UploadFile
from starlette.requests import Request

from atonce.serving.bodies import IN_A_THREAD, GoneError
from atonce.serving.encode import MEDIA
from atonce.serving.errors import ServiceError, bad_request, too_large
from atonce.serving.schemas import MOST_PICTURES, MOST_STEPS, Format, Strict, Wanted
from atonce.serving.service import Service, service_of

Sent = Literal["json", "binary", "grid", "zip"]
T = TypeVar("T")
R = TypeVar("R", bound=Strict)
_FOR_IMAGES = ("labels", "seeds")  # one for each image
_LONGEST = max(MOST_PICTURES, MOST_STEPS)  # of any other list
_SHOWN = 20  # values of a list that a message may hold


async def read(request: Request, form: type[R]) -> R:
    """The body of a request, checked.

    Args:
        request: With JSON, or with a form (``multipart/form-data``) whose files are pictures.
        form: What it should be.

    Returns:
        The request.

    Raises:
        ServiceError: 415 for another type, 400 for a field that does not fit.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    most = service_of(request).settings.max_images
    if kind == "multipart/form-data":
        data, strict = await _form(request, form, most), False
    elif kind == "application/json" or kind.endswith("+json"):
        data, strict = await _json(request), True
    else:
        raise ServiceError(
            415, "unsupported_media_type", f"the body is {kind[:60]!r}: send application/json or multipart/form-data"
        )
    check_lists(data, form, most)
    large = len(await request.body()) > IN_A_THREAD if strict else False  # what a form holds has been counted
    check = functools.partial(form.model_validate, data, strict=strict)
    try:
        return await asyncio.to_thread(check) if large else check()
    except ValidationError as problem:
        refuse_form(problem, form)


def check_lists(
    values: Any, form: type[Strict], most: int, what: str = "request", remedy: str = "ask for fewer, or make a job"
) -> None:
    """Refuse lists that are too long for any request of their kind, before their values are looked at one by one.

    Args:
        values: What was sent.
        form: What it should be; what it does not know is refused elsewhere.
        most: Images of one request, so also labels and seeds.
        what: What the request is called, ``request`` or ``job``.
        remedy: What to do about too many images.

    Raises:
        too_large: One is.
    """
    found = values if isinstance(values, dict) else {}
    for name, value in ((name, found[name]) for name in form.model_fields if isinstance(found.get(name), list)):
        if name in _FOR_IMAGES and len(value) > most:
            raise too_large(f"{len(value):,} images are asked for, one {what} may have {most:,}: {remedy}", "n")
        if name not in _FOR_IMAGES and len(value) > _LONGEST:
            raise too_large(f"{name} is a list of {len(value):,} values, the limit is {_LONGEST:,}: send fewer", name)


def refuse_form(problem: ValidationError, form: type[Strict]) -> NoReturn:
    """Say the first fault of a request, in one line.

    Args:
        problem: What pydantic found.
        form: What the request should be.

    Raises:
        ServiceError: 400, with the field.
    """
    fault: ServiceError = _fault(problem, form)
    raise fault from problem


def _fault(problem: ValidationError, form: type[Strict]) -> ServiceError:
    faults = problem.errors(include_url=False)
    # Of the kinds that a value might have been, the one that it comes nearest to: for a list that of lists.
    fault = max(faults, key=lambda each: (each["loc"][:1] == faults[0]["loc"][:1], _depth(each["loc"]), _is_length(each)))
    place = [part for part in fault["loc"] if isinstance(part, int) or part in form.model_fields]
    name = "".join(f"[{part}]" if isinstance(part, int) else part for part in place) or None
    if fault["type"] == "missing":
        missing = str(fault["loc"][0])
        return bad_request(f"{missing} is missing: {form.model_fields[missing].description or 'it is needed'}", missing)
    if fault["type"] == "extra_forbidden":
        unknown = str(fault["loc"][0])
        close = difflib.get_close_matches(unknown, form.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(form.model_fields)}"
        return bad_request(f"{unknown[:60]!r} is no field of this request: {hint}", unknown[:60])
    if name is None:
        return bad_request("the body must be a JSON object with the fields of this request, {} at least")
    return bad_request(f"{name} is {_short(fault['input'])}, should {_wish(fault)}", str(place[0]))


def _is_length(fault: ErrorDetails) -> bool:
    return fault["type"] in ("too_short", "too_long")


def _wish(fault: ErrorDetails) -> str:
    """What a value should be or have, in our words."""
    context = fault.get("ctx", {})
    for end, word, limit in (("too_short", "at least", "min_length"), ("too_long", "at most", "max_length")):
        if fault["type"] in (end, f"string_{end}") and limit in context:
            unit = "character" if fault["type"].startswith("string") else "value"
            return f"have {word} {context[limit]:,} {unit}{'s' * (context[limit] != 1)}"
    return "be " + fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def deadline_of(request: Request, service: Service) -> float:
    """When the answer is of no use any more, on the clock of ``time.monotonic``."""
    found: float | None = getattr(request.state, "deadline", None)
    return time.monotonic() + service.settings.request_seconds if found is None else found


def request_id(request: Request) -> str | None:
    """The id that the request goes by."""
    found: str | None = getattr(request.state, "request_id", None)
    return found


def note(request: Request, **facts: Any) -> None:
    """Add facts to the request's line in the audit log."""
    request.state.audit = getattr(request.state, "audit", {}) | facts


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, and cancel it as soon as the caller has gone away.

    Args:
        request: Whose body has been read.
        work: What is waited for.

    Returns:
        Its result.

    Raises:
        GoneError: The caller went away; nobody reads an answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


def choose(request: Request, wanted: Wanted, n: int) -> tuple[Format, Sent]:
    """How images are written and sent: what the request says, else what its ``Accept`` header asks for.

    Args:
        request: The request.
        wanted: Its body.
        n: Images.

    Returns:
        The format, and the kind of answer.

    Raises:
        bad_request: The two do not go together.
    """
    if wanted.response == "grid" and wanted.format == "npz":
        text = 'response is "grid", one picture of all images, and format "npz" is no picture'
        raise bad_request(f'{text}: ask for png, webp or jpeg, or for response "binary"', "response")
    if wanted.response is not None:
        return wanted.format, wanted.response
    picture: Sent = "binary" if n == 1 else "grid"
    for kind in _accepted(request.headers.get("accept", "")):
        if kind in ("application/json", "application/*", "*/*"):
            break
        if kind == MEDIA["zip"]:
            return wanted.format, "zip"
        if kind in (MEDIA["npz"], "application/octet-stream"):
            return "npz", "binary"
        if kind == "image/*" and wanted.format != "npz":
            return wanted.format, picture
        for form in get_args(Format):
            if form != "npz" and kind == MEDIA[form]:
                return form, picture
    return wanted.format, "json"


def _accepted(header: str) -> list[str]:
    """Content types of an ``Accept`` header, the most wanted first."""
    found: list[tuple[float, str]] = []
    for part in header.split(",")[:32]:
        kind, *options = (word.strip().lower() for word in part.split(";"))
        weight = 1.0
        for option in options:
            if option.startswith("q="):
                with contextlib.suppress(ValueError):
                    weight = float(option[2:])
        if kind and weight > 0:
            found.append((weight, kind))
    return [kind for _, kind in sorted(found, key=lambda each: -each[0])]


async def _json(request: Request) -> Any:
    """The JSON of a body that the guard has found sound.

    Raises:
        bad_request: There is none, or it cannot be read.
    """
    body = await request.body()
    if not body.strip():
        raise bad_request("the body is empty: send a JSON object, {} at least")
    try:
        return await asyncio.to_thread(json.loads, body) if len(body) > IN_A_THREAD else json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise bad_request(f"the body is no JSON: {str(problem)[:100]}", code="invalid_json") from problem


async def _form(request: Request, wanted: type[Strict], most: int) -> dict[str, Any]:
    """A form as the same values that JSON would hold: files become base64, commas part the values of lists of numbers."""
    found: dict[str, Any] = {}
    lists = _lists(wanted)
    async with request.form(max_files=1024, max_fields=1024, max_part_size=1 << 20) as form:
        for key in form:
            name = key.removesuffix("[]")
            values: list[Any] = []
            for value in form.getlist(key):
                if isinstance(value, UploadFile):
                    values.append(base64.b64encode(await value.read()).decode("ascii"))
                elif lists.get(name) == "numbers":
                    # One more than any request may have is enough to refuse it, and millions would take a while to part.
                    values += [part.strip() for part in value.split(",", max(most, _LONGEST))]
                else:
                    values.append(value)
            found[name] = values if len(values) > 1 or name in lists else values[0]
    return found


@functools.cache
def _lists(form: type[Strict]) -> dict[str, str]:
    """Fields of a request that are lists even of one value: of ``numbers`` or ``texts``."""
    found: dict[str, str] = {}
    for name, field in form.model_json_schema()["properties"].items():
        choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
        if all(choice.get("type") == "array" for choice in choices):
            found[name] = "texts" if choices[0]["items"].get("type") == "string" else "numbers"
    return found


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _depth(place: tuple[int | str, ...]) -> int:
    return sum(isinstance(part, int) for part in place)


def _short(value: Any) -> str:
    if isinstance(value, list | dict) and len(value) > _SHOWN:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,} values"
    text = repr(value[:61]) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
