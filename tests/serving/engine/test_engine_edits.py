"""Edits and solvers that run in their callers' threads: their calls join all others, and nothing of the result changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.model_config import Guidance
from atonce.sampling.ode import Churn
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.rows import ask_for

Edit = Callable[[ConsistencyModel], Tensor]


def edits_of(model: ConsistencyModel) -> dict[str, Edit]:
    image = model.sample(2, seed=3)
    size = model.shape[1]
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[size // 4 : size // 2] = True
    noisy = image + 0.4 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    edit = atonce.edit
    return {
        "inpaint": lambda m: edit.inpaint(m, image, mask, steps=3, seed=1),
        "one image": lambda m: edit.inpaint(m, image[0], mask, steps=2, seed=1),
        "upscale": lambda m: edit.upscale(m, image[:, :, ::2, ::2], 2, steps=3, seed=2),
        "stroke": lambda m: edit.stroke(m, image, steps=2, seed=3),
        "variations": lambda m: edit.variations(m, image[0], n=5, seed=4),
        "local": lambda m: edit.local(m, image, mask, steps=2, seed=5),
        "denoise": lambda m: edit.denoise(m, noisy),
        "interpolate": lambda m: edit.interpolate(m, z[0], z[1], n=4, labels=1 if model.labels else None),
    }


@pytest.mark.parametrize("name", ["tiny", "digits", "fashion-mnist"])
def test_edits_equal_those_of_the_library(name: str, engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny() if name == "tiny" else atonce.load(name)
    made = engine(model)
    chosen = edits_of(model) if name == "tiny" else {k: v for k, v in edits_of(model).items() if k in ("one image", "denoise")}
    expected = {kind: edit(model) for kind, edit in chosen.items()}

    def through(kind: str) -> Tensor:
        with made.calls(kind=kind) as batched:
            return chosen[kind](batched)

    alone = {kind: through(kind) for kind in chosen}
    for kind in chosen:
        assert (alone[kind] - expected[kind]).abs().max() < 1e-5, kind
    background = [made.submit(ask_for(model, 3, seed=i, steps=2)) for i in range(3)]
    with ThreadPoolExecutor(len(chosen)) as pool:  # all at once: the same bits
        for kind, found in zip(chosen, pool.map(through, chosen), strict=True):
            assert torch.equal(found, alone[kind]), kind
    assert all(torch.isfinite(future.result(60)).all() for future in background)


def test_edits_share_calls_with_generation(faked: Callable[..., Any], tiny: Any, Log: Any) -> None:
    model, log = tiny(labels=0), Log()
    engine, fake = faked(model, held=True, observer=log)
    engine.submit(ask_for(model, 1))
    fake.wait()

    def edit(seed: int) -> Tensor:
        with engine.calls(kind="stroke") as batched:
            return atonce.edit.stroke(batched, torch.zeros(2, *model.shape), steps=2, seed=seed)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(edit, seed) for seed in (1, 2)]
        while engine.status().waiting < 4:
            pass
        made = engine.submit(ask_for(model, 3, seed=1))
        fake.leave.release()
        fake.wait()
        assert fake.sizes_seen == [1, 8], "two edits and a generation"
        fake.free()
        assert all(each.result(60).shape[0] == 2 for each in running)
        assert made.result(60).shape[0] == 3
    assert sorted(each[2:] for each in log.of("made")) == [("generate", 1), ("generate", 3), ("stroke", 2), ("stroke", 2)]
    assert len(log.of("waited")) == 4, "an edit has waited once"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("denoiser", {}),
        ("denoiser", {"guidance": 2.0}),
        ("consistency", {"guidance": 1.7}),
        ("consistency", {"ema": "0.9"}),
    ],
)
def test_the_model_of_an_engine_samples_like_its_own(
    kind: str, options: dict[str, Any], engine: Callable[..., Engine], tiny: Any
) -> None:
    form = Guidance("free") if kind == "denoiser" else Guidance("embedded", (0.5, 3.0))
    model = tiny(kind, guidance=form if "guidance" in options else None, ema=("0.9",))
    made = engine(model)
    told: list[int] = []
    with made.calls() as batched:
        found = batched.sample(3, 4, seed=2, labels=[0, 1, 2], callback=lambda info: told.append(info["calls"]), **options)
    assert (found - model.sample(3, 4, seed=2, labels=[0, 1, 2], **options)).abs().max() < 1e-5
    assert (found - made.submit(ask_for(model, 3, steps=4, seed=2, labels=[0, 1, 2], **options)).result(60)).abs().max() < 1e-5
    assert told == sorted(told)
    if kind == "denoiser":
        churned = made.model.sample(2, 4, seed=1, labels=0, churn=Churn(5.0))  # calls above sigma_max too
        assert (churned - model.sample(2, 4, seed=1, labels=0, churn=Churn(5.0))).abs().max() < 1e-5


def test_the_call_itself(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    made = engine(model)
    x = torch.randn(20, *model.shape, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(0.1, 3.0, 20)
    labels = torch.arange(20) % 3
    assert (made.model(x, levels, labels) - model(x, levels, labels)).abs().max() < 1e-5, "more rows than one call has"
    assert made.model(x.double(), 1.0).dtype == torch.float64
    assert made.model(x[:0], 1.0).shape == (0, *model.shape)
    for wrong in ({"sigma": torch.ones(3)}, {"sigma": 1e9}, {"sigma": 1.0, "label": 3}, {"sigma": 1.0, "to": 0.1}):
        with pytest.raises(InputError):
            made.model(x, **wrong)
    with pytest.raises(InputError, match="ema"):
        made.model.sample(1, ema="none")
    assert made.model.shape == model.shape
    assert made.model.labels == model.labels


def test_a_session_is_admitted_once(faked: Callable[..., Any], tiny: Any) -> None:
    model = tiny(labels=0)
    engine, fake = faked(model, held=True, queue_seconds=0.1, per_row=0.01)
    x = torch.zeros(2, *model.shape)
    with ThreadPoolExecutor(1) as pool, engine.calls() as batched:
        first = pool.submit(batched, x, 1.0)
        fake.wait()
        fake.leave.release()
        assert first.result(60).shape == x.shape
        futures = [engine.submit(ask_for(model, 8))]
        fake.wait()
        with pytest.raises(ServiceError, match="would wait"):
            engine.submit(ask_for(model, 8))
        again = pool.submit(batched, x, 0.5)  # one that has begun is not refused
        fake.free()
        assert again.result(60).shape == x.shape
        assert futures[0].result(60).shape[0] == 8
    assert engine._lanes.engaged == {}


def test_deadlines_and_stops_of_edits(faked: Callable[..., Any], tiny: Any) -> None:
    model = tiny(labels=0)
    engine, fake = faked(model, per_row=0.1)
    x, stop = torch.zeros(2, *model.shape), threading.Event()
    with pytest.raises(ServiceError) as found, engine.calls(deadline=fake.clock.now) as batched:
        batched(x, 1.0)
    assert found.value.status == 503
    with engine.calls(deadline=fake.clock.now + 0.1) as batched:
        batched(x, 1.0)  # takes 0.2 s
        with pytest.raises(ServiceError) as found:
            batched(x, 1.0)
    assert (found.value.status, found.value.code) == (504, "timeout")
    with engine.calls(stop=stop) as batched:
        batched(x, 1.0)
        stop.set()
        with pytest.raises(CancelledError):
            batched(x, 1.0)
    assert engine._ledger.sessions == set()


def test_an_error_inside_the_network_reaches_the_edit(faked: Callable[..., Any], tiny: Any, Log: Any) -> None:
    model, log = tiny(labels=0), Log()
    engine, fake = faked(model, observer=log)

    def explode(rows: Any) -> Tensor:
        raise RuntimeError("broken")

    fake.broken = explode
    with pytest.raises(ServiceError) as found, engine.calls(kind="stroke") as batched:
        atonce.edit.stroke(batched, torch.zeros(model.shape))
    assert found.value.status == 500
    assert log.of("made") == []
    fake.broken = None
    with engine.calls(kind="stroke") as batched:
        assert atonce.edit.stroke(batched, torch.zeros(model.shape)).shape == model.shape
