"""IMM against normal data, where the discrepancy of two jumps is a closed form: its value, its zero, the bias of groups."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor

from atonce.objectives.imm import group_times, laplace_mean, moment_matching, weight
from atonce.preconditioning import Preconditioning

TRIG = Preconditioning("trigflow", 0.5, 0.0, "time", True)
STD = 0.8
SIGMA, R, S = 2.0, 1.2, 0.3


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def unit_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(x: Tensor, sigma: Tensor, to: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """The flow map of N(0, STD^2), times a factor."""
    column = (slice(None), None, None, None)
    return scale * x * ((STD**2 + to[column] ** 2) / (STD**2 + sigma[column] ** 2)).sqrt()


def batch(groups: int, m: int) -> tuple[Tensor, ...]:
    n = groups * m
    times = (torch.full((n,), v, dtype=torch.float64) for v in (SIGMA, R, S))
    return STD * unit_normal(n, 1, 1, 1), unit_normal(n, 1, 1, 1, seed=1), *times


def expected(alpha: float, m: int) -> float:
    """The mean of the group's discrepancy for a = alpha f_exact(x_t), b = f_exact(x_r) in one dimension, in closed form.

    All pairs are normal. Different members are independent; a_i and b_i share image and noise, and Var(a_i - b_i) follows.
    """
    rate = 1 / abs(float(TRIG.coefficients(number(SIGMA), S)[1]))
    v = STD**2 + S**2
    f, g = math.sqrt(v / (STD**2 + SIGMA**2)), math.sqrt(v / (STD**2 + R**2))
    shared = STD**2 * (alpha * f - g) ** 2 + (alpha * f * SIGMA - g * R) ** 2

    def k(variance: float) -> float:
        return float(laplace_mean(number(variance), number(rate)))

    same = 2 - 2 * k(shared)
    other = k(2 * alpha**2 * v) + k(2 * v) - 2 * k((1 + alpha**2) * v)
    return same / m + (1 - 1 / m) * other


@pytest.mark.parametrize(("variance", "rate"), [(0.3, 1.0), (2.0, 0.4), (50.0, 3.0)])
def test_the_closed_form_is_the_integral(variance: float, rate: float) -> None:
    def density(z: float) -> float:
        return math.exp(-rate * abs(z) - z * z / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    value = 2 * integrate.quad(density, 0, 60, epsabs=1e-13, limit=200, points=[1.0])[0]
    found = laplace_mean(number(variance), number(rate))
    assert float(found) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("m", [2, 4, 16])
@pytest.mark.parametrize("alpha", [1.0, 0.7, 1.5])
def test_the_discrepancy_is_the_closed_form(alpha: float, m: int) -> None:
    groups = 160_000 // m
    terms = moment_matching(lambda x, t, s: exact(x, t, s, alpha if float(t[0]) == SIGMA else 1.0), *batch(groups, m),
                            preconditioning=TRIG, group=m)  # fmt: skip
    value = float(terms.loss.mean() / weight(number(SIGMA / (SIGMA + 0.5)), 1, 5.0))
    assert value == pytest.approx(expected(alpha, m), abs=0.01 * expected(alpha, m) + 1e-4)


def test_it_vanishes_at_the_exact_map_but_for_pairs_with_themselves() -> None:
    """The population's discrepancy is 0 at the exact map, and stationary; of a group's, only the share 1/M is left."""
    h = 1e-4

    def rate(m: float) -> float:
        return (expected(1 + h, m) - expected(1 - h, m)) / (2 * h)  # type: ignore[arg-type]

    assert abs(expected(1.0, 10**9)) < 1e-9
    assert abs(rate(1e9)) < 1e-6
    assert min(expected(0.9, 10**9), expected(1.1, 10**9)) > 1e-4
    assert abs(rate(2)) > 1e-3
    assert rate(2) / rate(16) == pytest.approx(8, rel=1e-3)


def test_gradients_at_the_exact_map_fade_with_the_size_of_groups() -> None:
    found = {}
    for m in (2, 16):
        alpha = torch.ones(1, dtype=torch.float64, requires_grad=True)
        terms = moment_matching(lambda x, t, s, alpha=alpha: exact(x, t, s, alpha), *batch(320_000 // m, m),
                                preconditioning=TRIG, group=m)  # fmt: skip
        (gradient,) = torch.autograd.grad(terms.loss.mean(), alpha)
        found[m] = float(gradient)
    h = 1e-4
    unit = float(weight(number(SIGMA / (SIGMA + 0.5)), 1, 5.0))
    for m, value in found.items():
        # No gradient passes through the second jump.
        assert value == pytest.approx(unit * (expected(1 + h, m) - expected(1 - h, m)) / (2 * h), rel=0.25, abs=2e-4)
    assert abs(found[16]) < 0.4 * abs(found[2])


def test_in_the_papers_states_the_kernel_is_the_same() -> None:
    """Distances and c_out change by one factor, and DDIM with the image known is same noise.

    Theirs are alpha y + sigma sigma_data e with t = sigma / (sigma + sigma_data).
    """
    t, s = SIGMA / (SIGMA + 0.5), S / (S + 0.5)
    y, e, r = 0.3, -1.1, R / (R + 0.5)
    x_t, x_r = (1 - t) * y + t * 0.5 * e, (1 - r) * y + r * 0.5 * e
    ddim = (1 - r) * y + r / t * (x_t - (1 - t) * y)  # their DDIM(x_t, y, r, t)
    assert ddim == pytest.approx(x_r, rel=1e-12)
    assert x_r / (1 - r) == pytest.approx(y + R * e, rel=1e-12)
    c_out = ((1 - s) * t - (1 - t) * s) * 0.5 / math.sqrt((1 - t) ** 2 + t**2)
    ours = float(TRIG.coefficients(number(SIGMA), S)[1].abs())
    assert ours * (1 - s) == pytest.approx(c_out, rel=1e-12)


def test_the_weight() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    h = 1e-6
    rate = -((2 * ((1 - t - h) / (t + h)).log()) - (2 * ((1 - t + h) / (t - h)).log())) / (2 * h)
    for a in (1, 2):
        hand = 0.5 * torch.sigmoid(5 - 2 * ((1 - t) / t).log()) * rate * (1 - t) ** a / ((1 - t) ** 2 + t**2)
        torch.testing.assert_close(weight(t, a, 5.0), hand, rtol=1e-8, atol=0)


def test_times() -> None:
    u = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, r, s = group_times(u, 0.003, 80.0, 0.5, 12)
    assert bool((s <= r).all())
    assert bool((r < t).all())
    assert float(s.min()) >= 0.003 * (1 - 1e-12)
    assert float(t.max()) <= 80.0
    inside = r > s
    torch.testing.assert_close((t - r)[inside], torch.full_like(t[inside], (80.0 - 0.003) / 4096), rtol=1e-9, atol=1e-12)
    flow = t / (t + 0.5)
    assert float(flow.mean()) == pytest.approx((0.003 / 0.503 + 80 / 80.5) / 2, abs=0.01)
