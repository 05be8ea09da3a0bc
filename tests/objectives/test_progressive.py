"""Progressive distillation as a function: what one student step must be, its weight, and the chain of all halvings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.noise.worlds import Gaussian, Mixture
from atonce.objectives.discrete import Function, discrete
from atonce.objectives.distances import l2
from atonce.objectives.progressive import truncated_snr, two_steps
from atonce.sampling.ode import euler_step, integrate
from atonce.sampling.times import denoiser_times

S = 0.5
WORLD = Gaussian(0.3, S)
MIXTURE = Mixture(
    torch.tensor([[[[-1.0, 0.2]]], [[[0.8, -0.5]]]]).double(),
    torch.tensor([0.3, 0.4]).double(),
    torch.tensor([0.6, 0.4]).double(),
)


def column(s: Tensor) -> Tensor:
    return s[:, None, None, None]


def states(n: int, size: int = 2) -> Tensor:
    return torch.randn(n, 1, 1, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- one pair of steps


T, M, R = levels(80.0, 3.0, 0.5, 0.01), levels(20.0, 2.5, 0.3, 0.004), levels(5.0, 1.0, 0.1, 0.002)


def test_the_clean_image_of_two_steps_on_gaussian_data() -> None:
    """A step from t to r multiplies x - mean by (s^2 + t r) / (s^2 + t^2); so D of two steps is a closed form."""
    x = 0.3 + column(T) * states(4)
    shrink = lambda t, r: (S**2 + t * r) / (S**2 + t**2)
    both = shrink(T, M) * shrink(M, R)
    expected = 0.3 + column((both - R / T) / (1 - R / T)) * (x - 0.3)
    torch.testing.assert_close(two_steps(WORLD.denoiser, M)(x, x, x, T, R), expected, rtol=1e-12, atol=1e-12)


def _curved(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(x) / (1 + column(sigma)) + 0.2


@pytest.mark.parametrize("denoiser", [WORLD.denoiser, MIXTURE.denoiser, _curved], ids=["gaussian", "mixture", "curved"])
def test_one_step_of_the_student_is_two_of_the_teacher(denoiser: Function) -> None:
    """With D in the place of the denoiser, Euler's step from t to r ends where the two steps end: an identity."""
    x = column(T) * states(4)
    half = euler_step(denoiser(x, T), x, column(T), column(M))
    end = euler_step(denoiser(half, M), half, column(M), column(R))
    d = two_steps(denoiser, M)(x, x, x, T, R)
    torch.testing.assert_close(euler_step(d, x, column(T), column(R)), end, rtol=1e-12, atol=1e-12)


@given(st.floats(0.01, 80), st.floats(0.05, 0.95), st.floats(0.0, 0.95), st.floats(-3, 3), st.floats(-2, 2), st.floats(-2, 2))
def test_the_identity_holds_for_any_levels_and_any_teacher(
    t: float, middle: float, last: float, x: float, a: float, b: float
) -> None:
    m, r = t * middle, t * middle * last
    state = torch.full((1, 1, 1, 1), x * t, dtype=torch.float64)
    denoiser = lambda x, s: a * torch.sin(x) + b * column(s)
    half = euler_step(denoiser(state, levels(t)), state, t, m)
    end = euler_step(denoiser(half, levels(m)), half, m, r)
    d = two_steps(denoiser, levels(m))(state, state, state, levels(t), levels(r))
    scale = 1e-12 * (1 + abs(x * t) + abs(a) + abs(b) * t)
    assert float((euler_step(d, state, t, r) - end).abs()) < scale


def test_at_the_end_the_clean_image_is_where_the_steps_end() -> None:
    """Where t'' = 0 the last step of the teacher gives D(x', t') itself, and so does the student's target."""
    zero = torch.zeros(4, dtype=torch.float64)
    x = column(T) * states(4)
    half = euler_step(MIXTURE.denoiser(x, T), x, column(T), column(M))
    d = two_steps(MIXTURE.denoiser, M)(x, x, x, T, zero)
    torch.testing.assert_close(d, MIXTURE.denoiser(half, M), rtol=1e-13, atol=1e-13)
    assert bool(torch.isfinite(d).all())
    # One image of a batch that ends at 0 does not change the others.
    mixed = two_steps(MIXTURE.denoiser, M)(x, x, x, T, R.where(torch.tensor([True, False, True, False]), zero))
    torch.testing.assert_close(mixed[1::2], d[1::2])
    torch.testing.assert_close(mixed[::2], two_steps(MIXTURE.denoiser, M)(x, x, x, T, R)[::2])


def test_straight_trajectories_have_nothing_to_distil() -> None:
    """A single atom: the ODE's trajectories are straight, and the target is the atom at every level."""
    atom = torch.tensor([0.4, -0.7], dtype=torch.float64).expand(4, 1, 1, 2)
    x = column(T) * states(4)
    d = two_steps(lambda x, s: atom, M)(x, x, x, T, R)
    torch.testing.assert_close(d, atom, rtol=0, atol=1e-11)


def test_the_teacher_is_asked_twice_and_learns_nothing() -> None:
    asked: list[tuple[Tensor, Tensor, bool]] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append((x, sigma, torch.is_grad_enabled()))
        return WORLD.denoiser(x, sigma)

    y, z = states(4), states(4).flip(0)
    weight, a = torch.ones(4).double(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    path = two_steps(denoiser, M)
    terms = discrete(lambda x, s: a * x, None, y, z, T, R, path=path, distance=l2, weight=weight)
    (x_t, t, grad), (x_m, m, _) = asked
    assert not grad
    assert torch.equal(t, T)
    assert torch.equal(m, M)
    torch.testing.assert_close(x_t, y + column(T) * z)
    torch.testing.assert_close(x_m, euler_step(WORLD.denoiser(x_t, T), x_t, column(T), column(M)))
    d = path(x_t, y, z, T, R)
    torch.testing.assert_close(terms.loss, (a * x_t - d).square().flatten(1).mean(1))


def test_the_weight_is_the_truncated_ratio_of_signal_to_noise() -> None:
    t = levels(0.002, 0.1, 0.5, 1.0, 2.0, 80.0)
    torch.testing.assert_close(truncated_snr(t), levels(250_000.0, 100.0, 4.0, 1.0, 1.0, 1.0))


def test_the_weighted_error_is_that_of_image_or_noise_whichever_is_larger() -> None:
    """The truncated ratio is max(|x - x'|^2, |eps - eps'|^2): eps = (x_t - x) / t, so its error is that of x over t."""
    t, error = levels(0.1, 0.9, 1.1, 7.0), levels(0.3, 0.2, 0.5, 0.4)
    expected = torch.maximum(error**2, (error / t) ** 2)
    torch.testing.assert_close(truncated_snr(t) * error**2, expected)


# ---- all halvings


def _regressed(denoiser: Function, t: float, m: float, r: float) -> tuple[float, float]:
    """The affine student at level t, D = a x + b, that least squares with the objective's own targets gives."""
    y, z = 0.3 + S * states(64, 1), states(64, 1).flip(0)
    level, middle, to = (torch.full((64,), s, dtype=torch.float64) for s in (t, m, r))
    seen: list[Tensor] = []
    distance = lambda a, b: (seen.append(b), l2(a, b))[1]
    path = two_steps(denoiser, middle)
    discrete(lambda x, s: x, None, y, z, level, to, path=path, distance=distance, weight=torch.ones_like(level))
    x_t = (y + t * z).flatten()
    design = torch.stack([x_t, torch.ones_like(x_t)], 1)
    a, b = torch.linalg.lstsq(design, seen[0].reshape(-1, 1)).solution.flatten().tolist()
    return a, b


def _table(rows: dict[float, tuple[float, float]]) -> Function:
    """A student that knows the levels of its grid and nothing else."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        a, b = (torch.tensor([rows[float(s)][k] for s in sigma], dtype=torch.float64) for k in (0, 1))
        return column(a) * x + column(b)

    return denoiser


def _sampled(denoiser: Function, grid: list[float], x: Tensor) -> tuple[Tensor, int]:
    one: Callable[[Tensor, float], Tensor] = lambda x, s: denoiser(x, torch.full((len(x),), s, dtype=torch.float64))
    return integrate(one, x, grid, 1)


@pytest.mark.parametrize("steps", [2, 8, 64])
def test_the_student_of_every_halving_samples_as_the_first_teacher(steps: int) -> None:
    """On Gaussian data every student is affine, so it learns its targets exactly: n steps, n / 2, ..., 1 end at one point."""
    grid, x = denoiser_times(steps, 0.002, 80.0), 80.0 * states(5, 1)
    expected, calls = _sampled(WORLD.denoiser, grid, x)
    assert calls == steps
    teacher: Function = WORLD.denoiser
    while len(grid) > 2:
        coarse = grid[::2]
        teacher = _table({grid[i]: _regressed(teacher, *grid[i : i + 3]) for i in range(0, len(grid) - 1, 2)})
        grid = coarse
        found, calls = _sampled(teacher, grid, x)
        assert calls == len(grid) - 1
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert grid == [80.0, 0.0]
    # It is the teacher's own error that is kept: its n-step map, not the exact one.
    exact = WORLD.solution(x, 80.0, 0.0)
    assert float((found - exact).abs().max()) > 1e-3
