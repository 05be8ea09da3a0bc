"""How fast the device is, and what part of it training and sampling use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_jobs import Job
from gpu_tools import Notebook, arithmetic, median_seconds, say
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from atonce.core.distribution import join_world
from atonce.data.dataset import ImageData
from atonce.data.loader import DeviceData
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.build import Network, NetworkConfig, build
from atonce.networks.presets import named
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.start import resolve


@dataclass(frozen=True)
class Case:
    """A network and the batches it is timed with.

    Attributes:
        name: For people.
        network: Its configuration.
        batches: Images per training step.
        samples: Images at once in sampling.
    """

    name: str
    network: NetworkConfig
    batches: tuple[int, ...]
    samples: int


def cases(tiny: bool) -> list[Case]:
    """What is timed, the most telling first."""
    if tiny:
        return [Case("tiny 8x8", named("tiny", 8, 1), (4,), 4)]
    return [
        Case("small 28x28", named("small", 28, 1), (512, 2048), 1024),
        Case("ddpmpp 32x32", named("ddpmpp", 32, 3), (256, 1024), 512),
        Case("tiny 16x16", named("tiny", 16, 1), (1024,), 1024),
        Case("adm 64x64", named("adm", 64, 3), (64,), 128),
    ]


def measure_speed(device: str, notes: Notebook, *, job: Job | None = None, tiny: bool = False) -> None:
    """Time everything in the order of its worth, until the time is over.

    Args:
        device: ``cuda``, or ``cpu`` to try the machinery.
        notes: Where the results go, with the clock.
        job: Its last stage is timed eager and compiled, which decides how it is trained.
        tiny: Whether to try the machinery only.
    """
    where = torch.device(device)
    budget = 0.02 if tiny else 0.5
    rates = matrix_rates(where, tiny, budget)
    notes.put("matrix products", rates)
    peak = max(rates["bf16, TFLOP/s"], rates["tf32, TFLOP/s"], rates["fp32, TFLOP/s"])
    say(f"matrix products: {peak:,.4g} TFLOP/s at best")
    notes.put("memory", {"copy, GB/s read and written": _copy_rate(where, tiny, budget)})
    for case in cases(tiny):
        _guarded(notes, case.name, lambda case=case: _timed(case, where, peak, notes, budget))  # type: ignore[misc]
    if job is not None and not tiny:
        _guarded(notes, "compiling", lambda: _compiled(job, where, notes))
    if where.type == "cuda":
        for case in cases(tiny)[:2]:
            _guarded(notes, f"{case.name}, CUDA graph", lambda case=case: _graphed(case, where, notes))  # type: ignore[misc]
    else:
        notes.skip("CUDA graphs", "the device is no GPU")


def matrix_rates(device: torch.device, tiny: bool, budget: float) -> dict[str, float]:
    """The best rate over sizes of square matrix products on random data.

    Args:
        device: Where.
        tiny: Whether to try the machinery only.
        budget: Seconds for each.

    Returns:
        TFLOP/s by precision, 2 n^3 operations a product.
    """
    out: dict[str, float] = {}
    for name, dtype, tf32 in (("bf16", torch.bfloat16, True), ("tf32", torch.float32, True), ("fp32", torch.float32, False)):
        best = 0.0
        for n in (64, 128) if tiny else (4096, 8192):
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            with arithmetic(tf32=tf32):
                best = max(best, 2e-12 * n**3 / median_seconds(lambda a=a, b=b: a @ b, device, budget=budget))  # type: ignore[misc]
        out[f"{name}, TFLOP/s"] = best
    return out


def _copy_rate(device: torch.device, tiny: bool, budget: float) -> float:
    room = torch.cuda.mem_get_info(device)[0] // 64 if device.type == "cuda" else 1 << 22  # float32 values: a sixteenth
    source = torch.randn(1 << 16 if tiny else min(1 << 30, room), device=device)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / median_seconds(lambda: target.copy_(source), device, budget=budget)


def _guarded(notes: Notebook, name: str, work: Callable[[], None]) -> None:
    """Do one thing if there is time; running out of memory ends that thing only."""
    if notes.left <= 0:
        notes.skip(name, "no time left")
        return
    try:
        work()
    except torch.OutOfMemoryError:
        notes.skip(name, "the device's memory is too small")
    except Exception as error:  # a number that is missing must not cost the others
        notes.skip(name, f"{type(error).__name__}: {error}"[:500])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _timed(case: Case, device: torch.device, peak: float, notes: Notebook, budget: float) -> None:
    found: dict[str, Any] = {"parameters": 0, "training": [], "sampling": []}
    for batch in case.batches:
        for dtype in (torch.bfloat16, torch.float32):
            if notes.left <= 0:
                break
            engine = _engine(case, batch, device, dtype)
            found["parameters"] = engine.flat.values.numel()
            found["training"].append({"batch": batch, **_step(engine, device, peak, budget)})
            notes.put(case.name, found)
            del engine
    for dtype in (torch.bfloat16, torch.float32):
        if notes.left > 0:
            found["sampling"].append(_sampling(case, device, dtype, peak, budget))
            notes.put(case.name, found)
    if notes.left > 0:
        found["two passes and one backward, s"] = _formats(case, device, budget)
        notes.put(case.name, found)
    rates = (f"{row['precision']} batch {row['batch']} {row['images/s']:,.0f} img/s" for row in found["training"])
    say(f"{case.name}: {'; '.join(rates)}")


def _engine(case: Case, batch: int, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> Engine:
    """An engine of iCT with shared dropout on random pictures (the content does not change the speed), after its first step."""
    size, channels, labels = case.network.size, case.network.image_channels, case.network.labels
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (512, channels, size, size), generator=generator, dtype=torch.uint8)
    data = ImageData(pictures, torch.arange(512) % labels if labels else None, name="random")
    recipe = presets.ict(images=1 << 34, batch=batch, network=case.network, dropout=0.1, conditional=bool(labels))
    # "fp32" keeps the engine from choosing by the rounding of untrained weights; the precision is set below.
    options = Options(device=device.type, precision="fp32", compile=compiled)
    said: list[str] = []
    engine = Engine(
        resolve(recipe, data), DeviceData(data, seed=0, device=device), join_world(device), options, log=said.append
    )
    if said:
        raise RuntimeError(said[0])
    engine.step()
    engine.dtype = dtype
    return engine


def _step(engine: Engine, device: torch.device, peak: float, budget: float) -> dict[str, Any]:
    """A training step: its rate, its operations, and what it costs beyond its passes through the network."""
    batch, dtype = engine.recipe.batch, engine.dtype
    seconds = median_seconds(engine.step, device, budget=budget)
    with FlopCounterMode(display=False) as counter:
        engine.step()
    operations = counter.get_total_flops()
    passes = median_seconds(_passes(engine.network, batch, device, dtype, engine.recipe.conditional), device, budget=budget)
    engine.flat.gradient.zero_()
    return {
        "precision": str(dtype).removeprefix("torch."),
        "images/s": batch / seconds,
        "ms a step": 1000 * seconds,
        "GFLOP an image": operations / batch / 1e9,
        "of the best matrix rate": operations / seconds / (peak * 1e12),
        "over its passes": seconds / passes,
    }


def _passes(
    network: Network,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    labelled: bool,
    layout: torch.memory_format = torch.channels_last,
) -> Callable[[], None]:
    """Two forward passes, one with a backward pass: the least a training step can do."""
    config = network.config
    x = torch.randn(batch, config.image_channels, config.size, config.size, device=device).to(dtype)
    x = x.contiguous(memory_format=layout)
    c = torch.zeros(batch, device=device)
    label = torch.zeros(batch, dtype=torch.int64, device=device) if labelled else None

    def work() -> None:
        with torch.no_grad():
            network(x, c, label)
        network(x, c, label).float().square().sum().backward()

    return work


def _formats(case: Case, device: torch.device, budget: float) -> dict[str, float]:
    out = {}
    for name, layout in (("channels last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        network = build(case.network, 0).to(device, memory_format=layout)  # type: ignore[call-overload]
        work = _passes(network, case.batches[0], device, torch.bfloat16, bool(case.network.labels), layout)
        out[name] = median_seconds(work, device, budget=budget)
    return out


def _model(case: Case, device: torch.device, dtype: torch.dtype) -> ConsistencyModel:
    model = ConsistencyModel(ModelConfig(case.network, Preconditioning("boundary", 0.5, 0.002)))
    return model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _sampling(case: Case, device: torch.device, dtype: torch.dtype, peak: float, budget: float) -> dict[str, Any]:
    """One-step sampling through ``model.sample`` beside the bare network."""
    model, n = _model(case, device, dtype), case.samples
    seconds = median_seconds(lambda: model.sample(n, 1, batch=n), device, budget=budget)
    x, c = torch.randn(n, *model.shape, device=device, dtype=dtype), torch.zeros(n, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        bare = median_seconds(lambda: model.network(x, c), device, budget=budget)
        with FlopCounterMode(display=False) as counter:
            model.network(x, c)
    return {
        "precision": str(dtype).removeprefix("torch."),
        "at once": n,
        "images/s": n / seconds,
        "bare network, images/s": n / bare,
        "over the bare network": seconds / bare,
        "of the best matrix rate": counter.get_total_flops() / seconds / (peak * 1e12),
        "bare network, of the best matrix rate": counter.get_total_flops() / bare / (peak * 1e12),
    }


def _compiled(job: Job, device: torch.device, notes: Notebook) -> None:
    """The job's network as it is trained, eager and compiled."""
    data, stage = job.open(), job.stages[0]
    recipe = stage.recipe(stage.most, None)
    network = recipe.network
    if isinstance(network, str):
        network = named(network, data.shape[1], data.shape[0], data.num_classes if recipe.conditional else 0)
    case = Case(job.name, network, (recipe.batch,), 0)
    found: dict[str, float] = {}
    for name, flag in (("eager", False), ("compiled", True)):
        start = time.perf_counter()
        engine = _engine(case, recipe.batch, device, torch.bfloat16, flag)
        for _ in range(3):
            engine.step()
        if flag:
            found["seconds to compile"] = time.perf_counter() - start
        found[f"{name}, images/s"] = recipe.batch / median_seconds(engine.step, device, budget=1.0)
        del engine
        notes.put("compiling", {"network": job.name, "batch": recipe.batch, **found})
        if notes.left <= 0 and not flag:
            notes.skip("compiled", "no time left")
            return


def _graphed(case: Case, device: torch.device, notes: Notebook) -> None:
    """One call of the model as a captured graph: what launching kernels one by one costs."""
    model = _model(case, device, torch.bfloat16)
    rows = []
    for n in (1, 64, case.samples):
        x = torch.randn(n, *model.shape, device=device) * model.sigma_max
        sigma = torch.full((1,), model.sigma_max, device=device)  # a number would be copied to the device inside the graph

        @torch.no_grad()
        def call(x: Tensor = x, sigma: Tensor = sigma) -> Tensor:
            return model(x, sigma)

        eager = median_seconds(call, device, budget=0.3)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        replayed = median_seconds(graph.replay, device, budget=0.3)
        difference = float((out - call()).abs().max())
        rows.append({"at once": n, "eager, ms": 1000 * eager, "graph, ms": 1000 * replayed, "largest difference": difference})
        notes.put(f"{case.name}, CUDA graph", rows)
