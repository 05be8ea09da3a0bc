"""From a checked request to images and their answer; everything that blocks is done by engines and threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.model_config import noise_keys
from atonce.reports.outputs import check_images as check_grid
from atonce.serving.access import Principal, charge
from atonce.serving.asking import Sent, choose, deadline_of, note, request_id
from atonce.serving.edits import EditResult, count_results, plan_edit, run_edit
from atonce.serving.encode import Body, Made, body, quantised
from atonce.serving.generate import ask_of, check_images, check_steps, classes_of, refuse, with_seed
from atonce.serving.input_drift import facts
from atonce.serving.schemas import EditRequest, Format, GenerateRequest, Wanted
from atonce.serving.service import Service

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.rows import Ask


_LARGE = 1 << 20  # values of images that are worth a thread


def engine_of(service: Service, principal: Principal, wanted: Wanted) -> Engine:
    """The engine that answers a caller.

    Args:
        service: The models.
        principal: The caller, who stays with one version while there are two.
        wanted: Model and version.

    Returns:
        The engine.

    Raises:
        ServiceError: 404, there is no such model or version.
    """
    return service.hosts.host(wanted.model or service.hosts.default).engine(principal.id, wanted.version)


async def generate(request: Request, service: Service, principal: Principal, wanted: GenerateRequest) -> Made:
    """Generate images.

    Args:
        request: Tells the time that is left.
        service: The service.
        principal: The caller, whose image limits are counted.
        wanted: What is asked for.

    Returns:
        The images.

    Raises:
        ServiceError: Something does not fit, a limit is reached, or the engine refuses.
    """
    engine = engine_of(service, principal, wanted)
    check_steps(wanted.steps, wanted.sigmas, service.settings)
    lists = (wanted.seeds, wanted.labels)
    most = max(len(each) if isinstance(each, list) else 1 for each in lists)
    check_images(max(wanted.n or 1, most), service.settings)  # before anything of that size is made
    ask = ask_of(engine.model, with_seed(wanted))
    check_images(ask.n, service.settings)
    status = engine.status()
    note(request, model=status.name, version=status.version, kind="generate", n=ask.n, seed=ask.seed)
    await charge(request, principal, ask.n)
    return await made_by(service, engine, ask, deadline_of(request, service))


async def made_by(service: Service, engine: Engine, ask: Ask, deadline: float) -> Made:
    """Have an engine make images, and say how they were made.

    Args:
        service: Its threads work on large images.
        engine: The engine.
        ask: What is submitted.
        deadline: When nobody waits for them any more.

    Returns:
        The images.
    """
    begun = time.monotonic()
    future = engine.submit(ask, deadline=deadline)
    images = await asyncio.wrap_future(future)  # where this is cancelled, the future is too
    seconds = time.monotonic() - begun
    model, status = engine.model, engine.status()
    index, keys = noise_keys(ask.n, ask.seed, ask.first, ask.seeds)
    labels = classes_of(model, ask, index, keys)
    queue = min(seconds, float(getattr(future, "queue_seconds", 0.0)))
    return Made(
        kind="generate",
        model=status.name,
        version=status.version,
        images=await service.coders.run(quantised, images) if images.numel() > _LARGE else quantised(images),
        seeds=[ask.seed] * ask.n if ask.seeds is None else ask.seeds,
        indices=index.tolist(),
        labels=labels,
        names=model.labels,
        seed=ask.seed if ask.seeds is None else None,
        sigmas=ask.sigmas,
        calls=calls_of(model, ask),
        queue=queue,
        network=seconds - queue,
        backend=status.backend if ask.ema is None else "eager",  # of other sets of weights, engines have no other one
    )


def calls_of(model: ConsistencyModel, ask: Ask) -> int:
    """Network calls for each image of a generation."""
    twice = 2 if ask.guidance is not None and model.config.guidance is not None and model.config.guidance.form == "free" else 1
    second = model.kind == "denoiser" and model.config.sampler != "euler"  # Heun corrects each step but the last
    return twice * (2 * len(ask.sigmas) - 1 if second else len(ask.sigmas))


async def edit(request: Request, service: Service, principal: Principal, kind: str, wanted: EditRequest) -> Made:
    """Edit pictures.

    Args:
        request: Tells the time that is left.
        service: The service.
        principal: The caller, whose image limits are counted.
        kind: Name of the edit.
        wanted: What is asked for.

    Returns:
        The images.

    Raises:
        ServiceError: Something does not fit, a limit is reached, or the engine refuses.
    """
    engine = engine_of(service, principal, wanted)
    check_images(count_results(kind, wanted), service.settings)
    wanted = with_seed(wanted)
    plan = await service.decoders.run(plan_edit, engine.model, kind, wanted, service.settings, of=principal.id)
    check_images(plan.cost, service.settings, "size" if plan.cost > plan.total else "n")
    status = engine.status()
    note(request, model=status.name, version=status.version, kind=kind, n=plan.total, seed=plan.seed)
    await charge(request, principal, plan.price)
    if plan.read is not None:
        for picture in plan.read.images:
            service.metrics.edited(status.name, facts(picture))
    left = threading.Event()
    begun = time.monotonic()
    first: list[float] = []
    deadline = deadline_of(request, service)

    def work() -> tuple[EditResult, Tensor, float]:
        first.append(time.monotonic())
        result = run_edit(engine, kind, wanted, deadline=deadline, plan=plan, stop=left)
        return result, quantised(result.images), time.monotonic()

    try:
        result, images, ended = await service.editors.run(work)
    finally:
        left.set()  # where this was cancelled, the thread ends with its next step
    return replace(made_of(kind, engine, result, images), queue=first[0] - begun, network=ended - first[0])


def made_of(kind: str, engine: Engine, result: EditResult, images: Tensor) -> Made:
    """What an edit made, and with what.

    Args:
        kind: Name of the edit.
        engine: What ran it.
        result: Its results.
        images: They, as they are sent.

    Returns:
        The images with all that is told of them.
    """
    status = engine.status()
    return Made(
        kind=kind,
        model=status.name,
        version=status.version,
        images=images,
        seeds=result.seeds,
        indices=result.indices,
        labels=result.labels,
        names=engine.model.labels,
        seed=result.seed,
        sigmas=result.sigmas,
        calls=result.calls,
        facts=result.facts,
        backend=status.backend,
    )


def form_of(request: Request, wanted: Wanted, n: int, shape: Sequence[int]) -> tuple[Format, Sent]:
    """How an answer is to be sent; refused here, before the work, where it cannot be.

    Args:
        request: Its ``Accept`` header says how, where the body does not.
        wanted: The body.
        n: Images.
        shape: (C, H, W) of each.

    Returns:
        Format and kind of answer.
    """
    form, sent = choose(request, wanted, n)
    if form != "npz":
        try:
            check_grid("webp" if form == "webp" else "png", (shape[0], shape[1], shape[2]), n if sent == "grid" else 1)
        except InputError as problem:
            refuse(problem, type(wanted))
    return form, sent


async def answer(request: Request, service: Service, made: Made, form: Format, sent: Sent) -> Response:
    """Images as an HTTP answer.

    Args:
        request: Whose answer it is.
        service: Its threads write the files.
        made: The images.
        form: How they are written.
        sent: How they are sent.

    Returns:
        The answer.
    """
    written: Body = await service.coders.run(body, made, form, sent, request_id(request))
    service.metrics.encoded(form, len(made.images), written.seconds)
    return Response(written.content, media_type=written.media, headers=written.headers)
