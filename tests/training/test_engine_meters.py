"""Around the engine's step: averages, rates, meters by noise level, and the rounding that decides the precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.distribution import World
from atonce.core.errors import TrainingError
from atonce.core.streams import Stream, normal
from atonce.networks.unet import UNetConfig
from atonce.training import engine as module
from atonce.training import presets
from atonce.training.engine import BINS, Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage, draw_pairs, learning_rate, stage_at

NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), embedding_mult=2)
FP32 = Options(precision="fp32")


class Data:
    """Normal images of standard deviation .5 as functions of the index."""

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        return 0.5 * normal(7, index, (1, 4, 4), Stream.EVALUATE), None


def recipe(preset: Callable[..., Recipe] = presets.ict, **changes: Any) -> Recipe:
    values: dict[str, Any] = {"images": 8000, "batch": 8, "network": NETWORK, "sigma_data": 0.5, "lr": 1e-3}
    return preset(**{**values, **changes})


def engine(of: Recipe, options: Options = FP32, **arguments: Any) -> Engine:
    made = Engine(of, Data(), World(), options, **arguments)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():  # weights of ordinary size, so that every part of the network matters from the first step
        for parameter in made.network.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return made


def state(made: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.tensors().items()}


def test_averages_are_the_recursion_of_their_decay() -> None:
    made = engine(recipe(ema=(0.9, 0.99), ema_rampup=0.5))
    assert list(made.averages) == ["0.9", "0.99"]
    expected = {name: made.averages[name].values.clone() for name in made.averages}
    for _ in range(5):
        made.step()
        for name, decay in (("0.9", 0.9), ("0.99", 0.99)):
            beta = min(decay, 0.5 ** (made.recipe.batch / (0.5 * made.images_seen)))
            expected[name] = beta * expected[name] + (1 - beta) * made.flat.values.detach()
    for name, value in expected.items():
        torch.testing.assert_close(made.averages[name].values, value, rtol=1e-5, atol=1e-6)
        weights = made.weights(name)
        assert weights.keys() == made.network.state_dict().keys()
        assert not torch.equal(weights["map_layer0.weight"], made.weights()["map_layer0.weight"])


def test_weights_are_copies() -> None:
    made = engine(recipe())
    before = made.weights()
    kept = {name: value.clone() for name, value in before.items()}
    made.step()
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert any(not torch.equal(made.weights()[name], kept[name]) for name in kept)


def test_the_rate_is_that_of_the_clock() -> None:
    made = engine(recipe(lr_rampup=40, lr_cooldown=0.5))
    for _ in range(6):
        expected = learning_rate(made.recipe, made.images_seen)
        made.step()
        assert [group["lr"] for group in made.optimizer.param_groups] == [expected]


def test_meters_are_means_over_the_images_since_the_last_reading() -> None:
    made = engine(recipe())
    losses, distances, levels = [], [], []
    terms = made.terms

    def spy(*args: Any) -> Any:
        found, t = terms(*args)
        losses.append(found.loss.detach())
        distances.append(found.distance)
        levels.append(t)
        return found, t

    made.terms = spy  # type: ignore[method-assign]
    made.step()
    made.step()
    read = made.read_meters()
    loss, distance, t = (torch.cat(v).double() for v in (losses, distances, levels))
    assert read["loss"] == pytest.approx(float(loss.mean()), rel=1e-6)
    assert read["distance"] == pytest.approx(float(distance.mean()), rel=1e-6)
    place = ((t.log() - math.log(0.002)) / (math.log(80) - math.log(0.002)) * BINS).long().clamp(0, BINS - 1)
    for b in range(BINS):
        assert read["count_by_sigma"][b] == int((place == b).sum())
        mean = float(loss[place == b].mean()) if bool((place == b).any()) else 0.0
        assert read["loss_by_sigma"][b] == pytest.approx(mean, rel=1e-6)
    assert made.read_meters()["count_by_sigma"] == [0] * BINS


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    made = engine(recipe())
    made.step()
    with torch.no_grad():
        made.flat.values[3] = value
    made.step()
    with pytest.raises(TrainingError, match="not finite .* at 16 images"):
        made.read_meters()


def test_gradient_by_noise_level_does_not_touch_the_run() -> None:
    made = engine(recipe(batch=64))
    made.step()
    before = state(made)
    norms = made.gradient_by_sigma()
    assert len(norms) == BINS
    t, _ = draw_pairs(made.recipe, stage_at(made.recipe, 64), torch.arange(64, 128))
    place = ((t.log() - math.log(0.002)) / (math.log(80) - math.log(0.002)) * BINS).long()
    assert [n is None for n in norms] == [not bool((place == b).any()) for b in range(BINS)]
    assert all(n > 0 for n in norms if n is not None)
    after = state(made)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert norms == made.gradient_by_sigma()


# ---- precision


def _rule(monkeypatch: pytest.MonkeyPatch, noise: float, pair: float, precision: str, native: bool) -> tuple[Engine, list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(module, "has_bf16", lambda device: native)
    monkeypatch.setattr(Engine, "_rounding", lambda self, index, stage: (noise, pair))
    made = engine(recipe(), Options(precision=precision), log=lines.append)  # type: ignore[arg-type]
    made.step()
    return made, lines


@pytest.mark.parametrize(
    ("noise", "pair", "precision", "native", "expected"),
    [
        (0.024, 0.1, "auto", True, torch.bfloat16),
        (0.026, 0.1, "auto", True, torch.float32),
        (0.025, 0.1, "auto", True, torch.float32),  # below a quarter, not at it
        (0.024, 0.1, "bf16", False, torch.bfloat16),
        (0.026, 0.1, "bf16", True, torch.float32),
        (0.0, 0.1, "auto", False, torch.float32),
        (0.0, 0.1, "fp32", True, torch.float32),
        (math.nan, 0.1, "bf16", True, torch.float32),
        (0.5, math.inf, "auto", True, torch.bfloat16),
    ],
)
def test_half_precision_only_while_rounding_is_small_beside_the_pairs(
    monkeypatch: pytest.MonkeyPatch, noise: float, pair: float, precision: str, native: bool, expected: torch.dtype
) -> None:
    made, lines = _rule(monkeypatch, noise, pair, precision, native)
    assert made.dtype == expected
    asked = precision == "bf16" or (precision == "auto" and native)
    assert len(lines) == (1 if asked else 0)
    if lines:
        assert ("fp32 from here" in lines[0]) == (expected == torch.float32)
        assert "N=11" in lines[0]


def test_the_rule_is_asked_again_at_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        Engine, "_rounding", lambda self, index, stage: (asked.append(stage.points), (0.1, 100 / stage.points))[1]
    )
    made = engine(recipe(images=320, batch=8), Options(precision="bf16"))
    dtypes = []
    for _ in range(40):
        made.step()
        dtypes.append(made.dtype)
    assert asked == [11, 21, 41, 81, 161, 321, 641, 1281]
    # .1 < 25 / N up to N = 161, so the run changes over once, between the fifth and the sixth of eight stages of five steps.
    assert dtypes == [torch.bfloat16] * 25 + [torch.float32] * 15


def test_rounding_is_measured_on_the_functions_themselves() -> None:
    """bf16 keeps 8 bits: the rounding of f is near 2^-8 of the network's part, the pairs shrink with N."""
    made = engine(recipe(dropout=0.0, batch=64), Options(precision="fp32"))
    found = {n: made._rounding(torch.arange(64), Stage(points=n)) for n in (11, 81, 1281)}
    for noise, pair in found.values():
        assert 1e-5 < noise < 0.1
        assert pair > 0
    assert found[11][1] > 3 * found[81][1] > 9 * found[1281][1]
    assert found[11][0] < 0.25 * found[11][1]
    again = made.preconditioning
    assert again is engine(recipe()).preconditioning or again == engine(recipe()).preconditioning  # the spy is gone


def test_denoising_pairs_are_far_apart() -> None:
    made = engine(recipe(presets.diffusion))
    noise, pair = made._rounding(torch.arange(8), Stage())
    assert noise > 0
    assert pair == math.inf
