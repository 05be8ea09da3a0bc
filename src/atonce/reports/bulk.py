"""Many images from a model: in batches that are each safe once made, resumed where a kill left off, shared by processes.

Image i is the same to the bit however the work is cut. For that, batches lie on a fixed grid of indices, 0 to B - 1, B to
2 B - 1, ..., and are always computed whole, since arithmetic rounds differently for batches of another size; what is not asked
for is thrown away (less than two batches of a command). Only a command that makes fewer images than a batch computes no others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from atonce.core.distribution import World, all_sum
from atonce.core.errors import AtonceError, InputError
from atonce.core.files import storage_errors
from atonce.core.images import to_uint8
from atonce.core.progress import Progress
from atonce.model import ConsistencyModel
from atonce.model_config import default_batch
from atonce.reports.begun import Cell, Stopped
from atonce.reports.file_target import FileTarget
from atonce.reports.folder_target import FolderTarget
from atonce.reports.job import Job, checked, facts_of_job
from atonce.reports.outputs import check_images, kind_of


@dataclass(frozen=True)
class Made:
    """What came of a job.

    Attributes:
        images: How many of the images that are asked for are there now.
        found: How many of these were there before.
        calls: Network calls that each took; ``None`` where none was made yet.
        seconds: Time spent on the others.
        finished: Whether the output is complete.
    """

    images: int
    found: int
    calls: int | None
    seconds: float
    finished: bool

    @property
    def rate(self) -> float | None:
        """Images per second; ``None`` where none were made."""
        new = self.images - self.found
        return new / self.seconds if new > 0 and self.seconds > 0 else None


def generate(
    model: ConsistencyModel,
    job: Job,
    out: Path | str,
    *,
    world: World | None = None,
    stop: Event | None = None,
    quiet: bool = False,
) -> Made:
    """Make images into a grid, a zip, an array or a folder (see :mod:`atonce.reports.outputs`).

    The same call again continues where an earlier one was stopped or killed, and the result is the same to the bit; another job
    onto a begun output is refused. All processes of a world call this together, each with the whole job.

    Args:
        model: The model, on the device of this process.
        job: Which images.
        out: Where they go; the suffix decides the form.
        world: The processes that share the work; default: this one alone.
        stop: Set where somebody asks to stop.
        quiet: Show no progress.

    Returns:
        What came of it.

    Raises:
        InputError: The job does not fit the model, or something is in the way; nothing was done then.
        StorageError: Writing failed; what was made before is kept.
    """
    world, stop = world or World(), stop or Event()
    labels = checked(model, job)
    batch = job.batch if job.batch is not None else default_batch(model.device)
    facts = facts_of_job(model, job, batch)
    out = Path(out).expanduser()
    with storage_errors(out):  # a name may be too long to be asked for
        kind = kind_of(out)
    check_images(kind, model.image_shape, job.n)
    target = FolderTarget(out) if kind == "folder" else FileTarget(out, kind, model.image_shape)
    cells = cut(job.first, job.n, batch)
    began, found, new = time.monotonic(), 0, 0
    with contextlib.ExitStack() as held:
        try:
            finished, there = _begin(target, facts, labels, cells, world, held)
            found = sum(cell.high - cell.low for cell, is_there in zip(cells, there, strict=True) if is_there)
            missing = [cell for cell, is_there in zip(cells, there, strict=True) if not is_there]
            mine = missing[world.rank * len(missing) // world.size : (world.rank + 1) * len(missing) // world.size]
            began = time.monotonic()
            with _bar(mine, found, world, quiet) as bar:
                new = _make(model, job, labels, mine, target, stop, bar)
            if stop.is_set():
                return Made(found + new, found, None, time.monotonic() - began, False)
            new = _together(new)
            seconds = time.monotonic() - began
            if world.is_main and not finished:
                target.finish(cells, labels, stop)
        except Stopped:
            return Made(found + new, found, None, time.monotonic() - began, False)
    calls = target.facts().get("calls") if world.is_main else None
    return Made(found + new, found, calls, seconds, True)


def cut(first: int, n: int, batch: int) -> list[Cell]:
    """The batches of a job, on a grid that does not depend on it.

    Args:
        first: Index of the first image.
        n: Number of images.
        batch: Images in a batch.

    Returns:
        The cells in order. Fewer images than a batch are one cell of their own.
    """
    if n < batch:
        return [Cell(first, n, first, first + n)]
    end = first + n
    starts = range(first // batch * batch, end, batch)
    return [Cell(start, batch, max(start, first), min(start + batch, end)) for start in starts]


def _make(
    model: ConsistencyModel,
    job: Job,
    labels: Tensor | None,
    cells: Sequence[Cell],
    target: FileTarget | FolderTarget,
    stop: Event,
    bar: Progress,
) -> int:
    """Make the images of some cells and keep each cell as soon as it is there; the number of images that were made."""
    calls, made, before = 0, 0, bar.done
    seeds = None if job.seeds is None else torch.tensor(job.seeds)

    def step(info: dict[str, Any]) -> None:
        nonlocal calls
        calls = info["calls"]
        if stop.is_set() and not info["done"]:  # between two steps; a batch that is done is kept first
            raise Stopped

    with contextlib.suppress(Stopped):
        for cell in cells:
            if stop.is_set():
                raise Stopped
            images = model.sample(
                cell.size,
                job.steps,
                job.seed,
                first=cell.start,
                seeds=None if seeds is None else _of_cell(seeds, cell, job),
                labels=None if labels is None else _of_cell(labels, cell, job),
                guidance=job.guidance,
                sigmas=job.sigmas,
                sampler=job.sampler,
                ema=job.ema,
                batch=cell.size,
                churn=job.churn,
                callback=step,
            )
            if not made:
                target.note_calls(calls)
            target.write(cell, to_uint8(images[cell.low - cell.start : cell.high - cell.start]).cpu())
            made += cell.high - cell.low
            bar.update(before + made)
    return made


def _bar(cells: Sequence[Cell], found: int, world: World, quiet: bool) -> Progress:
    """How far this process is: of the whole where it is alone, else of its own share."""
    mine, start = sum(cell.high - cell.low for cell in cells), found if world.size == 1 else 0
    title = "sampling" if world.size == 1 else f"sampling (one of {world.size} processes)"
    return Progress(title, start + mine, "img", start=start, quiet=quiet or not cells or not world.is_main)


def _of_cell(values: Tensor, cell: Cell, job: Job) -> Tensor:
    """The values [n] of a job's images that belong to the images of a cell; those that are thrown away get zeros."""
    whole = values.new_zeros(cell.size)
    whole[cell.low - cell.start : cell.high - cell.start] = values[cell.low - job.first : cell.high - job.first]
    return whole


def _begin(
    target: FileTarget | FolderTarget,
    facts: dict[str, Any],
    labels: Tensor | None,
    cells: Sequence[Cell],
    world: World,
    held: contextlib.ExitStack,
) -> tuple[bool, list[bool]]:
    """Let the main process look at what is there, and tell all whether that is everything, and which cells there are.

    Raises:
        InputError: The main process refused; it says why, the others only that.
    """
    problem: AtonceError | None = None
    finished, there = False, [False] * len(cells)
    if world.is_main:
        try:
            finished = target.prepare(facts, labels, held)
            there = [True] * len(cells) if finished else target.present(cells)
        except AtonceError as error:
            problem = error
    # The others send zeros, so that the sum is what the main process has to say.
    refused, whole, *found = _sum(torch.tensor([problem is not None, finished, *there]).to(torch.int64)).tolist()
    if problem is not None:
        raise problem
    if refused:
        raise InputError("process 0 cannot begin; its own line says why")
    return bool(whole), [bool(is_there) for is_there in found]


def _together(count: int) -> int:
    return int(_sum(torch.tensor([count])))


def _sum(values: Tensor) -> Tensor:
    try:
        return all_sum(values)
    except RuntimeError as problem:  # another process has gone
        raise Stopped from problem
