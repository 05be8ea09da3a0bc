"""Each method trained for two thousand steps on a mixture in the plane: its one-step samples pass a two-sample test.

Two hundred points are compared by their energy distance. What that can see is asserted beside it: a component that is missing,
and the mean that a denoiser gives in one step. With ten times as many points the test refuses all of these short runs.

Settings that differ from the presets' are those of a short run (rate, average, noise levels up to 5), and where the data are
skewed and have two dimensions only, the conventions that are unbiased there: a pseudo-Huber constant of 1 for ECT, clipped
tangents for sCT, no weight 1 / error^p for MeanFlow, groups of 32 for IMM, whose steps from t to r are longer too. The biases
they avoid fade with the dimension.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atonce.core.streams import Stream, normal
from atonce.noise.worlds import Mixture
from atonce.training import presets
from atonce.training.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent))
import points

N = 200
SHORT: dict[str, Any] = {
    **points.SHAPE,
    "images": 2000 * 256,
    "batch": 256,
    "dropout": 0.0,
    "lr": 2e-3,
    "lr_cooldown": 0.9,
    "ema": (0.99,),
    "sigma_max": 5.0,
    "P_mean": 0.0,
    "P_std": 1.2,
}
FLOW = {**SHORT, "network": dataclasses.replace(points.NETWORK, second_time=True), "error_power": 0.0, "lr_rampup": 0}
RECIPES: dict[str, Callable[[], Recipe]] = {
    "ect": lambda: presets.ect(**SHORT, ect_stages=4, huber_c=1.0),
    "sct": lambda: presets.sct(**SHORT, tangent_norm="clip"),
    "scd": lambda: presets.scd(**SHORT, teacher="the world"),
    "meanflow": lambda: presets.meanflow(**FLOW),
    "imf": lambda: presets.meanflow(**FLOW, form="imf"),
    "imm": lambda: presets.imm(**{**SHORT, "network": FLOW["network"]}, group=32, imm_k=4),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RECIPES)
def test_one_step_samples_are_the_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = points.trained(RECIPES[name](), monkeypatch, points.exact_teacher() if name == "scd" else None)
    assert points.two_sample(points.one_step(engine, N), points.data(N)) > 0.01


def test_the_test_can_refuse() -> None:
    world = points.WORLD
    assert points.two_sample(world.sample(N, 77).float(), points.data(N)) > 0.01
    lost = Mixture(world.means, world.stds, torch.tensor([0.7, 0.0, 0.3]))
    assert points.two_sample(lost.sample(N, 77).float(), points.data(N)) < 0.01
    z = normal(5, torch.arange(N), (2,), Stream.SAMPLE)
    mean = world.denoiser(5.0 * z, 5.0).float()
    assert points.two_sample(mean, points.data(N)) < 0.01
