"""Continuous time where the answer is known: at the exact model the teacher's tangent vanishes, that of data on average."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.noise.worlds import Gaussian, Mixture
from atonce.objectives.trigflow import continuous, normalised, same_noise_slope, teacher_slope
from atonce.preconditioning import Preconditioning

sys.path.insert(0, str(Path(__file__).parent))
import points

TRIG = Preconditioning("trigflow", 0.5, 0.0, "time")
SIGMA = torch.tensor([0.01, 0.1, 0.5, 2.0, 20.0, 80.0], dtype=torch.float64)
SHORT: dict[str, Any] = {"dropout": 0.0, "lr_cooldown": 0.7, "ema": (0.999,), "sigma_max": 8.0, **points.SHAPE}


def unit_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_network(std: float, mean: float, sigma_data: float = 0.5) -> Any:
    """F = (cos t x_t - f) / (sin t sigma_data) of the consistency function of N(mean, std^2), differentiable in t."""

    def network(u: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        x, cos, sin = sigma_data * u, t.cos(), t.sin()
        f = mean + std / (cos**2 * std**2 + sin**2 * sigma_data**2).sqrt() * (x - cos * mean)
        return (cos * x - f) / (sin * sigma_data)

    return network


@pytest.mark.parametrize(("std", "mean"), [(0.5, 0.0), (1.0, 0.0), (0.3, 0.7)])
@pytest.mark.parametrize("norm", ["none", "sample", "rcm", "rms", "clip"])
def test_distillation_has_nothing_to_say_at_the_exact_model(std: float, mean: float, norm: Any) -> None:
    """Pointwise, whatever the convention: the one objective of which this is true."""
    world = Gaussian(mean, std)
    y, z = mean + std * unit_normal(6, 1, 2, 2), unit_normal(6, 1, 2, 2, seed=1)
    slope = teacher_slope(world.denoiser, SIGMA)
    at = {"preconditioning": TRIG, "slope": slope, "warmth": 1.0, "norm": norm}
    assert float(continuous(exact_network(std, mean), y, z, SIGMA, **at).distance.max()) < 1e-11
    # And it would notice: a percent of the trajectory's slope is seen.
    off = continuous(lambda u, t: 1.01 * exact_network(std, mean)(u, t), y, z, SIGMA, **at)
    assert float(off.distance.min()) > 1e-6


def test_training_from_data_has_nothing_to_say_on_average() -> None:
    """The one-sample slope is right in the mean, and the tangent is linear in it: E[g | x_t] = 0 at the exact model.

    Each state x_t is held, and y drawn from its posterior, which is normal: mean m, variance v.
    """
    std, n = 0.7, 200_000
    for sigma in (0.1, 0.5, 3.0):
        x = 0.4  # the variance-exploding state
        m, v = std**2 / (std**2 + sigma**2) * x, std**2 * sigma**2 / (std**2 + sigma**2)
        half = m + v**0.5 * unit_normal(n // 2, 1, 1, 1)
        y = torch.cat([half, 2 * m - half])  # both sides, so that the mean is exact
        z = (x - y) / sigma
        level = torch.full((n,), sigma, dtype=torch.float64)
        outputs: list[Tensor] = []

        def recording(u: Tensor, t: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            out = exact_network(std, 0.0)(u, t)
            if torch.is_grad_enabled():
                outputs.append(out.requires_grad_())
            return out

        terms = continuous(
            recording, y, z, level, preconditioning=TRIG, slope=same_noise_slope(y, z, 0.5), warmth=1.0, norm="none"
        )
        (gradient,) = torch.autograd.grad(terms.loss.sum(), outputs)
        assert float(gradient.abs().mean()) > 1e-3
        assert float(gradient.mean().abs()) < 1e-10
        # With normalised tangents it stays so here, where the posterior is symmetric.
        outputs.clear()
        terms = continuous(
            recording, y, z, level, preconditioning=TRIG, slope=same_noise_slope(y, z, 0.5), warmth=1.0, norm="sample"
        )
        (gradient,) = torch.autograd.grad(terms.loss.sum(), outputs)
        assert float(gradient.mean().abs()) < 1e-10


def test_normalised_tangents_are_biased_on_skewed_data() -> None:
    """On a mixture of .8 and .2 at -1 and 1 the posterior is skewed: plain tangents have mean 0, those of one size have not."""
    world = Mixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.2]), torch.tensor([0.8, 0.2]))
    sigma, x = torch.tensor([1.0], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    # The posterior of y given x, component by component: normal with these means and one variance.
    variance = 0.2**2 / (0.2**2 + 1)
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64) + variance / 1.0 * (0.3 - torch.tensor([-1.0, 1.0])) / 1.0
    joint = torch.tensor([0.8, 0.2], dtype=torch.float64) * torch.exp(-0.5 * (0.3 - torch.tensor([-1.0, 1.0])) ** 2 / 1.04)
    share = joint / joint.sum()
    denoised = float(world.denoiser(x, sigma))
    n = 100_000
    sides = unit_normal(n // 2, seed=3)
    noise = torch.cat([sides, -sides])
    f = world.consistency(x, 1.0, 1e-4)
    h = 1e-4
    sin, cos = sigma / (sigma**2 + 0.25) ** 0.5, 0.5 / (sigma**2 + 0.25) ** 0.5
    slope_of_f = float(world.consistency(x + h, 1.0, 1e-4) - world.consistency(x - h, 1.0, 1e-4)) / (2 * h)
    assert -1 < float(f) < 1
    gs = []
    for mean in means:
        y = mean + variance**0.5 * noise
        # At the exact f the tangent of one sample is the part of it that the sample's slope adds: cos t f'(x) (v - v_exact).
        gs.append(slope_of_f * (denoised - y) * float(cos * sin))
    plain = sum(float(w * g.mean()) for w, g in zip(share, gs, strict=True))
    sized = sum(float(w * normalised(g[:, None, None, None], "sample").mean()) for w, g in zip(share, gs, strict=True))
    assert abs(plain) < 1e-6
    assert abs(sized) > 0.01
