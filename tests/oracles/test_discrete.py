"""The discrete family where every expectation is known: what one step gives, what is learnt, and the bias at finite N.

Expectations over data and noise are Gauss-Hermite sums of the loss itself: the batch holds the nodes, the weights of the
objective hold the nodes' weights. For Gaussian data and linear functions such a sum is exact.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian, Mixture, ct_fixed_point
from atonce.objectives import weights
from atonce.objectives.discrete import Function, Path, discrete, same_noise, teacher_step, to_data
from atonce.objectives.distances import l2, pseudo_huber
from atonce.preconditioning import Preconditioning

S = 0.5
END = 0.002
WORLD = Gaussian(0.0, S)
SHIFTED = Gaussian(0.3, S)
MIXTURE = Mixture(
    torch.tensor([[-1.0, 0.2], [0.8, -0.5], [0.3, 1.0]]).double(),
    torch.tensor([0.3, 0.4, 0.25]).double(),
    torch.tensor([0.5, 0.3, 0.2]).double(),
)


def _t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(widths: list[float], errors: list[float]) -> float:
    """Least-squares slope of ln(error) over ln(width)."""
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def nodes(order: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal pairs (a, b) and their weights, exact for polynomials up to degree 2 order - 1 in each."""
    points, mass = np.polynomial.hermite_e.hermegauss(order)
    mass = mass / mass.sum()
    a, b = torch.meshgrid(torch.tensor(points), torch.tensor(points), indexing="ij")
    return a.reshape(-1, 1, 1, 1), b.reshape(-1, 1, 1, 1), torch.outer(torch.tensor(mass), torch.tensor(mass)).flatten()


A, Z, MASS = nodes()
Y = S * A


def expected_loss(
    student: Function,
    target: Function | None,
    t: float,
    r: float,
    path: Path = same_noise,
    weight: float = 1.0,
    distance: object = l2,
) -> Tensor:
    """E[weight d(f(x_t), f^-(x_r))] over data N(0, S^2) and noise."""
    n = len(MASS)
    return discrete(
        student,
        target,
        Y,
        Z,
        torch.full((n,), t, dtype=torch.float64),
        torch.full((n,), r, dtype=torch.float64),
        path=path,
        distance=distance,  # type: ignore[arg-type]
        weight=weight * MASS,
    ).loss.sum()


def exact_gain(t: float | Tensor) -> Tensor:
    """The exact consistency function of N(0, S^2) is x times this."""
    return ((S**2 + END**2) / (S**2 + torch.as_tensor(t, dtype=torch.float64) ** 2)).sqrt()


# ---- one step of the teacher


GRID = karras_grid(18).flip(0)


@pytest.mark.parametrize(
    ("index", "euler", "heun", "exact"),
    [
        (0, 0.71983575, 0.71983871, 0.71983788),
        (5, 0.65124981, 0.65146479, 0.65138987),
        (11, 0.71464523, 0.76674998, 0.75507010),
        (16, 0.99983358, 0.99989468, 0.99989468),
    ],
)
def test_one_step_of_distillation(index: int, euler: float, heun: float, exact: float) -> None:
    t, r = GRID[index : index + 1], GRID[index + 1 : index + 2]
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for order, printed in ((1, euler), (2, heun)):
        assert abs(float(teacher_step(WORLD.denoiser, order)(x, x, x, t, r)) - printed) <= 5.1e-9
    assert abs(float(WORLD.solution(x, t, r)) - exact) <= 5.1e-9


@pytest.mark.parametrize("world", [SHIFTED, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("order", "expected"), [(1, 2.0), (2, 3.0)])
@pytest.mark.parametrize("t", [0.3, 1.0, 10.0])
def test_error_of_one_step(world: Gaussian | Mixture, order: int, expected: float, t: float) -> None:
    """Against the exact trajectory the error of one step falls like its width to the power 2 (Euler) and 3 (Heun)."""
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * math.hypot(t, 1.0)
    level = torch.full((12,), t, dtype=torch.float64)
    widths = [0.04, 0.02, 0.01, 0.005]
    errors = []
    for h in widths:
        r = level * (1 - h)
        step = teacher_step(world.denoiser, order)(x, x, x, level, r)
        errors.append(float((step - world.solution(x, level, r)).norm()))
    assert abs(slope(widths, errors) - expected) < 0.1, errors


# ---- training from data and distillation have the same target in expectation


def posterior(world: Mixture, x: Tensor, t: float, order: int = 24) -> tuple[Tensor, Tensor]:
    """Data y given x_t = x in one dimension, as nodes [M] and weights [M]."""
    points, mass = np.polynomial.hermite_e.hermegauss(order)
    means, stds, w = world.means[:, 0], world.stds, world.weights / world.weights.sum()
    variance = stds**2 + t**2
    log = torch.log(w) - 0.5 * torch.log(variance) - 0.5 * (x - means) ** 2 / variance
    p = torch.softmax(log, 0)
    centre = means + stds**2 / variance * (x - means)
    spread = stds * t / variance.sqrt()
    y = centre[:, None] + spread[:, None] * torch.tensor(points)
    return y.flatten(), (p[:, None] * torch.tensor(mass / mass.sum())).flatten()


LINE = Mixture(_t(-1.0, 1.0)[:, None], _t(0.3, 0.2), _t(0.8, 0.2))


def _ct_and_cd(world: Mixture, x: float, t: float, r: float, f: Function) -> tuple[float, float]:
    """E[f(y + r z) | x_t = x], and f at the Euler step with the exact denoiser."""
    y, mass = posterior(world, torch.tensor(x, dtype=torch.float64), t)
    state = torch.full((len(y), 1), x, dtype=torch.float64)
    y = y[:, None]
    level, to = torch.full((len(y),), t, dtype=torch.float64), torch.full((len(y),), r, dtype=torch.float64)
    ct = (mass[:, None] * f(same_noise(state, y, (state - y) / t, level, to), to)).sum()
    cd = f(teacher_step(world.denoiser, 1)(state[:1], y[:1], y[:1], level[:1], to[:1]), to[:1])
    return float(ct), float(cd)


@pytest.mark.parametrize("world", [Mixture(_t(0.3)[:, None], _t(S), _t(1.0)), LINE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("t", "r"), [(1.0, 0.9), (1.0, 0.1), (40.0, 20.0), (0.1, 0.0)])
def test_the_expected_target_of_ct_is_that_of_cd_with_euler(world: Mixture, t: float, r: float) -> None:
    """Exact for a linear target function, whatever the step: x_r is linear in y, and E[y | x] is the denoiser."""
    for x in (-2.0, 0.3, 1.7):
        ct, cd = _ct_and_cd(world, x, t, r, lambda x, s: 0.7 * x + 0.1)
        assert abs(ct - cd) < 1e-12


def test_for_a_curved_target_function_they_differ_by_the_square_of_the_step() -> None:
    widths = [0.2, 0.1, 0.05, 0.025]
    gaps = []
    for h in widths:
        ct, cd = _ct_and_cd(LINE, 0.3, 1.0, 1.0 - h, lambda x, s: torch.tanh(2 * x))
        gaps.append(abs(ct - cd))
    assert abs(slope(widths, gaps) - 2.0) < 0.1


# ---- the bias at finite N


def test_the_gradient_at_the_exact_function_shrinks_with_slope_two() -> None:
    """The exact function is no stationary point at finite N: E[x_t (f(x_t) - f(x_r))] is 5.3e-4, 4.5e-6, 4.5e-8 at t = 1."""
    widths = [0.1, 0.01, 0.001]
    found = []
    for h in widths:
        a = exact_gain(1.0).clone().requires_grad_()
        expected_loss(lambda x, s, a=a: a * x, lambda x, s: exact_gain(s[0]) * x, 1.0, 1.0 - h).backward()
        assert a.grad is not None
        found.append(float(a.grad) / 2)  # of the square
    for value, printed, unit in zip(found, (5.3e-4, 4.5e-6, 4.5e-8), (1e-5, 1e-7, 1e-9), strict=True):
        assert abs(value - printed) <= 0.5 * unit
    assert abs(slope(widths, found) - 2) < 0.05


def _trained(grid: Tensor, path: Path, distance: object = l2, rounds: int = 1) -> Tensor:
    """A table a_i, f(x, t_i) = a_i x with a_1 = 1, trained on expected losses interval by interval to their minimum."""
    table = [torch.ones((), dtype=torch.float64)]
    for r, t in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        a = table[-1].clone()  # where the neighbour stands
        below = table[-1]
        for _ in range(rounds):
            a.requires_grad_()
            loss = expected_loss(lambda x, s, a=a: a * x, lambda x, s, below=below: below * x, t, r, path, distance=distance)
            (g,) = torch.autograd.grad(loss, a, create_graph=True)
            (h,) = torch.autograd.grad(g, a)
            a = (a - g / h).detach()  # Newton's step: one is enough where the loss is a parabola
        table.append(a)
    return torch.stack(table)


@pytest.mark.parametrize(("n", "end"), [(11, 0.00470480), (21, 0.00542219), (81, 0.00603181)])
def test_training_converges_to_the_fixed_point_of_finite_n(n: int, end: float) -> None:
    grid = karras_grid(n)
    table = _trained(grid, same_noise)
    torch.testing.assert_close(table, ct_fixed_point(grid, S), rtol=1e-11, atol=0)
    assert abs(float(table[-1]) - end) <= 5.1e-9
    assert float(table[-1]) < 0.97 * float(exact_gain(80.0))  # and so not the exact function


def test_distillation_with_euler_has_the_same_fixed_point_and_with_heun_one_of_second_order() -> None:
    """The bias at sigma = 80 falls like N^-1 for CT and CD with Euler, like N^-2 for CD with Heun."""
    counts = [41, 81, 161]
    bias: dict[int, list[float]] = {1: [], 2: []}
    for n in counts:
        grid = karras_grid(n)
        euler, heun = (_trained(grid, teacher_step(WORLD.denoiser, order)) for order in (1, 2))
        torch.testing.assert_close(euler, ct_fixed_point(grid, S), rtol=1e-11, atol=0)
        for order, table in ((1, euler), (2, heun)):
            bias[order].append(abs(float(table[-1] / exact_gain(80.0)) - 1))
    for order, errors in bias.items():
        assert abs(-slope([n - 1 for n in counts], errors) - order) < 0.1, errors


def test_the_fixed_point_does_not_depend_on_the_distance_for_symmetric_data() -> None:
    """Given x_t the target is normal, hence symmetric about its mean, so iCT's distance has the minimum where L2 has it."""
    grid = karras_grid(6)
    points, mass = np.polynomial.hermite_e.hermegauss(40)
    for a_below, (r, t) in zip((1.0, 0.9, 0.3), ((0.1, 0.2), (1.0, 2.0), (20.0, 40.0)), strict=True):
        mean = a_below * (S**2 + r * t) / (S**2 + t**2)
        spread = a_below * abs(t - r) * S / math.sqrt(S**2 + t**2)
        x = math.hypot(S, t)
        goal = (mean * x + spread * torch.tensor(points)).reshape(-1, 1, 1, 1)
        for c in (0.01, 0.3):
            a = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
            values = pseudo_huber((a * x).expand_as(goal), goal, c)
            (g,) = torch.autograd.grad((torch.tensor(mass / mass.sum()) * values).sum(), a)
            assert abs(float(g)) < 1e-12
    assert len(grid) == 6


def test_on_skewed_data_a_distance_without_constant_keeps_its_bias() -> None:
    """With c = 0 the mean of res / |res| stays near .37 however small the step (a median is no mean); with c it goes."""
    atoms = Mixture(_t(-1.0, 1.0)[:, None], _t(0.0, 0.0), _t(0.8, 0.2))
    x, t = torch.tensor(0.3, dtype=torch.float64), 1.0
    y, mass = posterior(atoms, x, t, order=1)
    skew = float(mass[1] - mass[0])
    found = {}
    for c in (0.0, 0.03):
        for h in (1e-2, 1e-3, 1e-4):
            x_r = x + (-h / t) * (x - y)
            goal = x_r.reshape(-1, 1, 1, 1)
            # The exact function: constant along the trajectory, so at the exact step's end it has f(x_t)'s value.
            at_t = atoms.solution(x.reshape(1, 1), t, t - h).reshape(())
            a = at_t.clone().requires_grad_()
            values = pseudo_huber(a.expand_as(goal), goal, c)
            (g,) = torch.autograd.grad((mass * values).sum(), a)
            found[c, h] = float(g)
    for h in (1e-2, 1e-3, 1e-4):
        assert abs(abs(found[0.0, h]) - abs(skew)) < 0.01
    assert abs(skew) > 0.37
    assert abs(found[0.03, 1e-4]) < 1e-3
    assert abs(found[0.03, 1e-4]) < 0.2 * abs(found[0.03, 1e-3]) < 0.2 * abs(found[0.03, 1e-2])


# ---- the toy that tells a student target from a moving average


XI, THETA = 0.3, 0.8


def _toy(theta: float) -> Function:
    def f(x: Tensor, sigma: Tensor) -> Tensor:
        share = (END / sigma).reshape(-1, 1, 1, 1)
        return share * x + (1 - share) * theta

    return f


def _residuals(xi: float, theta: float, below: float, grid: Tensor, z: Tensor) -> Tensor:
    """f(x_{i+1}) - f^-(x_i) for every interval and noise: [N - 1, Z]."""
    count = len(grid) - 1
    t, r = (level.repeat_interleave(len(z)) for level in (grid[1:], grid[:-1]))
    noise = z.repeat(count).reshape(-1, 1, 1, 1)
    data = torch.full_like(noise, xi)
    difference = lambda a, b: (a - b).flatten(1).sum(1)
    terms = discrete(
        _toy(theta), _toy(below), data, noise, t, r, path=same_noise, distance=difference, weight=torch.ones_like(t)
    )
    return terms.loss.reshape(count, -1)


def test_the_student_as_target_leaves_the_consistency_gradient() -> None:
    grid, z = karras_grid(11), _t(-1.5, 0.0, 2.0)
    residuals = _residuals(XI, THETA, THETA, grid, z)
    torch.testing.assert_close(residuals, residuals[:, :1].expand_as(residuals), rtol=0, atol=1e-14)  # whatever z
    for i, printed, unit in (
        (0, 0.4401940818, 1e-10),
        (1, 0.0480532695, 1e-10),
        (5, 0.0002263160, 1e-10),
        (9, 9.5684e-6, 1e-10),
    ):
        assert abs(float(residuals[i, 0]) - printed) <= 0.51 * unit
    closed = END * (1 / grid[:-1] - 1 / grid[1:]) * (THETA - XI)
    torch.testing.assert_close(residuals[:, 0], closed, rtol=1e-9, atol=1e-15)


def test_a_moving_average_as_target_drowns_it() -> None:
    """With theta^- != theta a term that knows nothing of the data stays, and dominates as N grows."""
    z, below = _t(0.7), 0.75
    ratios = []
    for n in (11, 81, 641):
        grid = karras_grid(n)
        own = _residuals(XI, THETA, THETA, grid, z)[:, 0]
        averaged = _residuals(XI, THETA, below, grid, z)[:, 0]
        extra = averaged - own
        torch.testing.assert_close(extra, (1 - END / grid[:-1]) * (THETA - below), rtol=1e-9, atol=1e-12)
        elsewhere = _residuals(-0.9, THETA, below, grid, z)[:, 0] - _residuals(-0.9, THETA, THETA, grid, z)[:, 0]
        torch.testing.assert_close(extra, elsewhere, rtol=1e-9, atol=1e-12)  # the same for other data
        ratios.append(float((extra[n // 2] / own[n // 2]).abs()))
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 1000


# ---- denoising


@pytest.mark.parametrize("t", [0.01, 0.5, 3.0, 80.0])
def test_the_minimiser_of_denoising_is_the_denoiser(t: float) -> None:
    b = torch.tensor(S**2 / (S**2 + t**2), dtype=torch.float64, requires_grad=True)
    weight = float(weights.edm(_t(t), S))
    loss = expected_loss(lambda x, s: b * x, None, t, 0.0, to_data, weight)
    (gradient,) = torch.autograd.grad(loss, b, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient, b)
    assert abs(float((gradient / curvature).detach())) < 1e-13
    assert float(curvature) > 0


@pytest.mark.parametrize("t", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_the_weight_makes_the_first_loss_one_at_every_level(t: float) -> None:
    """With F = 0, as at the start, EDM's weight gives every noise level the same expected loss, 1."""
    edm = Preconditioning("edm", S, 0.0)
    start = lambda x, sigma: edm(lambda x, c: torch.zeros_like(x), x, sigma)
    loss = expected_loss(start, None, t, 0.0, to_data, float(weights.edm(_t(t), S)))
    assert abs(float(loss) - 1.0) < 1e-10
