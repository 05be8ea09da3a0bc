"""sCT and sCD in the engine: an exact start, a weight that stays behind, the same run after an interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atonce
from atonce.core.distribution import World
from atonce.core.errors import InputError
from atonce.data.loader import DeviceData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig, build
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.start import resolve, starting_weights
from atonce.training.words import recipe_from_words

UNET = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
NCSN = dataclasses.replace(UNET, embedding="fourier", noise_mult=2, encoder="residual", taps=(1, 3, 3, 1))
ADM = ADMConfig(8, 1, channels=32, channel_mult=(1,), blocks=1, attention=(), head_channels=32)
NETWORKS: dict[str, NetworkConfig] = {"unet": UNET, "ncsnpp": NCSN, "adm": ADM}


def denoiser(config: NetworkConfig = UNET, seed: int = 5, **changes: Any) -> ConsistencyModel:
    """A diffusion model whose weights are of order one everywhere."""
    network = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5)
    values: dict[str, Any] = {"preconditioning": Preconditioning("edm", 0.75, 0.0), "kind": "denoiser"} | changes
    return ConsistencyModel(ModelConfig(config, **values), network)


def engine_of(recipe: Recipe, teacher: ConsistencyModel | None = None, **options: Any) -> Engine:
    data = open_data("digits")
    resolved = recipe if isinstance(recipe.sigma_data, float) else resolve(recipe, data)
    loader = DeviceData(data, seed=recipe.seed, device=torch.device("cpu"), flip=False)
    init = options.pop("init", None)
    log = options.pop("log", lambda text: None)
    return Engine(resolved, loader, World(), Options(precision="fp32", **options), init, teacher, log)


def states(n: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.002, 0.05, 0.8, 6.0, 80.0])
    return x * (sigma**2 + 0.5).sqrt()[:, None, None, None], sigma


# ---- the start


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", ["sct", "scd"])
def test_a_diffusion_model_becomes_a_trigflow_one_exactly(name: str, preset: str) -> None:
    """With the sign of the output turned and the clock kept, F is minus the teacher's to the bit, and so f is its D."""
    init = denoiser(NETWORKS[name])
    told = {"teacher": init} if preset == "scd" else {"init": init}
    recipe = resolve(presets.PRESETS[preset](640, 16, **told), open_data("digits"), init)
    assert recipe.network == NETWORKS[name]
    assert (recipe.clock, recipe.sigma_data) == ("log", 0.75)
    engine = engine_of(recipe, init if preset == "scd" else None, init=starting_weights(init, recipe))
    x, sigma = states()
    with torch.no_grad():
        torch.testing.assert_close(engine.preconditioning(engine.network, x, sigma), init(x, sigma), rtol=1e-5, atol=1e-5)
        network = build(recipe.network, None)  # type: ignore[arg-type]
        network.load_state_dict(starting_weights(init, recipe))
        raw = init.network(x, sigma.log() / 4)
        assert torch.equal(network(x, sigma.log() / 4), -raw)
    assert float(raw.abs().min()) > 0


def test_and_back_and_on() -> None:
    init = denoiser(preconditioning=Preconditioning("trigflow", 0.75, 0.0))
    edm = presets.ect(640, 16, network=UNET, sigma_data=0.75)
    back, state = starting_weights(init, edm), init.network.state_dict()
    for name, value in state.items():
        assert torch.equal(back[name], -value if "aux_conv" in name else value), name
    recipe = dataclasses.replace(presets.sct(640, 16, network=UNET, sigma_data=0.75), clock="log")
    same = starting_weights(init, recipe)
    assert all(torch.equal(same[name], value) for name, value in state.items())


def test_what_cannot_be_turned_into_each_other_is_refused() -> None:
    recipe = dataclasses.replace(presets.sct(640, 16, network=UNET, sigma_data=0.75), clock="time")
    with pytest.raises(
        InputError, match=r"the network of init is told ln\(sigma\), the recipe has clock='time': leave clock='auto'"
    ):
        starting_weights(denoiser(), recipe)
    flow = denoiser(preconditioning=Preconditioning("flow", 0.75, 0.0))
    with pytest.raises(InputError, match="init has the flow preconditioning, the recipe trigflow"):
        starting_weights(flow, dataclasses.replace(recipe, clock="log"))


def test_from_random_weights_the_network_is_told_the_time_and_has_double_norm() -> None:
    data = open_data("digits")
    for name in ("tiny", "adm"):
        recipe = resolve(presets.sct(640, 16, network=name), data)
        assert recipe.clock == "time"
        assert recipe.network.double_norm  # type: ignore[union-attr]
    assert resolve(presets.sct(640, 16, network=UNET), data).network == UNET
    assert resolve(presets.ict(6400, 16, network="tiny"), data).clock == "auto"


# ---- the model


@pytest.fixture(scope="module")
def run(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = tools.make_recipe("sct", dropout=0.1, tangent_warmup=160)
    done = tools.train(tmp_path_factory.mktemp("sct") / "run", recipe)
    assert done.finished
    return done


def test_the_model_is_a_consistency_model_that_ends_at_0(run: Any) -> None:
    model = run.model
    assert (model.kind, model.sigma_end, model.sigma_max) == ("consistency", 0.0, 80.0)
    assert model.config.preconditioning.kind == "trigflow"
    second = model.config.time_points[2][1] / model.sigma_data
    assert second == pytest.approx(0.98237983 / 0.5, rel=1e-7)  # t = 1.1
    x = model.sample(3, steps=2)
    again = ConsistencyModel.from_pretrained(run.folder / "model")
    assert again.config == model.config
    assert torch.equal(again.sample(3, steps=2), x)
    with pytest.raises(InputError, match="only flow maps can"):
        model(x, 1.0, to=0.5)
    assert torch.equal(model(x, 0.0), x)


def test_it_edits_and_is_measured_unchanged(run: Any) -> None:
    images = open_data("digits").images[:3].float() / 127.5 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    made = atonce.edit.inpaint(run.model, images, mask, steps=2)
    assert torch.equal(made[..., :4], images[..., :4])
    record = atonce.evaluate(run.model, "digits", n=32, metrics=("frechet",))
    assert record.metrics["frechet"].value > 0


def test_the_learnt_weight_is_in_the_checkpoint_and_not_in_the_model(run: Any) -> None:
    held = newest_checkpoint(run.folder / "checkpoints")
    names = {name for name in held.tensors if name.startswith("head/")}
    assert names == {"head/freqs", "head/phases", "head/weight", "head/bias"}
    assert float(held.tensors["head/weight"].abs().max()) > 0  # it has learnt
    assert {f"optimizer/1/{k}" for k in ("step", "exp_avg", "exp_avg_sq")} <= set(held.tensors)
    assert set(run.model.state_dict()) == {f"network.{name}" for name in run.model.network.state_dict()}


class Interrupted(Exception):
    pass


def test_an_interrupted_run_is_the_same_run(tools: Any, run: Any, tmp_path: Path) -> None:
    recipe = tools.make_recipe("sct", dropout=0.1, tangent_warmup=160)

    def stop(line: dict[str, Any]) -> None:
        if line["images"] == 192:
            raise Interrupted

    with pytest.raises(Interrupted):
        tools.train(tmp_path / "run", recipe, checkpoint_seconds=0, callback=stop)
    assert tools.train(tmp_path / "run", recipe).finished
    tools.assert_same_run(tmp_path / "run", run.folder)


def test_passes_of_any_size_learn_the_same(tools: Any) -> None:
    recipe = tools.make_recipe("sct", images=64, dropout=0.1, tangent_warmup=32)
    one, parts = engine_of(recipe), engine_of(recipe, microbatch=5)
    for engine in (one, parts):
        for _ in range(4):
            engine.step()
    torch.testing.assert_close(one.flat.values, parts.flat.values, rtol=0, atol=1e-6)
    for a, b in zip(one.learnt, parts.learnt, strict=True):
        torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-3, atol=1e-6)


# ---- the step


def test_the_second_part_of_the_tangent_comes_in_over_the_warm_up(tools: Any) -> None:
    """At 0 images the tangent is that of the diffusion model's loss; without a warm-up it is whole at once."""
    distances = []
    for warm_up in (0, 1_000_000):
        engine = engine_of(tools.make_recipe("sct", tangent_warmup=warm_up, dropout=0.0))
        index = torch.arange(16)
        terms, sigma = engine.terms(index, engine.stage, torch.float32)  # type: ignore[arg-type]
        distances.append(terms.distance)
        if warm_up:
            y, _ = engine.data.batch(index)
            from atonce.core.streams import Stream, normal

            z = normal(engine.recipe.seed, index, (1, 8, 8), Stream.NOISE)
            t = torch.atan(sigma / engine.sigma_data)[:, None, None, None]
            x = t.cos() * y + t.sin() * engine.sigma_data * z
            v = t.cos() * engine.sigma_data * z - t.sin() * y
            with torch.no_grad():
                F = engine.sigma_data * engine.network(x / engine.sigma_data, t.flatten())
            expected = (t.cos() ** 2 * (F - v)).square().flatten(1).mean(1).sqrt()
            torch.testing.assert_close(terms.distance, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(distances[0], distances[1], rtol=0.1)


def test_differences_stand_in_for_a_derivative_that_is_not_there(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    exact = engine_of(tools.make_recipe("sct", tangent_warmup=0, dropout=0.1), log=said.append)
    assert (exact.how, said) == ("jvp", [])

    class NoForwardMode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    made = build

    def without(config: Any, seed: int | None = 0) -> nn.Module:
        network = made(config, seed)
        network.register_forward_pre_hook(lambda module, args: (NoForwardMode.apply(args[0]), *args[1:]))
        return network

    monkeypatch.setattr("atonce.training.engine.build", without)
    other = engine_of(tools.make_recipe("sct", tangent_warmup=0, dropout=0.1), log=said.append)
    assert other.how == "difference"
    assert len(said) == 1
    assert "differences are taken" in said[0]
    index = torch.arange(16)
    a, b = (e.terms(index, e.stage, torch.float32)[0] for e in (exact, other))  # type: ignore[arg-type]
    torch.testing.assert_close(a.distance, b.distance, rtol=2e-3, atol=1e-4)
    asked = engine_of(tools.make_recipe("sct", derivative="difference"))
    assert asked.how == "difference"


def test_bf16_is_not_used_for_derivatives(tools: Any) -> None:
    engine = engine_of(tools.make_recipe("sct", images=32))
    engine.options = Options(precision="bf16")
    engine.step()
    assert engine.dtype == torch.float32


# ---- recipes


def test_the_published_settings() -> None:
    sct, scd = presets.sct(), presets.scd(teacher="x")
    assert (sct.images, sct.batch, sct.lr, sct.beta2) == (204_800_000, 512, 1e-4, 0.99)
    assert (sct.P_mean, sct.P_std, sct.dropout, scd.dropout) == (-1.0, 1.4, 0.2, 0.0)
    assert sct.tangent_warmup == 10_000 * 512
    assert sct.ema == ("half-life-500000",)
    assert (sct.method, scd.method, scd.path, scd.init, scd.teacher) == ("sct", "scd", "euler", "x", "x")
    assert presets.sct(1_024_000).tangent_warmup == 25_600


def test_the_forms_of_ect() -> None:
    plain, hour, imagenet = (presets.ect(form=form) for form in ("cifar", "hour", "imagenet"))
    assert (plain.images, plain.batch, plain.ect_q, plain.ect_k, plain.ect_b, plain.huber_c) == (25_600_000, 128, 2, 8, 1, 0)
    assert (plain.weight, plain.lr, plain.optimizer, plain.ema) == ("inverse-delta", 1e-4, "radam", (0.9999,))
    assert (hour.images, hour.images // hour.batch, hour.ect_q, hour.ect_stages, hour.ema) == (
        1_024_000,
        8000,
        256,
        1,
        (0.9993,),
    )
    assert (imagenet.ect_q, imagenet.weight, imagenet.huber_c, imagenet.optimizer) == (4, "edm", 0.06, "adam")
    assert presets.ect(6400, form="hour").images == 6400
    assert presets.ect(form="hour", ect_q=128.0).ect_q == 128
    assert recipe_from_words("ect", {}, ["form=hour"]).ect_q == 256
    with pytest.raises(InputError, match="form is 'minute', must be cifar, hour or imagenet"):
        presets.ect(form="minute")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="recipe field form is not known"):
        recipe_from_words("ict", {}, ["form=hour"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"preconditioning": "edm"}, "preconditioning is 'edm': with pairs='tangent' it is trigflow"),
        ({"path": "heun"}, "path is 'heun': with pairs='tangent' it is same-noise or euler"),
        ({"target": "ema"}, "target is 'ema': with pairs='tangent' it is student"),
        ({"weight": "edm"}, "weight is 'edm': with pairs='tangent' it is adaptive or one"),
        ({"tangent_norm": "huge"}, "tangent_norm is 'huge', must be one of sample, rcm, rms, clip, none"),
        ({"tangent_warmup": -1}, "tangent_warmup is -1"),
    ],
)
def test_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        presets.sct(640, 16, **changes)


def test_refused_elsewhere() -> None:
    with pytest.raises(InputError, match="weight is 'adaptive', which goes with pairs='tangent'"):
        presets.ict(6400, 16, weight="adaptive")
    with pytest.raises(InputError, match="clock is 'time', which goes with preconditioning='trigflow'"):
        presets.ict(6400, 16, clock="time")


def test_digests_of_older_recipes_stay() -> None:
    """A model of the gallery quotes its own: fields that came later are not in it at their defaults."""
    card = atonce.load("fashion-mnist").card
    assert Recipe.from_dict(card["recipe"]).digest() == card["recipe_digest"]
    assert "tangent_norm" not in presets.ict(6400, 16).as_dict()
    assert presets.sct(640, 16, tangent_norm="rms").as_dict()["tangent_norm"] == "rms"
    assert json.loads(json.dumps(presets.sct(640, 16).as_dict()))["tangent_warmup"] == 16
    for recipe in (presets.sct(640, 16, tangent_norm="rms"), presets.ect(640, 16, form="hour")):
        assert Recipe.from_dict(recipe.as_dict()) == recipe


@pytest.mark.parametrize("form", ["cifar", "hour", "imagenet"])
def test_ect_starts_at_a_diffusion_model_without_nan(form: Any) -> None:
    """r = 0 in the first stage of all but one form: finite losses and gradients, and f of the model itself."""
    init = denoiser()
    recipe = resolve(presets.ect(640, 16, init=init, form=form), open_data("digits"), init)  # type: ignore[arg-type]
    engine = engine_of(recipe, init=starting_weights(init, recipe))
    x, sigma = states()
    with torch.no_grad():
        torch.testing.assert_close(engine.preconditioning(engine.network, x, sigma), init(x, sigma), rtol=1e-5, atol=1e-5)
    from atonce.training.schedule import draw_pairs, stage_at

    stage = stage_at(recipe, 0)
    _, r = draw_pairs(recipe, stage, torch.arange(64))
    assert bool((r == 0).any()) == (form != "hour")
    for _ in range(3):
        engine.step()
        assert torch.isfinite(engine.flat.values).all()
        assert float(engine.flat.gradient.norm()) > 0
