"""The same request gives the same bits, alone or among any others, and the images of model.sample."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.model import ConsistencyModel
from atonce.model_config import Guidance
from atonce.serving.engine import Engine
from atonce.serving.rows import Ask, ask_for


def sampled(model: ConsistencyModel, ask: Ask) -> Tensor:
    """What the library itself makes of a request."""
    return model.sample(
        ask.n,
        seed=ask.seed,
        first=ask.first,
        seeds=ask.seeds,
        labels=ask.labels,
        guidance=ask.guidance,
        sigmas=ask.sigmas,
        ema=ask.ema,
    )


def some_ask(model: ConsistencyModel, rng: random.Random, most: int = 5) -> Ask:
    n, options = rng.randint(1, most), {}
    if rng.random() < 0.3:
        options["seeds"] = [rng.randrange(-(1 << 40), 1 << 40) for _ in range(n)]
    if model.labels and rng.random() < 0.5:
        options["labels"] = [rng.randrange(len(model.labels)) for _ in range(n)]
    if rng.random() < 0.3:
        levels = sorted({round(rng.uniform(0.05, 1) ** 3 * model.sigma_max, 4) for _ in range(rng.randint(1, 3))})
        options["sigmas"] = levels[::-1]
    return ask_for(
        model, n, steps=rng.randint(1, 3), seed=rng.randrange(-5, 1 << 62), first=rng.choice([0, 7, 1 << 35]), **options
    )


def held_against(engine: Engine, asks: list[Ask], rng: random.Random) -> int:
    """Every request alone, then all in random orders at once, some of them cancelled: bit for bit the same.

    Returns:
        How many results were compared with those of the requests alone.
    """
    compared = 0
    alone = [engine.submit(ask).result(60) for ask in asks]
    for _ in range(4):
        order = rng.sample(range(len(asks)), len(asks))
        futures = {i: engine.submit(asks[i], lane=rng.choice(["interactive", "bulk"])) for i in order}
        for i in rng.sample(order, 2):
            futures[i].cancel()
        for i, future in futures.items():
            if not future.cancelled():
                assert torch.equal(future.result(60), alone[i]), asks[i]
                compared += 1
    levels = []
    for ask, images in zip(asks, alone, strict=True):
        assert images.dtype == torch.float32
        assert images.device.type == "cpu"
        reference = sampled(engine._source, ask)
        # Restarts carry rounding on: model.sample itself differs by 1.2e-5 between batches of one and of six after three steps.
        assert (images - reference).abs().max() < (1e-5 if ask.steps == 1 else 3e-5)
        levels.append((atonce.to_uint8(images).int() - atonce.to_uint8(reference).int()).abs().flatten())
    assert torch.cat(levels).max() <= 1
    assert (torch.cat(levels) > 0).float().mean() < 3e-3
    return compared


@pytest.mark.parametrize("seed", range(4))
def test_bits_do_not_depend_on_company(seed: int, engine: Callable[..., Engine], tiny: Any) -> None:
    rng = random.Random(seed)
    model = tiny(labels=3 * (seed % 2), seed=seed)
    made = engine(model, max_batch=rng.choice([4, 8, 13]))
    assert held_against(made, [some_ask(model, rng) for _ in range(12)], rng) >= 4 * (12 - 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("denoiser", {}),
        ("denoiser", {"sampler": "euler"}),
        ("denoiser", {"guidance": Guidance("free")}),
        ("flow_map", {}),
        ("consistency", {"guidance": Guidance("embedded", (0.5, 3.0))}),
    ],
)
def test_every_kind_of_model(kind: str, options: dict[str, Any], engine: Callable[..., Engine], tiny: Any) -> None:
    rng = random.Random(1)
    model = tiny(kind, **options)
    asks = [some_ask(model, rng, 3) for _ in range(6)]
    if "guidance" in options:
        asks += [ask_for(model, 2, seed=3, guidance=w, labels=1, steps=2) for w in (0.5, 1.0, 2.5)]
        asks += [ask_for(model, 3, seed=3, guidance=2.0)]  # labels are drawn
    assert held_against(engine(model), asks, rng) >= 4 * (len(asks) - 2)


def test_sets_of_weights(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny(ema=("0.999", "0.9"))
    made = engine(model)
    asks = [ask_for(model, 1 + i % 3, seed=i, ema=[None, "0.999", "0.9"][i % 3], steps=1 + i % 2) for i in range(9)]
    assert held_against(made, asks, random.Random(0)) >= 4 * (9 - 2)
    names = [made.submit(ask_for(model, 1, seed=5, ema=name)).result(60) for name in (None, "0.999", "0.9")]
    assert not torch.equal(names[0], names[1])
    assert not torch.equal(names[1], names[2])


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_the_gallery(name: str, engine: Callable[..., Engine]) -> None:
    rng, model = random.Random(2), atonce.load(name)
    assert held_against(engine(model, max_batch=8), [some_ask(model, rng, 3) for _ in range(5)], rng) >= 4 * (5 - 2)


def test_no_global_randomness_is_touched(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    made = engine(model)
    before = torch.get_rng_state()
    made.submit(ask_for(model, 3)).result(60)
    assert torch.equal(before, torch.get_rng_state())


def test_results_can_be_changed_by_their_owner(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    made = engine(model)
    first = made.submit(ask_for(model, 2, steps=2)).result(60)
    kept = first.clone()
    first += 1.0  # also outside of no_grad and in place
    assert torch.equal(made.submit(ask_for(model, 2, steps=2)).result(60), kept)
