"""Edits that come as requests: pictures read and checked, the edit run over an engine's queue, what was done said.

The results of a request stand in places 0, 1, ...: those of the first picture, then those of the second. The result at a place
is a function of the request and the place alone, so a job can make them in parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.follow import Follow, steps_of
from atonce.core.images import from_uint8
from atonce.editing import latent, noise, renoise, tasks
from atonce.editing.classes import GUESS_CALLS, labels_of, must_guess
from atonce.editing.operators import Known, averages, grey, pixels
from atonce.editing.outpaint import outpaint
from atonce.model import ConsistencyModel
from atonce.serving.edit_plans import Plan, count_results, plan_edit
from atonce.serving.errors import ServiceError
from atonce.serving.generate import refuse, seed_noise
from atonce.serving.pictures import Read
from atonce.serving.schemas import (
    DenoiseRequest,
    DrawnRequest,
    EditRequest,
    InpaintRequest,
    InterpolateRequest,
    LocalRequest,
    OutpaintRequest,
    RestoreRequest,
    StrokeRequest,
    UpscaleRequest,
    VariationsRequest,
)

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.rows import Lane

__all__ = ["EditResult", "Plan", "count_results", "plan_edit", "run_edit"]

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class EditResult:
    """What came of an edit.

    Attributes:
        kind: Name of the edit.
        images: float32 [n, C, H, W].
        seeds: Seed of each; ``None`` for an interpolation between pictures.
        indices: Place of each in the request.
        labels: Class of each, given or guessed; ``None`` for models without.
        seed: Of the request.
        sigmas: Noise levels of the calls.
        calls: Network calls for each.
        facts: What else there is to say, as in :class:`~atonce.serving.schemas.EditAnswer`.
    """

    kind: str
    images: Tensor
    seeds: list[int | None]
    indices: list[int]
    labels: list[int] | None
    seed: int | None
    sigmas: list[float]
    calls: int
    facts: dict[str, Any] = field(default_factory=dict)


def run_edit(
    engine: Engine,
    kind: str,
    request: EditRequest,
    *,
    lane: Lane = "interactive",
    deadline: float | None = None,
    progress: Progress | None = None,
    plan: Plan | None = None,
    places: range | None = None,
    stop: threading.Event | None = None,
) -> EditResult:
    """Do an edit; every network call goes through the engine's queue.

    Args:
        engine: The version of the model that does it.
        kind: Name of the edit.
        request: What is asked for; a seed that is missing is drawn.
        lane: Who waits for it.
        deadline: When the answer is of no use any more, on the clock of ``time.monotonic``.
        progress: Called now and then with the results that are done; what it raises ends the edit.
        plan: What :func:`plan_edit` gave for this request; made here where it is missing.
        places: Results that are wanted; default all.
        stop: Set by another thread, it ends the edit with CancelledError.

    Returns:
        The images and what was done.

    Raises:
        ServiceError: Something does not fit, or the engine refuses.
    """
    ready = plan or plan_edit(engine.model, kind, request, engine.settings)
    wanted = places if places is not None else range(ready.total)
    try:
        with engine.calls(lane=lane, deadline=deadline, kind=kind, stop=stop) as model:
            told = _teller(progress, deadline, stop)
            if isinstance(ready.request, InterpolateRequest):
                return _interpolate(model, ready, ready.request, wanted, told)
            return _edit(model, ready, wanted, told)
    except InputError as problem:
        refuse(problem, type(request))


def _teller(progress: Progress | None, deadline: float | None, stop: threading.Event | None) -> Progress:
    """Tells how far an edit is, and ends it where nobody waits for it any more."""

    def tell(done: float) -> None:
        if stop is not None and stop.is_set():
            raise CancelledError
        if deadline is not None and time.monotonic() > deadline:
            raise ServiceError(504, "timeout", "the edit took too long: ask for fewer results or steps, or make it a job")
        if progress is not None:
            progress(done)

    return tell


def _edit(model: ConsistencyModel, plan: Plan, places: range, progress: Progress) -> EditResult:
    request, read = plan.request, plan.read
    assert isinstance(request, DrawnRequest | DenoiseRequest)
    assert read is not None
    assert plan.seed is not None
    owner = torch.arange(places.start, places.stop) // plan.n  # the picture of each result
    x = from_uint8(read.images[owner]).to(model.device)
    mask = None if plan.mask is None else (plan.mask if len(plan.mask) == 1 else plan.mask[owner]).to(model.device)
    function, arguments, own = _function(request, x, mask)
    labels = plan.labels[places.start : places.stop] if isinstance(plan.labels, list) else plan.labels
    options: dict[str, Any] = {"seed": plan.seed, "guidance": request.guidance, "labels": labels, "first": places.start}
    steps = 1
    if isinstance(request, DrawnRequest):
        steps = steps_of(function, request.steps, request.sigmas)
        options |= {"steps": request.steps, "sigmas": request.sigmas} | own
    extra = 0
    if isinstance(request, VariationsRequest) and must_guess(model, labels):
        # The function guesses once for each picture, so its variations have one class; parts of them must have it too.
        options["labels"], extra = _guessed(model, read, owner, plan.seed, request), GUESS_CALLS * len(model.labels or ())
    follow = _Told(len(places), steps, places.start, progress)
    options = {name: value for name, value in options.items() if value is not None}
    images = function(model, x, *arguments, **options, callback=follow)
    images = images.reshape(-1, *images.shape[-3:])
    facts: dict[str, Any] = {"guessed": bool(follow.labels) and plan.labels is None, "clamped": follow.clamped}
    sigmas = follow.sigmas
    if isinstance(request, DenoiseRequest) and request.sigma is None:
        facts["estimated"] = noise.estimate_sigma(x).clamp(max=model.sigma_max).tolist()
    seeds: list[int | None] = [plan.seed] * len(places)
    return EditResult(
        plan.kind, images, seeds, list(places), follow.labels or None, plan.seed, sigmas, follow.calls + extra, facts
    )


class _Told(Follow):
    """A :class:`Follow` that passes on how far it is."""

    def __init__(self, count: int, steps: int, first: int, progress: Progress) -> None:
        super().__init__(count, steps, first)
        self._progress = progress

    def __call__(self, info: dict[str, Any]) -> None:
        super().__call__(info)
        self._progress(self.done)


def _function(
    request: DrawnRequest | DenoiseRequest, x: Tensor, mask: Tensor | None
) -> tuple[Callable[..., Tensor], Sequence[Any], dict[str, Any]]:
    """The function of an edit, what it takes after model and images, and its own options."""
    match request:
        case InpaintRequest():
            return tasks.inpaint, (mask,), {}
        case LocalRequest():
            return renoise.local, (mask,), {"sigma": request.sigma}
        case RestoreRequest():
            return tasks.restore, (_known(request, mask),), {}
        case UpscaleRequest():
            return tasks.upscale, (request.factor,), {}
        case StrokeRequest():
            return renoise.stroke, (), {"sigma": request.sigma}
        case VariationsRequest():
            return renoise.variations, (), {"sigma": request.sigma, "n": 1}
        case DenoiseRequest():
            return noise.denoise, (request.sigma,), {}
        case OutpaintRequest():
            return _outpaint, (request.size,), {"place": None if request.place is None else tuple(request.place)}
    return tasks.colorize, (), {}


def _outpaint(
    model: ConsistencyModel, x: Tensor, size: list[int] | None, *, steps: int = tasks.STEPS, **options: Any
) -> Tensor:
    height, width = size or model.shape[1:]
    return outpaint(model, x, (height, width), steps=steps, **options)


def _known(request: RestoreRequest, mask: Tensor | None) -> Known:
    parts = [] if mask is None else [pixels(mask)]
    parts += ([grey()] if request.grey else []) + ([averages(request.factor)] if request.factor > 1 else [])
    known = parts[0]
    for part in parts[1:]:
        known = known | part if request.either else known & part
    return known


def _guessed(model: ConsistencyModel, read: Read, owner: Tensor, seed: int, request: EditRequest) -> list[int]:
    """The class of each result's picture, guessed as :func:`atonce.edit.variations` does."""
    low, high = int(owner.min()), int(owner.max()) + 1
    x = from_uint8(read.images[low:high]).to(model.device)
    found = labels_of(model, None, x, first=low, seed=seed, guidance=request.guidance, batch=len(x))
    assert found is not None
    return [int(label) for label in found.cpu()[owner - low]]


def _interpolate(
    model: ConsistencyModel, plan: Plan, request: InterpolateRequest, places: range, progress: Progress
) -> EditResult:
    labels: Any = plan.labels
    facts: dict[str, Any] = {}
    calls, share = 1, 0.0
    if request.seeds is not None:
        z_a, z_b = (seed_noise(model, seed) for seed in request.seeds)
    else:
        assert plan.read is not None
        x, share = from_uint8(plan.read.images).to(model.device), 0.9  # most of the time goes into the search
        found = labels_of(model, labels, x, first=0, seed=0, guidance=request.guidance, batch=len(x))
        facts["guessed"] = labels is None and found is not None
        labels = None if found is None else found.tolist()

        def searched(info: dict[str, Any]) -> None:
            if "step" in info:
                progress(share * len(places) * (info["step"] + 1) / info["steps"])

        # The search needs gradients, which no queue gives: its calls are made here, beside the engine's.
        alone = ConsistencyModel(model.config, model.network, card=model.card)
        z, what = latent.invert_with_info(
            alone, x, iterations=request.iterations, labels=found, guidance=request.guidance, callback=searched
        )
        z_a, z_b = z[0], z[1]
        calls += what.calls
        facts["error"] = list(what.error)
    first, last = labels if isinstance(labels, list) else (labels, labels)
    half = (plan.n + 1) // 2
    ends = [latent.interpolate(model, z_a, z_b, plan.n, labels=first, guidance=request.guidance)]
    ends.append(
        ends[0] if first == last else latent.interpolate(model, z_a, z_b, plan.n, labels=last, guidance=request.guidance)
    )
    images = torch.cat([ends[0][:half], ends[1][half:]])[places.start : places.stop]
    progress(float(len(places)))
    classes = None if first is None else ([first] * half + [last] * (plan.n - half))[places.start : places.stop]
    return EditResult("interpolate", images, [None] * len(places), list(places), classes, None, [model.sigma_max], calls, facts)
