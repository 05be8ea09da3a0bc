"""sCT and sCD: the tangent's published numbers, its meaning, its three conventions, and the gradient that comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.noise.worlds import gaussian_trigflow
from atonce.objectives.trigflow import continuous, normalised, same_noise_slope, tangent, teacher_slope
from atonce.preconditioning import Preconditioning

TIME, LOG = Preconditioning("trigflow", 0.5, 0.0, "time"), Preconditioning("trigflow", 0.5, 0.0, "log")


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def unit_normal(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, c: Tensor) -> Tensor:
    """Any smooth F."""
    return (1.3 * x + c[:, None, None, None]).sin() + 0.2 * x * c[:, None, None, None] ** 2


# ---- the tangent


def test_the_published_numbers_for_the_network_that_answers_zero() -> None:
    x, cos, sin = column(0.7), column(math.cos(0.9)), column(math.sin(0.9))
    zero = torch.zeros_like(x)
    dx = 0.5 * gaussian_trigflow(x, 0.9, std=1.0, sigma_data=0.5).teacher
    assert float(tangent(zero, zero, x, dx, cos, sin, 1.0, "sample")) == pytest.approx(-0.52383526, abs=5.1e-9)
    assert float(tangent(zero, zero, x, dx, cos, sin, 0.0, "sample")) == pytest.approx(-0.18298859, abs=5.1e-9)
    g = tangent(zero, zero, x, dx, cos, sin, 1.0, "sample")
    assert float(normalised(g, "sample")) == pytest.approx(-0.83970127, abs=5.1e-9)


def test_it_is_cos_t_times_the_rate_of_f() -> None:
    """At r = 1, along any direction of the state: g = cos t d/dt [cos t x - sin t sigma_data F(x / sigma_data, t)]."""
    x, dx, t = unit_normal(4, 1, 3, 3), unit_normal(4, 1, 3, 3, seed=1), torch.linspace(0.1, 1.5, 4).double()

    def f(h: float) -> Tensor:
        time = (t + h)[:, None, None, None]
        state = x + h * dx
        return time.cos() * state - time.sin() * 0.5 * network(state / 0.5, t + h)

    cos, sin = t.cos()[:, None, None, None], t.sin()[:, None, None, None]
    h = 1e-5
    dF = (network((x + h * dx) / 0.5, t + h) - network((x - h * dx) / 0.5, t - h)) / (2 * h)
    g = tangent(0.5 * network(x / 0.5, t), cos * sin * 0.5 * dF, x, dx, cos, sin, 1.0, "sample")
    torch.testing.assert_close(g, cos * (f(h) - f(-h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_the_convention_of_rcm_differs_in_the_warm_up_alone() -> None:
    x, dx, F, dF = (unit_normal(3, 1, 2, 2, seed=s) for s in range(4))
    t = column(0.2, 0.8, 1.4)
    for r, factor in ((1.0, t.cos() ** 2), (0.0, t.cos()), (0.5, t.cos() * (1 - 0.25 * t.sin() ** 2).sqrt())):
        mine = tangent(F, dF, x, dx, t.cos(), t.sin(), r, "rcm")
        torch.testing.assert_close(mine, -factor * (F - dx) - r * (t.cos() * t.sin() * x + dF), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_conventions_of_size(scale: float) -> None:
    g = scale * unit_normal(5, 3, 8, 8)
    size = g.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(normalised(g, "sample"), g / (size + 0.1), rtol=1e-12, atol=0)
    torch.testing.assert_close(normalised(g.float(), "rcm").double(), g / (size + 0.1), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(normalised(g, "rms"), g / (size / 192**0.5 + 0.1), rtol=1e-12, atol=0)
    assert torch.equal(normalised(g, "clip"), g.clamp(-1, 1))
    assert torch.equal(normalised(g, "none"), g)


# ---- the loss


def loss_of(f: Callable[..., Tensor] = network, **changes: Any) -> Any:
    y, z = unit_normal(4, 1, 3, 3), unit_normal(4, 1, 3, 3, seed=1)
    sigma = torch.tensor([0.05, 0.4, 2.0, 30.0], dtype=torch.float64)
    values: dict[str, Any] = {"preconditioning": TIME, "slope": same_noise_slope(y, z, 0.5), "warmth": 1.0, "norm": "sample"}
    return continuous(f, y, z, sigma, **values | changes)


def by_hand(clock: Preconditioning) -> tuple[Tensor, Tensor]:
    """The network's output, and the normalised tangent of sCT with the derivative taken by differences in t."""
    y, z = unit_normal(4, 1, 3, 3), unit_normal(4, 1, 3, 3, seed=1)
    sigma = torch.tensor([0.05, 0.4, 2.0, 30.0], dtype=torch.float64)
    t = torch.atan(sigma / 0.5)[:, None, None, None]

    def at(h: float) -> Tensor:
        time = t + h
        state = time.cos() * y + time.sin() * 0.5 * z
        c = time.flatten() if clock.clock == "time" else 0.25 * (0.5 * time.tan()).log().flatten()
        return network(state / 0.5, c)

    h = 1e-6
    dF = (at(h) - at(-h)) / (2 * h)
    x, dx = t.cos() * y + t.sin() * 0.5 * z, t.cos() * 0.5 * z - t.sin() * y
    g = -(t.cos() ** 2) * (0.5 * at(0) - dx) - t.cos() * t.sin() * (x + 0.5 * dF)
    return at(0), g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 0.1)


@pytest.mark.parametrize("clock", [TIME, LOG], ids=["time", "log"])
@pytest.mark.parametrize("how", ["jvp", "difference"])
def test_the_algorithm_line_by_line(clock: Preconditioning, how: str) -> None:
    """The loss is ||g||^2 / D, and its gradient with respect to F is -2 g / D: nothing flows through the target."""
    outputs: list[Tensor] = []

    def recording(x: Tensor, c: Tensor) -> Tensor:
        out = network(x, c)
        if torch.is_grad_enabled():
            outputs.append(out.requires_grad_())
        return out

    terms = loss_of(recording, preconditioning=clock, how=how)
    _, g = by_hand(clock)
    torch.testing.assert_close(terms.loss, g.square().flatten(1).mean(1), rtol=1e-5, atol=1e-9)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), outputs)
    torch.testing.assert_close(gradient, -2 * g / 9, rtol=1e-5, atol=1e-8)


def test_the_learnt_weight_scales_the_gradient() -> None:
    w = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    plain, weighted = loss_of(), loss_of(log_weight=w)
    torch.testing.assert_close(weighted.loss, w.exp() * plain.loss - w, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(weighted.loss.sum(), w)
    torch.testing.assert_close(gradient, w.exp() * plain.loss - 1, rtol=1e-12, atol=1e-12)


def test_the_distance_is_of_the_tangent_before_it_is_normalised() -> None:
    raw = loss_of(norm="none")
    torch.testing.assert_close(raw.distance, raw.loss.sqrt(), rtol=1e-12, atol=0)
    assert torch.equal(loss_of(norm="sample").distance, raw.distance)


def test_without_warmth_it_is_the_diffusion_models_loss() -> None:
    """r = 0: the gradient is that of ||F - v / sigma_data||^2, weighted."""
    terms = loss_of(warmth=0.0, norm="none")
    sigma = torch.tensor([0.05, 0.4, 2.0, 30.0], dtype=torch.float64)
    y, z = unit_normal(4, 1, 3, 3), unit_normal(4, 1, 3, 3, seed=1)
    t = torch.atan(sigma / 0.5)[:, None, None, None]
    v = t.cos() * 0.5 * z - t.sin() * y
    error = 0.5 * network((t.cos() * y + t.sin() * 0.5 * z) / 0.5, t.flatten()) - v
    torch.testing.assert_close(terms.loss, (t.cos() ** 2 * error).square().flatten(1).mean(1), rtol=1e-9, atol=1e-12)


# ---- the slope


def test_the_slope_of_a_teacher_is_that_of_its_ode() -> None:
    """In TrigFlow's states, from a denoiser of variance-exploding ones."""
    t = torch.tensor([0.01, 0.2, 0.9, 1.5], dtype=torch.float64)
    x, b = unit_normal(4, 1, 2, 2), (slice(None), None, None, None)
    sigma = 0.5 * t.tan()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[b] ** 2)  # of normal data with standard deviation 1

    slope = teacher_slope(denoiser, sigma)(x, t.cos()[b], t.sin()[b])
    exact = torch.cat([0.5 * gaussian_trigflow(x[i : i + 1], float(t[i]), std=1.0, sigma_data=0.5).teacher for i in range(4)])
    torch.testing.assert_close(slope, exact, rtol=1e-9, atol=1e-12)
