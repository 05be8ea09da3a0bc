"""What a request asks of an engine, checked against its model before anything waits, and what an engine says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from atonce.core.checks import whole
from atonce.model import ConsistencyModel
from atonce.model_config import guidance_scale, noise_keys, refuse_no_class

Lane = Literal["interactive", "bulk"]

_WRAP = 1 << 64


@dataclass(frozen=True)
class Ask:
    """One generation whose values fit the model (:func:`ask_for`).

    Attributes:
        n: Number of images.
        seed: Seed of the noise, and of labels that are not given.
        first: Index of the first image.
        seeds: One seed for each image, instead of both.
        labels: One class for each image; ``None`` where they are drawn, or the model has none.
        sigmas: Starting points of the intervals, descending.
        guidance: Scale of guidance.
        ema: Name of a set of weights; ``None`` for the model's own.
        steps: Number of intervals.
    """

    n: int
    seed: int = 0
    first: int = 0
    seeds: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] = ()
    guidance: float | None = None
    ema: str | None = None
    steps: int = 1


@dataclass(frozen=True)
class EngineStatus:
    """An engine, as health and metrics show it.

    Attributes:
        name: Name of the model.
        version: Its version.
        backend: What runs the network.
        buckets: Sizes of calls.
        rate: Rows a second of full calls, as measured lately; 0 before the start.
        waiting: Rows that wait for a call now, of both lanes.
        wait: Seconds that a request for one image would wait now.
        promise: Seconds beyond which requests are refused.
        running: Whether it takes requests.
        calls: Network calls so far.
        images: Images finished so far.
        failures: Requests that ended because of the network.
        measured: What was measured of each backend at the start.
    """

    name: str
    version: str
    backend: str
    buckets: tuple[int, ...]
    rate: float
    waiting: int
    wait: float
    promise: float
    running: bool
    calls: int
    images: int
    failures: int
    measured: tuple[dict[str, Any], ...] = ()


def ask_for(
    model: ConsistencyModel,
    n: int,
    *,
    steps: int = 1,
    seed: int = 0,
    first: int = 0,
    seeds: Sequence[int] | Tensor | None = None,
    labels: Sequence[int] | Tensor | int | None = None,
    guidance: float | None = None,
    sigmas: Sequence[float] | None = None,
    ema: str | None = None,
) -> Ask:
    """Check what :meth:`atonce.ConsistencyModel.sample` would check, without computing anything.

    Args:
        model: The model that will be asked.
        n: Number of images.
        steps: Number of intervals.
        seed: Seed of the noise and of labels that are not given.
        first: Index of the first image.
        seeds: One seed for each image, instead of ``seed`` and ``first``.
        labels: Classes, one or one for each image.
        guidance: Scale of guidance, for models that can.
        sigmas: Starting noise levels of the intervals, instead of ``steps``.
        ema: Name of a set of weights.

    Returns:
        The same with everything resolved but the labels that are drawn.

    Raises:
        InputError: A value is out of its range, or an option this model does not have.
    """
    whole(n, "n", 1)
    times = model._times(steps, sigmas, "auto")
    starts = times[:-1] if model.kind == "denoiser" else times  # a denoiser's times hold the end of the last interval too
    _, keys = noise_keys(n, seed, first, seeds)
    label = model._labels(labels, n)
    refuse_no_class(model.card, label)
    weights = model.weights_for(ema, len(starts), sigmas is not None)
    if guidance is not None:
        drawn = torch.zeros(n, dtype=torch.int64) if model.config.network.labels else None  # stands for those that will be
        guidance_scale(model.config.guidance, guidance, drawn if label is None else label)
    return Ask(
        n=int(n),
        seed=int(seed),
        first=int(first),
        seeds=tuple(keys.tolist()) if isinstance(keys, Tensor) else None,
        labels=None if label is None else tuple(label.tolist()),
        sigmas=tuple(starts),
        guidance=None if guidance is None else float(guidance),
        ema=weights,
        steps=len(starts),
    )


def signed(seed: int) -> int:
    """The 64-bit two's complement with the low bits of a seed: what int64 tensors can hold, with the same noise."""
    return (seed + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)


LANES: tuple[Lane, ...] = get_args(Lane)
