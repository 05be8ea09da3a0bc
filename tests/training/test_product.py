"""What a run leaves: the time points of its model, and what its card says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce
from atonce.evaluation.extractors import seen_digests
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.objectives.perceptual import FeatureDistance
from atonce.preconditioning import Preconditioning
from atonce.sampling.times import restart_times
from atonce.training import engine, loop, presets
from atonce.training.product import model_config, model_facts
from atonce.training.recipe import Recipe

UNET = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())


def config(size: int, sigma_data: float, **changes: Any) -> ModelConfig:
    network = dataclasses.replace(UNET, size=size)
    recipe = presets.PRESETS[changes.pop("preset", "ict")](network=network, sigma_data=sigma_data, **changes)
    return model_config(
        recipe, Preconditioning(recipe.preconditioning, sigma_data, 0.0 if recipe.preconditioning == "edm" else 0.002), None
    )


# ---- the second of two steps: 0.821 on CIFAR-10, 1.526 on ImageNet at 64x64, both with sigma_data 0.5


@pytest.mark.parametrize(("size", "second"), [(32, 0.821), (63, 0.821), (64, 1.526), (128, 1.526)])
def test_the_second_time_point_is_the_published_one(size: int, second: float) -> None:
    found = config(size, 0.5)
    assert (2 in found.time_points) == (size >= 64)
    times = found.time_points.get(2) or restart_times(2, found.sigma_max, 0.5)
    assert list(times) == pytest.approx([80.0, second], abs=1e-12)
    model = ConsistencyModel(dataclasses.replace(found, network=dataclasses.replace(UNET, size=size)))
    assert model._times(2, None, "auto")[1] == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize("preset", ["ict", "ct"])
def test_it_scales_with_the_data(preset: str) -> None:
    assert config(64, 0.25, preset=preset).time_points[2][1] == pytest.approx(0.763, abs=1e-12)
    assert restart_times(2, 80.0, 0.25)[1] == pytest.approx(0.4105, abs=1e-12)


def test_a_denoiser_and_a_narrow_range_have_none() -> None:
    assert config(64, 0.5, preset="diffusion").time_points == {}
    assert config(64, 0.5, sigma_max=1.5).time_points == {}


# ---- extractors that training has seen


class Plain(FeatureDistance):
    """A perceptual distance without a network to download: the pixels are the features."""

    def __init__(self) -> None:
        super().__init__("plain", "d" * 64, torch.nn.Conv2d(1, 1, 1), lambda x: [x], lambda x: x, [torch.ones(3)])


def model_of(card: dict[str, Any]) -> ConsistencyModel:
    return ConsistencyModel(ModelConfig(UNET, Preconditioning("edm", 0.75, 0.0), kind="denoiser"), card=card)


def seen_by(tools: Any, folder: Path, recipe: Recipe) -> Any:
    model = tools.train(folder, recipe, evaluate_images=2).model
    assert atonce.load(folder).card.get("extractors_seen") == model.card.get("extractors_seen")
    return model.card.get("extractors_seen")


def test_a_perceptual_distance_is_written_into_the_card(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = lambda name, channels=None, weights=None: (Plain(), Plain().digest)
    monkeypatch.setattr(engine, "open_distance", opened)
    monkeypatch.setattr(loop, "open_distance", opened)
    recipe = tools.make_recipe("ct", images=16, distance="lpips")
    assert seen_by(tools, tmp_path / "run", recipe) == ["d" * 64]
    assert seen_digests(atonce.load(tmp_path / "run").card) == {"d" * 64}
    init = atonce.load(tmp_path / "run")  # what is trained on from it has seen it too
    again = tools.make_recipe("ct", images=16, init=init, sigma_data="measured")
    assert seen_by(tools, tmp_path / "again", again) == ["d" * 64]


def test_what_init_and_teacher_have_seen_is_inherited(tools: Any, tmp_path: Path) -> None:
    init, teacher = model_of({"extractors_seen": ["aa"]}), model_of({"extractors_seen": ["bb", "aa"]})
    recipe = tools.make_recipe("cd", images=16, init=init, teacher=teacher)
    assert seen_by(tools, tmp_path / "both", recipe) == ["aa", "bb"]
    assert seen_by(tools, tmp_path / "init", tools.make_recipe("ct", images=16, init=init)) == ["aa"]
    assert seen_by(tools, tmp_path / "none", tools.make_recipe("ct", images=16)) is None


# ---- students of progressive distillation


@pytest.mark.parametrize(("steps", "name"), [(1, "1-step"), (4, "4-steps")])
def test_a_student_is_called_by_its_steps(steps: int, name: str) -> None:
    facts = model_facts(presets.progressive(teacher_steps=8), steps)
    assert (facts["student_steps"], facts["ema"], "weights" in facts) == (steps, name, steps == 1)
    averaged = model_facts(presets.progressive(teacher_steps=8, ema=(0.9,)), steps)
    assert (averaged["student_steps"], averaged["ema"]) == (steps, "0.9")
    assert "student_steps" not in model_facts(presets.ict())
