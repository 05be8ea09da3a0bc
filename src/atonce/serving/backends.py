"""What runs the network: plain PyTorch, torch.compile or OpenVINO; chosen by a short measurement on the machine at hand."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import MissingExtraError
from atonce.core.images import to_uint8
from atonce.model import ConsistencyModel
from atonce.networks.adm import ADM
from atonce.networks.layers import Linear
from atonce.networks.unet import UNet
from atonce.serving.buckets import Buckets, Call, Rows, candidates, measure, probe, synchronise
from atonce.serving.recorded import recorded

log = logging.getLogger("atonce.serving")

Network = Callable[..., Tensor]  # F(x, c_noise, label=, guidance=)
Maker = Callable[[ConsistencyModel, "int | None"], Network]

LEVELS = 1  # largest difference of an image, in levels of 8 bits, that "auto" accepts
SHARE = 0.01  # largest share of values that differ at all
FASTER = 1.1  # how much faster than plain PyTorch another backend must be to be chosen
TURNS, TURN_SECONDS = 7, 0.25  # calls of each in turn that decide, and how long one of them should be at most
FEWEST = 8  # rows of a matrix product from which on its sums do not depend on how many there are


@dataclass(frozen=True)
class Backend:
    """A way to run the network of a model, ready.

    Attributes:
        name: Its name.
        call: f(x, sigma) for the rows of a call.
        buckets: Sizes of calls that agree.
        plain: Sizes that agree in plain PyTorch, which computes other sets of weights.
        measured: What was measured, of those that were not chosen too.
    """

    name: str
    call: Call
    buckets: Buckets
    plain: Buckets
    measured: tuple[dict[str, Any], ...] = ()


class Memory(Protocol):
    """Keeps a choice (:class:`atonce.serving.chosen.Chosen`)."""

    def recall(self) -> str | None:
        """The backend that was chosen before, if any."""

    def keep(self, backend: str) -> str:
        """Keep a choice; gives the one that holds, which may be another process's."""


def choose(
    model: ConsistencyModel,
    wanted: str = "auto",
    max_batch: int = 64,
    longest: float = math.inf,
    *,
    threads: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    makers: Mapping[str, Maker] | None = None,
    memory: Memory | None = None,
) -> Backend:
    """The backend for a model, warm and measured.

    ``auto`` takes the fastest whose images differ from plain PyTorch's by at most one level of 8 bits, in at most one value of
    a hundred, and plain PyTorch where no other is a tenth faster, by the median of calls made in turn: on a machine with other
    work, calls that were timed a second apart cannot be compared. Compiling is tried on CUDA only, since on a CPU it takes
    minutes. A backend that is asked for by name is taken whatever its images; the difference is logged.

    Args:
        model: The model, on its device.
        wanted: ``auto`` or a name.
        max_batch: Rows of the largest call.
        longest: Seconds that a call may take.
        threads: Threads of a call on the CPU.
        clock: Gives the time in seconds.
        makers: How to make the network of each backend; default: :data:`MAKERS`.
        memory: Where ``auto`` keeps what it chose: it then chooses the same one again, unless that one cannot be used or no
            longer gives the images of plain PyTorch.

    Returns:
        The backend; plain PyTorch, with a warning, where the wanted one is missing or broken.
    """
    makers = MAKERS if makers is None else makers
    kept = memory.recall() if memory is not None and wanted == "auto" else None
    best = _choice(model, wanted, kept, max_batch, longest, threads, clock, makers)
    if memory is not None and wanted == "auto" and kept is None:
        holds = memory.keep(best.name)
        if holds != best.name:  # another process was quicker, and chose otherwise
            best = _choice(model, wanted, holds, max_batch, longest, threads, clock, makers)
    if not best.buckets.exact:
        log.warning("backend %s: the last bits of an image depend on what else is in its call", best.name)
    return best


def _choice(
    model: ConsistencyModel,
    wanted: str,
    kept: str | None,
    max_batch: int,
    longest: float,
    threads: int | None,
    clock: Callable[[], float],
    makers: Mapping[str, Maker],
) -> Backend:
    """The wanted or kept backend, or the best one."""
    rows, sizes = probe(model, max(max_batch, FEWEST)), candidates(max_batch)
    call = call_of(model, makers["eager"](model, threads))
    plain = measure(call, rows, sizes, longest, clock)
    eager_call, best, most = call, Backend("eager", call, plain, plain), FASTER
    facts = [_facts("eager", plain, plain)]
    for name in _to_try(model, wanted if kept is None else kept):
        try:
            call = call_of(model, makers[name](model, threads))
            buckets = measure(call, rows, sizes, longest, clock)
            facts.append(_facts(name, buckets, plain))
        except Exception as problem:  # whatever a compiler comes up with must not keep the service from starting
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            absent = wanted == "auto" and isinstance(problem, (ImportError, MissingExtraError))
            log.log(logging.INFO if absent else logging.WARNING, "backend %s cannot be used, eager stays: %s", name, reason)
            facts.append({"backend": name, "problem": reason})
            continue
        if wanted == "auto" and not facts[-1]["fits"]:
            log.warning("backend %s changes the images and is not used: %s", name, facts[-1])
            continue
        facts[-1]["faster"] = times = faster((eager_call, plain), (call, buckets), rows, clock)
        if name in (wanted, kept) or times > most:
            best, most = Backend(name, call, buckets, plain), times
    return replace(best, measured=tuple(facts))


def faster(one: tuple[Call, Buckets], other: tuple[Call, Buckets], rows: Rows, clock: Callable[[], float]) -> float:
    """How many times more rows a second another backend computes: the median over calls made in turn.

    Args:
        one: A call and its sizes.
        other: The other one's.
        rows: As many rows as the largest size.
        clock: Gives the time in seconds.

    Returns:
        The ratio of the rates, with three digits.
    """
    spent: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for times, (call, buckets) in zip(spent, (one, other), strict=True):
            size = max((s for s in buckets.sizes if buckets.time(s) <= TURN_SECONDS), default=buckets.sizes[0])
            part = rows.at(torch.arange(min(size, len(rows)))).padded(size)
            began = clock()
            synchronise(call(part))
            times.append((clock() - began) / size)
    return round(statistics.median(spent[0]) / max(statistics.median(spent[1]), 1e-12), 3)


def _to_try(model: ConsistencyModel, wanted: str) -> tuple[str, ...]:
    if wanted != "auto":
        return () if wanted == "eager" else (wanted,)
    if model.device.type == "cuda":
        return ("compiled",)
    if model.device.type != "cpu":
        return ()
    from atonce.serving.openvino import has_bf16

    return ("openvino", *(["openvino-bf16"] if has_bf16() else []))


def _facts(name: str, buckets: Buckets, plain: Buckets) -> dict[str, Any]:
    """What the log and the status say of a backend, compared with plain PyTorch."""
    count = min(len(buckets.output), len(plain.output))
    ours, reference = buckets.output[:count].cpu(), plain.output[:count].cpu()
    levels = (to_uint8(ours).int() - to_uint8(reference).int()).abs()
    finite = bool(torch.isfinite(ours).all())
    share = float((levels > 0).float().mean())
    return {
        "backend": name,
        "buckets": list(buckets.sizes),
        "rate": round(buckets.rate, 2),
        "difference": float((ours - reference).abs().max()),
        "levels": int(levels.max()),
        "share": share,
        "exact": buckets.exact,
        "fits": finite and int(levels.max()) <= LEVELS and share <= SHARE,
    }


def call_of(model: ConsistencyModel, network: Network) -> Call:
    """f(x, sigma) of a model with another way to compute its raw network.

    Args:
        model: The model.
        network: F(x, c_noise, **condition).

    Returns:
        A function of the rows of a call, which gives float32 [B, C, H, W].
    """
    config, dtype = model.config.network, model.dtype

    def call(rows: Rows) -> Tensor:
        condition: dict[str, Tensor] = {}
        if config.labels and rows.label is not None:
            condition["label"] = rows.label
        if config.guidance and rows.scale is not None:
            condition["guidance"] = rows.scale
        return model.config.preconditioning(network, rows.x, rows.sigma, to=rows.to, dtype=dtype, **condition)

    return call


def eager(model: ConsistencyModel, threads: int | None = None, ema: str | None = None) -> Network:
    """Plain PyTorch, arranged so that a row's bits hardly depend on how many rows there are.

    Channels last, since convolutions of one row in the usual layout take another path than those of several; and products of
    matrices have rows of zeros added, since their sums take another order where rows are few.

    Our own networks, whose path depends on nothing but shapes, are recorded once and run as a whole without Python: it gives
    the same bits, and a call need not fight for the interpreter's lock with the threads that read and answer requests, which
    makes it several times slower under load.

    Args:
        model: The model; it is left as it is.
        threads: Not used: the threads of the calling thread are.
        ema: Name of another set of weights.

    Returns:
        F(x, c_noise, **condition).
    """
    network: nn.Module = copy.deepcopy(model._network(ema))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, (Linear, nn.Linear)):
            module.forward = partial(_filled, module.forward)  # type: ignore[method-assign]

    def plain(x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        return network(x.contiguous(memory_format=torch.channels_last), c_noise, **condition)

    if not isinstance(network, (UNet, ADM)):
        return plain
    script = recorded(model, network)

    def call(x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        # No profiling runs and no fusion: the same operations each time.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return script(x.contiguous(memory_format=torch.channels_last), c_noise, *condition.values())

    rows = probe(model, 3)
    if torch.equal(call_of(model, call)(rows), call_of(model, plain)(rows)):
        return call
    log.warning("the recorded network does not give the bits of the plain one, which serves instead")
    return plain


def _filled(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A product of matrices with rows of zeros added, which are taken away again."""
    return product(F.pad(x, (0, 0, 0, FEWEST)))[: x.shape[0]] if x.dim() == 2 else product(x)


def compiled(model: ConsistencyModel, threads: int | None = None) -> Network:
    """torch.compile for any number of rows."""
    network: nn.Module = copy.deepcopy(model.network)
    if model.device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch.compile(network, dynamic=True)


def _openvino(model: ConsistencyModel, threads: int | None, precision: Any) -> Network:
    from atonce.serving.openvino import OpenVINONetwork

    return OpenVINONetwork(model, threads, precision)


MAKERS: Mapping[str, Maker] = {
    "eager": eager,
    "compiled": compiled,
    "openvino": partial(_openvino, precision="f32"),
    "openvino-bf16": partial(_openvino, precision="bf16"),
}
