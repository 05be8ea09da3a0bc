"""Distillation on Gaussian data, where the teacher, its ODE and the exact student are closed forms.

What one step of the teacher gives, through the engine too; how far the exact student is from a fixed point of distillation
with Euler and Heun; that training from data has the same target in expectation and another loss; mu(k) as an engine uses it.
The table of fixed points and the toy of stop-gradient targets are in test_discrete.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atonce.core.distribution import World
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian
from atonce.objectives.discrete import Function, Path, discrete, same_noise, teacher_step
from atonce.objectives.distances import l2
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe

S, END = 0.5, 0.002
WORLD = Gaussian(0.0, S)
SHIFTED = Gaussian(0.3, S)
NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), embedding_mult=2)


class Data:
    """Normal images of standard deviation .5, as functions of the index."""

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        return S * normal(7, index, (1, 4, 4), Stream.WORLD), None


class Closed(nn.Module):
    """A network F with which a preconditioning gives gain(sigma) x."""

    def __init__(self, preconditioning: Preconditioning, gain: Any) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))
        self.preconditioning, self.gain = preconditioning, gain

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Any) -> Tensor:
        sigma = torch.exp(4 * c_noise.double())
        c_skip, c_out, c_in, _ = self.preconditioning.coefficients(sigma)
        factor = torch.where(c_out.abs() > 1e-9, (self.gain(sigma) - c_skip) / (c_out * c_in), 0.0)
        return (factor[:, None, None, None] * x.double()).to(x.dtype) + self.a.sum()


def exact_gain(sigma: Tensor) -> Tensor:
    """The exact consistency function of N(0, s^2) is x times this."""
    return ((S**2 + END**2) / (S**2 + sigma**2)).sqrt()


def teacher() -> ConsistencyModel:
    """A model whose denoiser is the exact one: with EDM's preconditioning that is F = 0."""
    edm = Preconditioning("edm", S, 0.0)
    return ConsistencyModel(ModelConfig(NETWORK, edm, kind="denoiser"), Closed(edm, lambda s: S**2 / (S**2 + s**2)))


def engine(recipe: Recipe, **arguments: Any) -> Engine:
    return Engine(recipe, Data(), World(), Options(precision="fp32"), **arguments)  # type: ignore[arg-type]


def cd(**changes: Any) -> Recipe:
    return presets.cd(images=6400, batch=16, network=NETWORK, sigma_data=S, **changes)


def spied(made: Engine, index: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Any]:
    """(x, sigma) of each evaluation of student and target, and the terms."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = made.preconditioning

    def spy(network: Any, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        seen.append((x.detach(), sigma))
        return original(network, x, sigma, **condition)

    made.preconditioning = spy  # type: ignore[assignment]
    stage = module_stage(made)
    terms, _ = made.terms(index, stage, torch.float32)
    made.preconditioning = original
    return seen, terms


def module_stage(made: Engine) -> Any:
    from atonce.training.schedule import stage_at

    return stage_at(made.recipe, made.images_seen)


def slope(widths: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


# ---- one step of the teacher


PRINTED = {  # t: Euler, Heun, exact, from x = 1 on the grid of 18 points
    80.0: (0.71983575, 0.71983871, 0.71983788),
    12.91008238: (0.65124981, 0.65146479, 0.65138987),
    0.58534812: (0.71464523, 0.76674998, 0.75507010),
    0.00752802: (0.99983358, 0.99989468, 0.99989468),
}


@pytest.mark.parametrize("path", ["euler", "heun"])
def test_the_pairs_of_the_engine_are_steps_of_the_teacher(path: str) -> None:
    """With a model as teacher, every target of a batch is the known multiple of its student's input."""
    made = engine(cd(path=path), teacher=teacher())
    ((x_t, t), (x_r, r)), _ = spied(made, torch.arange(256))
    grid = karras_grid(18).float()
    found = set()
    for i in range(256):
        place = int((grid - t[i]).abs().argmin())
        assert float(grid[place]) == pytest.approx(float(t[i]), rel=1e-6)
        assert float(grid[place - 1]) == pytest.approx(float(r[i]), rel=1e-6)
        ratio = float((x_r[i] * x_t[i]).double().sum() / x_t[i].double().square().sum())
        torch.testing.assert_close(x_r[i], ratio * x_t[i], rtol=1e-4, atol=1e-5)
        for level, printed in PRINTED.items():
            if abs(float(t[i]) - level) < 1e-5 * level:
                assert abs(ratio - printed[path == "heun"]) < 3e-6
                assert path == "heun" or level == 0.00752802 or abs(ratio - printed[2]) > 2e-6
                found.add(level)
    assert found == set(PRINTED)


def test_a_guided_step_is_a_step_with_the_guided_denoiser() -> None:
    """Any affine D gives the affine step by hand: nothing but D of the teacher enters."""
    t, r = torch.tensor([3.0, 0.4]).double(), torch.tensor([2.0, 0.1]).double()
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    column = lambda s: s[:, None, None, None]
    d = lambda x, s: 0.7 * x / (1 + column(s)) + 0.2
    slope_t = (x - d(x, t)) / column(t)
    end = x + column(r - t) * slope_t
    torch.testing.assert_close(teacher_step(d, 1)(x, x, x, t, r), end, rtol=1e-14, atol=0)
    both = x + column(r - t) * (slope_t + (end - d(end, r)) / column(r)) / 2
    torch.testing.assert_close(teacher_step(d, 2)(x, x, x, t, r), both, rtol=1e-14, atol=0)


# ---- the exact student is a fixed point up to the solver's error


def residual(world: Gaussian, path: Path, t: Tensor, r: Tensor) -> Tensor:
    """f(x_t) - f(x_r) of the exact f, of one image of 64 values for each pair: its root mean square."""
    generator = torch.Generator().manual_seed(2)
    y, z = (torch.randn(len(t), 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    f = lambda x, s: world.consistency(x, s)
    terms = discrete(f, f, 0.3 + S * y, z, t, r, path=path, distance=l2, weight=torch.ones_like(t))
    return terms.loss.sqrt()


@pytest.mark.parametrize(("order", "expected"), [(1, 2.0), (2, 3.0)])
@pytest.mark.parametrize("level", [0.1, 1.0, 20.0])
def test_the_exact_student_leaves_the_error_of_the_solver(order: int, expected: float, level: float) -> None:
    """Along ever finer Karras grids, at the pair that begins at one noise level: slope 2 in its width, or 3."""
    widths, errors = [], []
    for n in (160, 320, 640, 1280):
        grid = karras_grid(n)
        i = int((grid - level).abs().argmin())
        r = grid[i - 1 : i] * level / grid[i]  # the pair's relative width, moved to the level itself
        t = torch.tensor([level], dtype=torch.float64)
        widths.append(float(t - r))
        errors.append(float(residual(SHIFTED, teacher_step(SHIFTED.denoiser, order), t, r)))
    assert abs(slope(widths, errors) - expected) < 0.1, errors
    assert errors[-1] > 1e-13  # it is the solver's error that was measured, not rounding


def test_a_wrong_student_leaves_more_than_the_solvers_error() -> None:
    """What tells the fixed point: a student that is 1 % off on one side leaves a residual of slope 0, at every width."""
    t = torch.tensor([1.0], dtype=torch.float64)
    for h in (0.1, 0.01, 0.001):
        r = t - h
        y, z = torch.ones(1, 1, 1, 1).double(), 0.5 * torch.ones(1, 1, 1, 1).double()
        wrong = lambda x, s: SHIFTED.consistency(x, s) * torch.where(s[:, None, None, None] > 0.9995, 1.01, 1.0)
        path = teacher_step(SHIFTED.denoiser, 2)
        terms = discrete(wrong, SHIFTED.consistency, y, z, t, r, path=path, distance=l2, weight=torch.ones_like(t))
        assert 0.005 < float(terms.loss.sqrt()) < 0.02


@pytest.mark.parametrize("path", ["euler", "heun"])
def test_the_loss_of_the_engine_at_the_exact_student(path: str) -> None:
    """The engine's distance of each pair at the exact student is the square of (a_t - a_r step) x_t, in closed form."""
    made = engine(cd(path=path), teacher=teacher())
    exact = Closed(made.preconditioning, exact_gain)
    made.student = made.target_student = exact
    index = torch.arange(512)
    ((x_t, t), (_, r)), terms = spied(made, index)
    t, r = t.double(), r.double()
    step = (S**2 + t * r) / (S**2 + t**2)
    if path == "heun":  # average of the slopes at both ends, s^2 / (s^2 + sigma^2) of the denoiser put in
        step = 1 + (r - t) / 2 * (t / (S**2 + t**2) + r / (S**2 + r**2) * step)
    expected = (exact_gain(t) - exact_gain(r) * step).square() * x_t.double().square().mean((1, 2, 3))
    large = expected > 1e-7  # elsewhere single precision is all that is left
    assert int(large.sum()) > (200 if path == "euler" else 100)
    torch.testing.assert_close(terms.distance.double()[large], expected[large], rtol=0.02, atol=0)
    assert float(terms.distance[~large].max()) < 1e-6


def test_heun_is_nearer_to_the_exact_student_than_euler() -> None:
    means = {}
    for path in ("euler", "heun"):
        made = engine(cd(path=path), teacher=teacher())
        made.student = made.target_student = Closed(made.preconditioning, exact_gain)
        means[path] = float(spied(made, torch.arange(512))[1].distance.mean())
    assert means["heun"] < 0.2 * means["euler"]


@pytest.mark.parametrize(("order", "expected"), [(1, 2.0), (2, 3.0)])
def test_the_gradient_at_the_exact_student(order: int, expected: float) -> None:
    """E[x_t (f(x_t) - f(x_r))] at t = 1 is 5.3e-4, 4.5e-6, 4.5e-8 with Euler, as for training from data; slope 3 with Heun."""
    t, widths = torch.ones(1, dtype=torch.float64), [0.1, 0.01, 0.001]
    found = []
    for h in widths:
        r = t * (1 - h)
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        x_r = teacher_step(WORLD.denoiser, order)(one, one, one, t, r)
        gap = exact_gain(t) - exact_gain(r) * x_r.flatten()
        found.append(abs(float(gap * (S**2 + t**2))))  # the expectation of x_t^2
    if order == 1:
        for value, printed, unit in zip(found, (5.3e-4, 4.5e-6, 4.5e-8), (1e-5, 1e-7, 1e-9), strict=True):
            assert abs(value - printed) <= 0.5 * unit
    assert abs(slope(widths, found) - expected) < 0.1, found


# ---- training from data has the target of distillation with Euler, in expectation


F_LINEAR: Function = lambda x, s: (0.4 + 0.3 / (1 + s[:, None, None, None])) * x + 0.1


def goals(path: Path, y: Tensor, z: Tensor, t: float, r: float) -> tuple[Tensor, Tensor]:
    """The targets of a batch, and its losses against the student at t."""
    seen: list[Tensor] = []
    level, to = (torch.full((len(y),), s, dtype=torch.float64) for s in (t, r))
    distance = lambda a, b: (seen.append(b), l2(a, b))[1]
    terms = discrete(F_LINEAR, F_LINEAR, y, z, level, to, path=path, distance=distance, weight=torch.ones_like(level))
    return seen[0], terms.loss


@pytest.mark.parametrize(("t", "r"), [(1.0, 0.5), (0.3, 0.1), (20.0, 1.0)])
def test_the_expected_target_of_ct_given_x_t_by_monte_carlo(t: float, r: float) -> None:
    """y is drawn given x_t; the mean of f(y + r z) is f at the Euler step, to five standard errors, and not f at Heun's."""
    count, x = 200_000, 1.3
    centre, spread = 0.3 + S**2 / (S**2 + t**2) * (x - 0.3), S * t / math.hypot(S, t)
    e = normal(3, torch.arange(count), (1, 1, 1), Stream.WORLD).double()
    y = centre + spread * e
    ct, _ = goals(same_noise, y, (x - y) / t, t, r)
    euler, heun = (goals(teacher_step(SHIFTED.denoiser, k), y[:1], (x - y[:1]) / t, t, r)[0] for k in (1, 2))
    error = float(ct.std()) / count**0.5
    assert abs(float(ct.mean() - euler)) < 5 * error
    assert abs(float(ct.mean() - heun)) > 10 * error
    # In closed form: the slope of f times the Euler step of the mean of y.
    slope_r, offset = 0.4 + 0.3 / (1 + r), 0.1
    assert float(euler) == pytest.approx(slope_r * (x + (r - t) * (x - centre) / t) + offset, rel=1e-13)


def test_the_targets_agree_over_the_joint_distribution_but_the_losses_do_not() -> None:
    """CT's loss keeps the variance of its target, (slope (1 - r/t))^2 Var(y | x_t), which no student can take away."""
    count, t, r = 200_000, 1.0, 0.6
    draw = normal(5, torch.arange(count), (2, 1, 1), Stream.WORLD).double()
    y, z = 0.3 + S * draw[:, :1], draw[:, 1:]
    ct, loss_ct = goals(same_noise, y, z, t, r)
    cd_goal, loss_cd = goals(teacher_step(SHIFTED.denoiser, 1), y, z, t, r)
    gap = (ct - cd_goal).flatten()
    x = (y + t * z).flatten()
    for moment in (torch.ones_like(x), x, x**2):  # not correlated with anything that is a function of x_t
        product = gap * moment
        assert abs(float(product.mean())) < 5 * float(product.std()) / count**0.5
    slope_r = 0.4 + 0.3 / (1 + r)
    variance = (slope_r * (1 - r / t)) ** 2 * S**2 * t**2 / (S**2 + t**2)
    assert float(gap.var()) == pytest.approx(variance, rel=0.02)
    difference = loss_ct - loss_cd
    error = float(difference.std()) / count**0.5
    assert abs(float(difference.mean()) - variance) < 5 * error
    assert variance > 50 * error


# ---- mu(k) as an engine uses it


def n_of(k: int, budget: int, s0: int, s1: int) -> int:
    return math.ceil(math.sqrt(k / budget * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


@pytest.mark.parametrize(("mu", "less", "first"), [("ct-code", 1, 0.81), ("ct-paper", 0, 0.9)])
def test_both_conventions_of_mu_move_the_target_after_the_optimiser(mu: str, less: int, first: float) -> None:
    """target <- mu(k) target + (1 - mu(k)) student, with the student after its step and the mu of the step's own N(k)."""
    budget, batch = 160, 8
    made = engine(presets.ct(budget, batch, network=NETWORK, sigma_data=S, s0=2, s1=9, mu=mu, lr=1e-2, ema=(0.5,)))
    used, average = [], made.flat.values.detach().clone()
    for k in range(0, budget, batch):
        before, target = made.flat.values.detach().clone(), made.target_flat.values.detach().clone()
        made.step()
        after, moved = made.flat.values.detach(), made.target_flat.values.detach()
        share = math.exp(2 * math.log(0.9) / (n_of(k, budget, 2, 9) - less))
        used.append(share)
        torch.testing.assert_close(moved, share * target + (1 - share) * after, rtol=1e-6, atol=1e-7)
        too_early = share * target + (1 - share) * before
        assert float((moved - too_early).norm()) > 50 * float((moved - share * target - (1 - share) * after).norm())
        average = 0.5 * average + 0.5 * after  # the average for sampling is a copy of its own
    assert used[0] == pytest.approx(first, abs=1e-12)
    assert len(set(used)) > 4
    torch.testing.assert_close(made.averages["0.5"].values, average, rtol=1e-5, atol=1e-7)
    assert float((made.target_flat.values - average).norm()) > 1e-4


def test_a_fixed_mu_in_distillation() -> None:
    made = engine(cd(target="ema", mu=0.95, lr=1e-2), teacher=teacher())
    for _ in range(4):
        target = made.target_flat.values.detach().clone()
        made.step()
        expected = 0.95 * target + 0.05 * made.flat.values.detach()
        torch.testing.assert_close(made.target_flat.values.detach(), expected, rtol=1e-6, atol=1e-7)


def test_the_target_of_the_paper_on_small_images_is_the_student() -> None:
    """cd's default, mu = 0: no second network, and a target of mu = 0 is the same run."""
    own, copied = engine(cd(lr=1e-2), teacher=teacher()), engine(cd(target="ema", mu=0.0, lr=1e-2), teacher=teacher())
    assert own.target is None
    for _ in range(3):
        own.step()
        copied.step()
    assert torch.equal(own.flat.values, copied.flat.values)
