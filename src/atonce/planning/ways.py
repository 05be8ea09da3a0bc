"""Ways to make images, measured on this machine: throughput in full batches, and how long one image takes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from atonce.core.checks import whole
from atonce.model import ConsistencyModel
from atonce.model_config import default_batch
from atonce.planning.machine import machine
from atonce.planning.returns import Way
from atonce.preconditioning import Preconditioning

HEUN_STEPS = 18
"""Steps of the usual many-step baseline: 35 calls (Karras et al. 2022, CIFAR-10)."""
_BATCHES, _SINGLES = 5, 15
_ENOUGH = 4.0  # seconds after which no further batch is timed
_LATENCY_MOST = 8.0


@dataclass(frozen=True)
class _Timed:
    seconds: float
    latency: float
    calls: int
    batches: int
    singles: int


def measured_way(
    model: ConsistencyModel,
    name: str,
    *,
    steps: int = 1,
    batch: int | None = None,
    told: Callable[[str], None] | None = None,
) -> Way:
    """A way to sample a model, timed here.

    The medians of some batches and of some single images, after one that is not counted.

    Args:
        model: The model, on its device.
        name: What the way is called.
        steps: Intervals: network calls of a consistency model; a denoiser's Heun solver makes 2 k - 1.
        batch: Images at once; default: the model's own.
        told: Told what is timed.

    Returns:
        The way, marked as measured.

    Raises:
        InputError: Steps or batch are out of range.
    """
    whole(steps, "steps", 1, 10_000)
    size = default_batch(model.device) if batch is None else whole(batch, "batch", 1, 1 << 20)
    timed = _time(model, steps, size, told or (lambda text: None))
    sampler = "Heun steps" if model.kind == "denoiser" and model.config.sampler != "euler" else "steps"
    note = (
        f"here, {machine(model.device)}: {steps} {sampler if steps > 1 else sampler.removesuffix('s')}, median of "
        f"{timed.batches} batches of {size} and of {timed.singles} single images"
    )
    return Way(name, timed.calls, timed.seconds, timed.latency, "measured", note)


def many_step(model: ConsistencyModel) -> ConsistencyModel:
    """The same network as a denoiser: for the time that many-step sampling with it would take. Its images mean nothing.

    Args:
        model: A consistency model.

    Returns:
        A denoiser with its weights.
    """
    sigma_data = model.config.preconditioning.sigma_data
    config = dataclasses.replace(
        model.config, kind="denoiser", preconditioning=Preconditioning("edm", sigma_data, 0.0), time_points={}, sampler="auto"
    )
    return ConsistencyModel(config, network=model.network)


def _time(model: ConsistencyModel, steps: int, batch: int, told: Callable[[str], None]) -> _Timed:
    calls = [0]

    def make(n: int, first: int) -> float:
        _wait(model.device)
        start = time.perf_counter()
        model.sample(n, steps, first=first, batch=n, callback=lambda info: calls.__setitem__(0, int(info["calls"])))
        _wait(model.device)
        return time.perf_counter() - start

    told(f"{steps} steps, {batch} at once")
    batches = _repeated(lambda k: make(batch, k * batch), _BATCHES, _ENOUGH)
    told(f"{steps} steps, one at a time")
    singles = _repeated(lambda k: make(1, k), _SINGLES, _LATENCY_MOST)
    return _Timed(statistics.median(batches) / batch, statistics.median(singles), calls[0], len(batches), len(singles))


def _repeated(work: Callable[[int], float], most: int, enough: float) -> Sequence[float]:
    """Seconds of some repetitions: three at least, no more after so many seconds; the first one is not among them."""
    work(0)
    found: list[float] = []
    while len(found) < most and (len(found) < 3 or sum(found) < enough):
        found.append(work(len(found) + 1))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
