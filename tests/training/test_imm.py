"""IMM in the engine: groups stay whole whatever the passes, and a flow map comes out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from atonce.core.distribution import World
from atonce.core.errors import InputError
from atonce.data.loader import DeviceData
from atonce.data.sources import open_data
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs, times_of_groups
from atonce.training.start import resolve


def recipe_of(tools: Any, **changes: Any) -> Recipe:
    network = dataclasses.replace(tools.NETWORK, second_time=True)
    return resolve(tools.make_recipe("imm", network=network, lr=1e-2, **changes), open_data("digits"))


def engine_of(recipe: Recipe, world: World | None = None, **options: Any) -> Engine:
    loader = DeviceData(open_data("digits"), seed=recipe.seed, device=torch.device("cpu"), flip=False)
    return Engine(recipe, loader, world or World(), Options(precision="fp32", **options))


def test_a_flow_map_comes_out(tools: Any, tmp_path: Any) -> None:
    run = tools.train(tmp_path / "run", recipe_of(tools, images=64))
    assert run.finished
    model = run.model
    assert (model.kind, model.sigma_end, model.sigma_min) == ("flow_map", 0.0, 0.003)
    assert model.config.preconditioning.kind == "trigflow"
    assert model.sample(2, steps=2).shape == (2, 1, 8, 8)
    assert model(model.sample(2), 1.0, to=0.3).shape == (2, 1, 8, 8)


def test_images_of_a_group_share_their_noise_levels(tools: Any) -> None:
    recipe = recipe_of(tools)
    t, r, s = times_of_groups(recipe, torch.arange(32))
    for level in (t, r, s):
        assert bool((level.reshape(8, 4) == level.reshape(8, 4)[:, :1]).all())
    assert len(set(t.tolist())) == 8
    assert torch.equal(torch.stack(draw_pairs(recipe, Stage(), torch.arange(32))), torch.stack([t, r]))


@pytest.mark.parametrize("microbatch", [1, 4, 7, 9])
def test_passes_never_divide_a_group(tools: Any, microbatch: int) -> None:
    recipe = recipe_of(tools)
    whole, parts = engine_of(recipe), engine_of(recipe, microbatch=microbatch)
    assert all(len(index) % 4 == 0 and int(index[0]) % 4 == 0 for index in parts._microbatches())
    for engine in (whole, parts):
        engine.step()
    torch.testing.assert_close(whole.flat.gradient, parts.flat.gradient, rtol=1e-4, atol=1e-8)
    assert any(value for value in parts.gradient_by_sigma())


@pytest.mark.parametrize("size", [2, 3])
def test_processes_never_divide_a_group(tools: Any, size: int) -> None:
    recipe = recipe_of(tools, batch=20)
    seen = [i for rank in range(size) for p in engine_of(recipe, World(rank, size))._microbatches() for i in p.tolist()]
    assert seen == list(range(20))
    for rank in range(size):
        for index in engine_of(recipe, World(rank, size))._microbatches():
            assert len(index) % 4 == 0


def test_refused() -> None:
    with pytest.raises(InputError, match="batch is 18, must be a multiple of group"):
        presets.imm(640, 18)
    with pytest.raises(InputError, match="preconditioning is 'flow': with pairs='groups' it is trigflow"):
        presets.imm(640, 16, preconditioning="flow")
    with pytest.raises(InputError, match="imm_a is 3, must be one of 1, 2"):
        presets.imm(640, 16, imm_a=3)
