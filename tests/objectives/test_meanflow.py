"""MeanFlow and iMF: the identity at the exact average velocity, the algorithm by hand, guidance, and both preconditionings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.noise.worlds import Gaussian, gaussian_average_velocity
from atonce.objectives.meanflow import average_velocity, guided_velocity, mean_flow
from atonce.preconditioning import Preconditioning

T = torch.tensor([1.0, 0.9, 0.7, 0.5, 0.2], dtype=torch.float64) * 0.98
R = torch.tensor([0.0, 0.5, 0.2, 0.49, 0.05], dtype=torch.float64)


def unit_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def b(t: Tensor) -> Tensor:
    return t[:, None, None, None]


def exact(std: float, mean: float = 0.0) -> Any:
    """u of N(mean, std^2)."""
    return lambda z, t, r: gaussian_average_velocity(z, r, t, std, mean)


def network(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return (z * (1 + b(t)) + b(r)).sin() + b(t) * z


@pytest.mark.parametrize(("std", "mean"), [(0.5, 0.0), (1.2, 0.0), (0.4, 0.6)])
def test_the_identity_holds_at_the_exact_average_velocity(std: float, mean: float) -> None:
    """u = v - (t - r) du/dt with the marginal velocity: a tenth of a billionth is left."""
    world = exact(std, mean)
    z = unit_normal(5, 1, 3, 3)
    v = world(z, T, T)
    h = 1e-6
    du = (world(z + h * v, T + h, R) - world(z - h * v, T - h, R)) / (2 * h)
    assert float((world(z, T, R) - (v - b(T - R) * du)).abs().max()) < 1e-8
    # And it takes z where the trajectory goes.
    sigma, to = T / (1 - T), R / (1 - R)
    there = Gaussian(mean, std).solution(z / b(1 - T), sigma, to) * b(1 - R)
    torch.testing.assert_close(z - b(T - R) * world(z, T, R), there, rtol=1e-9, atol=1e-9)


def test_the_predicted_direction_makes_the_target_a_function_of_the_state() -> None:
    """iMF at the exact model, on a posterior that is sampled: the mean error is 0, and it is v's own noise and nothing else."""
    std, n = 0.5, 100_000
    world = exact(std)
    for t, r in ((0.9, 0.1), (0.5, 0.3)):
        a, z = (1 - t) ** 2 * std**2 + t**2, 0.8
        m, s = (1 - t) * std**2 / a * z, std * t / a**0.5
        half = m + s * unit_normal(n // 2, 1, 1, 1)
        y = torch.cat([half, 2 * m - half])
        e = (z - (1 - t) * y) / t
        times = (torch.full((n,), t, dtype=torch.float64), torch.full((n,), r, dtype=torch.float64))
        for direction in ("sample", "predicted"):
            outputs: list[Tensor] = []

            def u(z: Tensor, t: Tensor, r: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                out = world(z, t, r)
                if torch.is_grad_enabled():
                    outputs.append(out.requires_grad_())
                return out

            terms = mean_flow(u, y, e, *times, direction=direction, p=0.0)  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(terms.loss.sum(), outputs)
            assert float(gradient.mean().abs()) < 1e-9
            if direction == "predicted":  # half the gradient is u - goal = v_marginal - v
                noise = float(world(torch.full((1, 1, 1, 1), z, dtype=torch.float64), times[0][:1], times[0][:1])) - (e - y)
                torch.testing.assert_close(0.5 * gradient, noise, rtol=1e-6, atol=1e-9)


def by_hand(direction: str) -> Tensor:
    y, e = unit_normal(5, 1, 3, 3), unit_normal(5, 1, 3, 3, seed=1)
    z, v = b(1 - T) * y + b(T) * e, e - y
    way = v if direction == "sample" else network(z, T, T)
    h = 1e-6
    du = (network(z + h * way, T + h, R) - network(z - h * way, T - h, R)) / (2 * h)
    return network(z, T, R) - (v - b(T - R) * du)


@pytest.mark.parametrize("how", ["jvp", "difference"])
@pytest.mark.parametrize("direction", ["sample", "predicted"])
def test_the_algorithm_line_by_line(direction: Any, how: Any) -> None:
    y, e = unit_normal(5, 1, 3, 3), unit_normal(5, 1, 3, 3, seed=1)
    squared = by_hand(direction).square().flatten(1).sum(1)
    plain = mean_flow(network, y, e, T, R, direction=direction, p=0.0, how=how)
    torch.testing.assert_close(plain.loss, squared, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(plain.distance, (squared / 9).sqrt(), rtol=1e-6, atol=1e-9)
    weighted = mean_flow(network, y, e, T, R, direction=direction, p=0.75, c=0.5, how=how)
    torch.testing.assert_close(weighted.loss, squared / (squared + 0.5) ** 0.75, rtol=1e-6, atol=1e-9)


def test_the_gradient_is_that_of_u_alone() -> None:
    y, e = unit_normal(5, 1, 3, 3), unit_normal(5, 1, 3, 3, seed=1)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    loss = mean_flow(lambda z, t, r: scale * network(z, t, r), y, e, T, R, p=0.5, c=0.1).loss.sum()
    (gradient,) = torch.autograd.grad(loss, scale)
    error, squared = by_hand("sample"), by_hand("sample").square().flatten(1).sum(1)
    z = b(1 - T) * y + b(T) * e
    expected = (2 * error * network(z, T, R)).flatten(1).sum(1) / (squared + 0.1) ** 0.5
    assert float(gradient) == pytest.approx(float(expected.sum()), rel=1e-6)


def test_where_both_times_are_one_it_is_flow_matching() -> None:
    y, e = unit_normal(5, 1, 3, 3), unit_normal(5, 1, 3, 3, seed=1)
    terms = mean_flow(network, y, e, T, T, p=0.0)
    z = b(1 - T) * y + b(T) * e
    torch.testing.assert_close(terms.loss, (network(z, T, T) - (e - y)).square().flatten(1).sum(1), rtol=1e-12, atol=0)


# ---- preconditionings


@pytest.mark.parametrize("kind", ["flow", "trigflow"])
@pytest.mark.parametrize("clock", ["log", "time"])
def test_u_is_what_the_map_does(kind: Any, clock: Any) -> None:
    """z - (t - r) u is the preconditioning's own map, for any network."""
    p = Preconditioning(kind, 0.7, 0.0, clock, True)

    def F(x: Tensor, c: Tensor, second: Tensor) -> Tensor:
        return (x + b(c)).sin() + b(second)

    z = unit_normal(5, 1, 2, 2)
    sigma, to = T / (1 - T), R / (1 - R)
    mapped = p(F, z / b(1 - T), sigma, to=to) * b(1 - R)
    torch.testing.assert_close(z - b(T - R) * average_velocity(p, F)(z, T, R), mapped, rtol=1e-10, atol=1e-12)


def test_a_diffusion_models_velocity_is_the_exact_start() -> None:
    """EDM's F with its sign turned, under TrigFlow: u = (z - D) / t at every r, if the network takes no notice of r."""
    edm = Preconditioning("edm", 0.7, 0.0)

    def F(x: Tensor, c: Tensor, second: Tensor | None = None) -> Tensor:
        return (x + b(c)).sin()

    z, sigma = unit_normal(5, 1, 2, 2), T / (1 - T)
    denoised = edm(F, z / b(1 - T), sigma)
    u = average_velocity(Preconditioning("trigflow", 0.7, 0.0, "log", True), lambda x, c, second: -F(x, c))
    for r in (R, T):
        torch.testing.assert_close(u(z, T, r), (z - denoised) / b(T), rtol=1e-10, atol=1e-12)


# ---- guidance


@pytest.mark.parametrize("direction", ["sample", "predicted"])
def test_what_is_learnt_under_guidance_is_the_guided_velocity(direction: Any) -> None:
    """On two normal classes: with v in the mean and the fixed point in place, the target is v_u + w (v_c - v_u)."""
    v_c, v_u = exact(0.3, 0.5), exact(0.6)
    w = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0], dtype=torch.float64)
    z = unit_normal(5, 1, 2, 2)
    wanted = v_u(z, T, T) + b(w) * (v_c(z, T, T) - v_u(z, T, T))

    def learnt(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return v_u(z, t, t) + b(w) * (v_c(z, t, t) - v_u(z, t, t))

    known = torch.ones(5, dtype=torch.bool)
    guide = guided_velocity(learnt, v_u, w, known, direction)
    torch.testing.assert_close(guide(v_c(z, T, T), z, T), wanted, rtol=1e-12, atol=1e-12)
    # Images without a class keep the velocity of the sample.
    none = guided_velocity(learnt, v_u, w, ~known, direction)
    v = unit_normal(5, 1, 2, 2, seed=3)
    assert torch.equal(none(v, z, T), v)


def test_a_map_needs_a_second_time() -> None:
    from atonce.core.errors import InputError

    with pytest.raises(InputError, match="second is True: the edm preconditioning goes to the end only"):
        dataclasses.replace(Preconditioning("edm", 0.5, 0.0), second=True)
