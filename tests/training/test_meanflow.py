"""MeanFlow in the engine: a flow map comes out that jumps, edits, is measured and is saved like any other model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import atonce
from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.build import build
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs
from atonce.training.start import resolve, starting_weights

UNET = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
MAPS = dataclasses.replace(UNET, second_time=True)


@pytest.fixture(scope="module")
def run(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = tools.make_recipe("meanflow", network=dataclasses.replace(tools.NETWORK, second_time=True), lr=1e-2)
    done = tools.train(tmp_path_factory.mktemp("meanflow") / "run", recipe)
    assert done.finished
    return done


def test_the_model_is_a_flow_map(run: Any) -> None:
    model = run.model
    assert (model.kind, model.sigma_end, model.sigma_max) == ("flow_map", 0.0, 80.0)
    x = 80.0 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    there = model(x, 80.0, to=1.0)
    assert not torch.equal(there, model(x, 80.0))
    torch.testing.assert_close(model(x, 80.0, to=80.0), x, rtol=1e-5, atol=0)
    assert torch.equal(model(x, 80.0, to=0.0), model(x, 80.0))
    with pytest.raises(InputError, match="to is 81, must be from 0 to sigma, which is 80"):
        model(x, 80.0, to=81.0)
    with pytest.raises(InputError, match="to is -1"):
        model(x, 80.0, to=-1.0)


def test_samples_jump_or_restart(run: Any) -> None:
    model, calls = run.model, []
    two = model.sample(3, steps=2, callback=lambda info: calls.append(info["calls"]))
    assert calls == [1, 2]
    z = model.sample(3, sigmas=[80.0], callback=None)
    assert torch.equal(z, model.sample(3))
    from atonce.core.streams import Stream, normal

    noise = normal(0, torch.arange(3), (1, 8, 8), Stream.SAMPLE, 0)
    middle = 80 / 81 / 2 / (1 - 80 / 81 / 2)
    state = model(80.0 * noise, 80.0, to=middle)
    torch.testing.assert_close(two, model(state, middle).clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(two, model.sample(3, steps=2, sampler="restart"), atol=1e-3)
    assert torch.equal(two, model.sample(3, steps=2, sampler="jump"))
    digits = atonce.load("digits")
    with pytest.raises(InputError, match="sampler 'jump' does not fit a consistency model; possible: auto, restart"):
        digits.sample(1, sampler="jump")


def test_it_edits_is_measured_and_comes_back(run: Any) -> None:
    images = open_data("digits").images[:3].float() / 127.5 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    made = atonce.edit.inpaint(run.model, images, mask, steps=2)
    assert torch.equal(made[..., :4], images[..., :4])
    record = atonce.evaluate(run.model, "digits", n=32, steps=2, metrics=("frechet",))
    assert record.metrics["frechet"].value > 0
    again = ConsistencyModel.from_pretrained(run.folder / "model")
    assert again.config == run.model.config
    assert torch.equal(again.sample(3, steps=2), run.model.sample(3, steps=2))


# ---- what is drawn


@pytest.mark.parametrize("r_mean", [None, -4.0])
def test_the_pairs(r_mean: float | None) -> None:
    recipe = presets.meanflow(6400, 16, r_mean=r_mean)
    t, r = draw_pairs(recipe, Stage(), torch.arange(20_000))
    assert bool((r <= t).all())
    assert float(t.max()) <= 80.0
    assert float((r < t).double().mean()) == pytest.approx(0.75 if r_mean is None else 0.75 * 0.78, abs=0.02)
    # The share of pairs with r = t sees t as it is drawn; logit t is then normal where nothing is put in order.
    plain = dataclasses.replace(recipe, distinct=0.0, r_mean=-4.0)
    logit = draw_pairs(plain, Stage(), torch.arange(20_000))[0].log()
    assert float(logit.median()) == pytest.approx(-2.0, abs=0.06)
    assert float(logit.quantile(0.8413) - logit.median()) == pytest.approx(2.0, abs=0.06)


def test_the_published_settings() -> None:
    recipe = presets.meanflow()
    assert (recipe.images, recipe.batch, recipe.lr, recipe.optimizer) == (819_200_000, 1024, 6e-4, "adam")
    assert (recipe.P_mean, recipe.P_std, recipe.distinct, recipe.error_power, recipe.error_c) == (-2, 2, 0.75, 0.75, 1e-3)
    assert (recipe.preconditioning, recipe.direction, recipe.dropout, recipe.lr_rampup) == ("flow", "sample", 0.2, 10_000_000)
    assert presets.meanflow(form="imf").direction == "predicted"
    assert presets.meanflow(init="x").preconditioning == "trigflow"
    assert presets.meanflow(init="random").preconditioning == "flow"
    with pytest.raises(InputError, match="form is 'fast', must be meanflow or imf"):
        presets.meanflow(form="fast")  # type: ignore[arg-type]
    assert Recipe.from_dict(recipe.as_dict()) == recipe


def test_the_start_is_a_diffusion_model_exactly() -> None:
    """At every r the first step of the map is the velocity of that model: z - (t - r) (z - D) / t."""
    network = build(UNET, 5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5)
    init = ConsistencyModel(ModelConfig(UNET, Preconditioning("edm", 0.75, 0.0), kind="denoiser"), network)
    recipe = resolve(presets.meanflow(640, 16, init=init), open_data("digits"), init)
    assert recipe.network == MAPS
    assert recipe.clock == "log"
    started = build(recipe.network, None)  # type: ignore[arg-type]
    started.load_state_dict(starting_weights(init, recipe))
    sigma = torch.tensor([0.1, 1.0, 20.0])
    x = torch.randn(3, 1, 8, 8, generator=generator) * (1 + sigma)[:, None, None, None]
    t = (sigma / (1 + sigma))[:, None, None, None]
    z, r = (1 - t) * x, 0.3 * t
    map_ = Preconditioning("trigflow", 0.75, 0.0, "log", True)
    with torch.no_grad():
        expected = z - (t - r) * (z - init(x, sigma)) / t
        mapped = map_(started, x, sigma, to=(r / (1 - r)).flatten()) * (1 - r)
    torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"preconditioning": "edm"}, "preconditioning is 'edm': with pairs='mean-flow' it is flow or trigflow"),
        ({"weight": "edm"}, "weight is 'edm': with pairs='mean-flow' it is one"),
        ({"distinct": 1.5}, "distinct is 1.5, must be from 0 to 1"),
        ({"guidance": 2.0, "conditional": True}, "MeanFlow learns its guidance from images with and without a class"),
        ({"guidance": 0.5, "conditional": True, "label_dropout": 0.1}, "give a scale of 1 or more"),
        ({"guidance": 2.0, "label_dropout": 0.1}, "label_dropout needs conditional=True|guidance needs labels"),
    ],
)
def test_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        presets.meanflow(640, 16, **changes)


def test_networks_and_recipes_agree_on_the_second_time() -> None:
    data = open_data("digits")
    with pytest.raises(InputError, match="the network has second_time=False, the recipe needs True: set it there"):
        resolve(presets.meanflow(640, 16, network=UNET), data)
    with pytest.raises(InputError, match="the network has second_time=True, and pairs='ect' tells it none"):
        resolve(presets.ect(640, 16, network=MAPS), data)
    assert resolve(presets.meanflow(640, 16, network="tiny"), data).network.second_time  # type: ignore[union-attr]
    with pytest.raises(InputError, match="the network of a flow map is told a second time, and no other"):
        ModelConfig(MAPS, Preconditioning("flow", 0.5, 0.0), kind="flow_map")
    with pytest.raises(InputError, match="the network second_time=False: it must have this input"):
        ModelConfig(UNET, Preconditioning("flow", 0.5, 0.0, second=True), kind="flow_map")


@pytest.mark.parametrize("scale", [2.0, (1.0, 3.0)])
@pytest.mark.parametrize("form", ["meanflow", "imf"])
def test_guidance_is_learnt_and_costs_no_second_call(tools: Any, tmp_path: Any, form: Any, scale: Any) -> None:
    network = dataclasses.replace(tools.NETWORK, second_time=True, labels=10, guidance=isinstance(scale, tuple))
    recipe = tools.make_recipe(
        *("meanflow", 64), network=network, form=form, conditional=True, label_dropout=0.2, guidance=scale, lr=1e-2
    )
    run = tools.train(tmp_path / "run", recipe)
    model, calls = run.model, []
    model.sample(2, labels=3, guidance=2.0, callback=lambda info: calls.append(info["calls"]))
    assert calls == [1]
    assert model.config.guidance.form == ("embedded" if isinstance(scale, tuple) else "fixed")
    if isinstance(scale, float):
        assert model.card["guidance"] == "fixed in training, scale 2; 1 is no guidance"
