"""From a job's request to its result: which version does it, what was kept already, what is still to be made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.reports.outputs import check_images
from atonce.serving.edits import count_results, plan_edit
from atonce.serving.errors import ServiceError, too_large
from atonce.serving.generate import ask_of, check_steps, refuse
from atonce.serving.job_files import JobFiles
from atonce.serving.job_rows import Job
from atonce.serving.job_work import Result, about_edit, about_generate, assemble, edit, generate
from atonce.serving.schemas import EDITS, EditRequest, GenerateRequest, Wanted
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.hosts import Hosts
    from atonce.serving.job_worker import Held

KINDS: dict[str, type[Wanted]] = {"generate": GenerateRequest, **EDITS}
_PICTURES = ("image", "images", "mask")


def make(job: Job, hosts: Hosts, files: JobFiles, hold: Held, weights: Callable[[Engine], str]) -> Result:
    """Do the work of a job, from where it stands.

    A job belongs to the version (and backend) that it began with. Where that serves no more, it is loaded again from its
    registry, for this job. Where it is gone, a job whose request names the version fails; any other starts anew with the
    version of now, and its note says so.

    Args:
        job: The job, with its request.
        hosts: The models.
        files: Parts and results.
        hold: Ties the work to the job.
        weights: Names the weights of a version.

    Returns:
        The result.

    Raises:
        ServiceError: The model or version is gone, or the network failed.
        StorageError: The disk is full.
    """
    request = KINDS[job.kind].model_validate_json(job.request)
    with _pinned(job, request, hosts, hold, weights) as (engine, pin):
        return _made(job, request, engine, pin, files, hold)


def _made(job: Job, request: Wanted, engine: Engine, pin: str, files: JobFiles, hold: Held) -> Result:
    """The work, by the engine that it belongs to."""
    parts = files.parts(job.id, pin)
    asked = request.model_dump(mode="json", exclude_unset=True, exclude={*_PICTURES, "response"})
    common = (files, job.id, parts)
    named = (job.model, json.loads(pin)["version"])
    if isinstance(request, GenerateRequest):
        ask = ask_of(engine.model, request)
        cells = generate(engine, ask, parts, hold)
        return assemble(*common, cells, about_generate(engine.model, ask, *named), pin, asked, request.format, hold)
    assert isinstance(request, EditRequest)
    plan = plan_edit(engine.model, job.kind, request, engine.settings)
    cells = edit(engine, plan, parts, hold)
    return assemble(*common, cells, about_edit(engine.model, plan, parts, cells, *named), pin, asked, request.format, hold)


@contextmanager
def _pinned(
    job: Job, request: Wanted, hosts: Hosts, hold: Held, weights: Callable[[Engine], str]
) -> Iterator[tuple[Engine, str]]:
    """The engine that a job belongs to, and what its parts are made with."""
    before: dict[str, Any] = {} if job.pin is None else json.loads(job.pin)
    host = hosts.host(job.model)
    with ExitStack() as older:
        try:
            engine = host.engine(job.principal, before.get("version", request.version))
        except ServiceError as problem:
            if problem.status != 404 or not before:
                raise
            try:
                engine = older.enter_context(host.older(before["version"]))
            except ServiceError as gone:
                if gone.status != 404:
                    raise
                if request.version is not None:
                    raise problem from gone
                engine = host.engine(job.principal, None)
        yield engine, _noted(job, engine, before, hold, weights)


def _noted(job: Job, engine: Engine, before: dict[str, Any], hold: Held, weights: Callable[[Engine], str]) -> str:
    """What a job's parts are made with, written down where it is new."""
    status = engine.status()
    told = {"model": job.model, "version": status.version, "weights": weights(engine), "backend": status.backend}
    pin = json.dumps(told)
    if pin != job.pin:
        facts: dict[str, Any] = {"pin": pin, "version": status.version}
        if before:
            was, now = (f"version {one['version']} on {one['backend']}" for one in (before, told))
            facts |= {"note": f"begun anew with {now}: {was}, with which it began, is gone", "done": 0, "began_done": 0}
        hold.note(**facts)
    return pin


@dataclass(frozen=True, eq=False)
class Checked:
    """A request that a model can honour.

    Attributes:
        total: Images in all.
        cost: Images that the work is worth.
        price: Images that are counted against the caller's limits: network calls that guess classes count too.
        pictures: uint8 [k, C, H, W], those that came with it.
    """

    total: int
    cost: int
    price: int
    pictures: Tensor | None = None


def check(model: ConsistencyModel, kind: str, request: Wanted, settings: ServeSettings) -> Checked:
    """Check a request against a model, as far as that is possible without a network call.

    Args:
        model: The model.
        kind: ``generate`` or the name of an edit.
        request: The request of that kind.
        settings: Limits of images, steps and pixels.

    Returns:
        What is known of it.

    Raises:
        ServiceError: Something does not fit.
    """
    if isinstance(request, GenerateRequest):
        check_steps(request.steps, request.sigmas, settings)
        lists = (request.seeds, request.labels)
        _check_total(max(request.n or 1, *(len(each) if isinstance(each, list) else 1 for each in lists)), settings)
        found = Checked(n := ask_of(model, request).n, n, n)
    else:
        assert isinstance(request, EditRequest)
        _check_total(count_results(kind, request), settings)  # before any picture is decoded
        plan = plan_edit(model, kind, request, settings)
        found = Checked(plan.total, plan.cost, plan.price, None if plan.read is None else plan.read.images)
    _check_total(found.cost, settings)
    try:
        check_images("npz" if request.format == "npz" else "webp" if request.format == "webp" else "zip", model.image_shape, 1)
    except InputError as problem:
        refuse(problem, type(request))
    return found


def _check_total(total: int, settings: ServeSettings) -> None:
    """Refuse too many images.

    Raises:
        too_large: There are.
    """
    if total > settings.max_job_images:
        text = f"{total:,} images are asked for, one job may have {settings.max_job_images:,}: make several jobs"
        raise too_large(text, "n")
