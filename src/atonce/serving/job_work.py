"""The work of one job: parts of it through an engine's bulk lane, kept as soon as they are there, and one file in the end.

An image is a function of its request and its place alone, so a job that goes on from the parts that another process left, or
that is cut otherwise, ends with the same bytes. What that rests on is the pin: the model, its weights and the backend that
computes them. Parts that were made under another pin are not mixed in: the job starts anew and says so.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from atonce.core.errors import StorageError
from atonce.core.images import to_uint8
from atonce.core.version import VERSION
from atonce.model import ConsistencyModel
from atonce.model_config import noise_keys
from atonce.serving.answers import calls_of
from atonce.serving.edits import Plan, run_edit
from atonce.serving.encode import Made, encode
from atonce.serving.errors import ServiceError
from atonce.serving.generate import classes_of
from atonce.serving.job_files import JobFiles, Parts, write_result
from atonce.serving.schemas import Format, InterpolateRequest

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.rows import Ask

PART = 256  # images of one part at most
EDIT_PART = 64  # results of one part of an edit at most: each takes many network calls
_VALUES = 1 << 22  # numbers of one part at most, so that a part of large images is finished in time and fits into memory
_SECONDS, _LEAST = 2.0, 16  # what a kill may cost: about so much work, but parts are not smaller than so many images
_AHEAD = 2  # parts that are asked for at once: the engine has work while one is written


class Hold(Protocol):
    """What ties the work to the job that it is done for.

    Attributes:
        gone: Set as soon as the work is to be left.
    """

    gone: threading.Event

    def check(self) -> None:
        """Raise where the work is to be left: cancelled, lost to another process, or stopping."""

    def pause(self, seconds: float) -> None:
        """Wait, but raise as soon as the work is to be left."""

    def at(self, done: float) -> None:
        """Say how many images are done, those of unfinished parts included."""

    def kept(self, done: int) -> None:
        """Say that a part was kept, and how many images that makes in all."""


@dataclass(frozen=True)
class Result:
    """A finished result.

    Attributes:
        file: Its name.
        sha256: Its digest.
        bytes: Its size.
    """

    file: str
    sha256: str
    bytes: int


def cut(n: int, values: int, most: int = PART) -> list[range]:
    """The parts of a job.

    Args:
        n: Images in all.
        values: Numbers of one image.
        most: Images of one part.

    Returns:
        Ranges of places, in order.
    """
    size = max(1, min(most, _VALUES // values))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def part_of(ask: Ask, places: range) -> Ask:
    """What is asked for one part of a job's images."""
    some = slice(places.start, places.stop)
    return replace(
        ask,
        n=len(places),
        first=ask.first if ask.seeds is not None else ask.first + places.start,
        seeds=None if ask.seeds is None else ask.seeds[some],
        labels=None if ask.labels is None else ask.labels[some] if len(ask.labels) == ask.n else ask.labels,
    )


def generate(engine: Engine, ask: Ask, parts: Parts, hold: Hold) -> list[range]:
    """Make all images of a job that are not there yet.

    Args:
        engine: The version that makes them.
        ask: What is wanted in all.
        parts: Where finished parts are kept.
        hold: Ties the work to the job.

    Returns:
        The parts.

    Raises:
        ServiceError: The engine stops, or its network failed.
        StorageError: The disk is full; what was kept is safe.
    """
    rate = engine.status().rate / len(ask.sigmas)
    size = min(PART, max(_LEAST, round(_SECONDS * rate))) if rate > 0 else PART
    cells = cut(ask.n, math.prod(engine.model.shape), parts.size(min(size, engine.settings.queue_rows)))
    missing = deque(_missing(cells, parts, hold))
    kept = ask.n - sum(map(len, missing))
    hold.kept(kept)
    running: deque[tuple[range, Future[Tensor]]] = deque()
    begun: dict[int, int] = {}

    def progress(start: int, done: int) -> None:
        begun[start] = done
        hold.at(kept + sum(begun.copy().values()))

    try:
        while missing or running:
            while missing and len(running) < _AHEAD:
                places = missing[0]
                told = lambda done, start=places.start: progress(start, done)
                try:
                    running.append((places, engine.submit(part_of(ask, places), lane="bulk", progress=told)))
                    missing.popleft()
                except ServiceError as problem:
                    if problem.code != "overloaded":
                        raise
                    if running:  # what is asked for already comes first
                        break
                    hold.pause(min(problem.retry_after or 1.0, 5.0))
            places, future = running[0]
            images = to_uint8(_finished(future, hold)).cpu()
            running.popleft()
            parts.write(places.start, images)
            begun.pop(places.start, None)
            kept += len(places)
            hold.kept(kept)
            hold.check()
    finally:
        for _, future in running:
            future.cancel()
    return cells


def edit(engine: Engine, plan: Plan, parts: Parts, hold: Hold) -> list[range]:
    """Make all results of an edit that are not there yet.

    Args:
        engine: The version that makes them.
        plan: The edit, with a seed.
        parts: Where finished parts are kept.
        hold: Ties the work to the job.

    Returns:
        The parts.

    Raises:
        CancelledError: The engine gave it up, though nobody had asked for that.
        ServiceError: The engine stops, or its network failed.
        StorageError: The disk is full; what was kept is safe.
    """
    values = math.prod(engine.model.shape) * max(1, plan.cost // plan.total)
    # The search for the noise of two pictures is most of an interpolation, so that is not cut.
    whole = isinstance(plan.request, InterpolateRequest)
    cells = [range(plan.total)] if whole else cut(plan.total, values, EDIT_PART)
    missing = _missing(cells, parts, hold)
    kept = plan.total - sum(map(len, missing))
    hold.kept(kept)
    for places in missing:

        def progress(done: float, kept: int = kept) -> None:
            hold.check()
            hold.at(kept + done)

        try:
            made = run_edit(
                engine, plan.kind, plan.request, lane="bulk", progress=progress, plan=plan, places=places, stop=hold.gone
            )
        except CancelledError:
            hold.check()
            raise
        told = {"seeds": made.seeds, "labels": made.labels, "sigmas": made.sigmas, "calls": made.calls, "facts": made.facts}
        parts.write(places.start, to_uint8(made.images).cpu(), told)
        kept += len(places)
        hold.kept(kept)
        hold.check()
    return cells


def about_generate(model: ConsistencyModel, ask: Ask, name: str, version: str) -> Made:
    """How the images of a job are made, without the images."""
    index, keys = noise_keys(ask.n, ask.seed, ask.first, ask.seeds)
    labels = classes_of(model, ask, index, keys)
    return Made(
        kind="generate",
        model=name,
        version=version,
        images=torch.empty(0),
        seeds=keys.tolist() if isinstance(keys, Tensor) else [ask.seed] * ask.n,
        indices=index.tolist(),
        labels=labels,
        names=model.labels,
        seed=None if ask.seeds is not None else ask.seed,
        sigmas=list(ask.sigmas),
        calls=calls_of(model, ask),
    )


def about_edit(model: ConsistencyModel, plan: Plan, parts: Parts, cells: Sequence[range], name: str, version: str) -> Made:
    """How the results of an edit were made, from what its parts say.

    Args:
        model: The model.
        plan: The edit.
        parts: Its parts, all of them there.
        cells: Which.
        name: Of the model.
        version: Of the model.

    Returns:
        All of it but the images.
    """
    told = [_there(parts, places)[1] for places in cells]
    facts: dict[str, Any] = {}
    for one in told:
        for key, value in one["facts"].items():
            if isinstance(value, list) and key == "estimated":
                facts[key] = facts.get(key, []) + value
            else:
                facts[key] = max(facts.get(key, value), value)
    return Made(
        kind=plan.kind,
        model=name,
        version=version,
        images=torch.empty(0),
        seeds=[seed for one in told for seed in one["seeds"]],
        indices=list(range(plan.total)),
        labels=None if told[0]["labels"] is None else [label for one in told for label in one["labels"]],
        names=model.labels,
        seed=plan.seed,
        sigmas=told[0]["sigmas"],
        calls=told[0]["calls"],
        facts=facts,
    )


def assemble(
    files: JobFiles,
    job: str,
    parts: Parts,
    cells: Sequence[range],
    made: Made,
    pin: str,
    request: Any,
    form: Format,
    hold: Hold,
) -> Result:
    """Put the parts of a job together; nothing in the file depends on when, where or how often it was worked on.

    Args:
        files: The files of all jobs.
        job: The job's id.
        parts: Its parts, all of them there.
        cells: Which.
        made: How the images were made.
        pin: What they were made with.
        request: What was asked for, without pictures.
        form: How images are written.
        hold: Ties the work to the job.

    Returns:
        The result.

    Raises:
        StorageError: A part has vanished, or the disk is full.
    """
    _, channels, height, width = _there(parts, cells[0])[0].shape
    n = cells[-1].stop
    told = {"atonce": VERSION, "kind": made.kind, **json.loads(pin), "request": request, "seed": made.seed}
    told |= {"sigmas": list(made.sigmas), "calls": made.calls, **made.facts, "n": n, "shape": [channels, height, width]}
    names = made.names
    entries = []
    for place in range(n):
        label = None if made.labels is None else made.labels[place]
        name = None if names is None or label is None or label < 0 else names[label]
        entries.append({"index": made.indices[place], "seed": made.seeds[place], "label": label, "name": name})

    def all_parts() -> Iterator[Tensor]:
        for places in cells:
            hold.check()
            yield _there(parts, places)[0]

    def encoded(image: Tensor, place: int) -> bytes:
        return encode(image, form, made.about(place))

    def write(path: Path) -> None:
        write_result(path, form, all_parts(), (n, channels, height, width), told | {"images": entries}, encoded)

    return Result(*files.keep(job, ".npz" if form == "npz" else ".zip", write))


def _missing(cells: Sequence[range], parts: Parts, hold: Hold) -> list[range]:
    missing = []
    for places in cells:
        hold.check()
        if parts.read(places.start) is None:
            missing.append(places)
    return missing


def _there(parts: Parts, places: range) -> tuple[Tensor, dict[str, Any]]:
    part = parts.read(places.start)
    if part is None:
        raise StorageError(f"images {places.start} to {places.stop - 1} have vanished from {parts.folder}")
    return part


def _finished(future: Future[Tensor], hold: Hold) -> Tensor:
    """Wait for images, and leave as soon as the job is to be left."""
    while not future.done():
        wait([future], timeout=0.1)
        hold.check()
    return future.result()
