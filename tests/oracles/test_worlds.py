"""The closed-form worlds against second ways to the same answers: quadrature, gradients, integration, quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import Tensor

from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian, Mixture, ct_fixed_point, gaussian_average_velocity, gaussian_trigflow

World = Gaussian | Mixture


def _t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COVARIANCE = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
PLANE = Mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.5]]).double(), _t(0.1, 0.3, 0.2), _t(0.5, 0.2, 0.3))
WORLDS: dict[str, World] = {
    "number": Gaussian(0.4, 0.5),
    "diagonal": Gaussian(_t(0.3, -1.0), _t(0.5, 2.0)),
    "covariance": Gaussian.from_covariance(_t(0.3, -1.0, 0.1), COVARIANCE),
    "mixture": PLANE,
    "atoms": Mixture(_t(-1.0, 1.0)[:, None], _t(0.0, 0.0), _t(0.8, 0.2)),
}
DIMENSIONS = {"number": 4, "diagonal": 2, "covariance": 3, "mixture": 2, "atoms": 1}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 30.0])
def test_denoiser_score_and_velocity_are_one_identity(name: str, sigma: float) -> None:
    """D = x + sigma^2 grad log p (Tweedie), with the gradient by automatic differentiation of the density."""
    world = WORLDS[name]
    x = (_random(0, 20, DIMENSIONS[name]) * math.hypot(1, sigma)).requires_grad_()
    (gradient,) = torch.autograd.grad(world.log_density(x, sigma).sum(), x)
    x = x.detach()
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(world.score(x, sigma), gradient, **close)
    torch.testing.assert_close(world.denoiser(x, sigma), x + sigma**2 * gradient, **close)
    torch.testing.assert_close(world.velocity(x, sigma), (x - world.denoiser(x, sigma)) / sigma, **close)


@given(
    k=st.integers(1, 5),
    d=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    sigma=st.floats(0.02, 80.0),
    spread=st.floats(0.05, 3.0),
)
def test_identity_on_random_mixtures(k: int, d: int, seed: int, sigma: float, spread: float) -> None:
    stds = spread * (0.2 + _random(seed + 1, k).abs())
    world = Mixture(_random(seed, k, d), stds, 0.05 + _random(seed + 2, k).abs())
    x = (_random(seed + 3, 5, d) * (1 + sigma)).requires_grad_()
    (gradient,) = torch.autograd.grad(world.log_density(x, sigma).sum(), x)
    expected = x.detach() + sigma**2 * gradient
    torch.testing.assert_close(world.denoiser(x.detach(), sigma), expected, rtol=1e-8, atol=1e-9)


def test_densities_agree_with_scipy() -> None:
    x, sigma = _random(1, 6, 3), 0.8
    expected = stats.multivariate_normal([0.3, -1.0, 0.1], COVARIANCE.numpy() + sigma**2 * np.eye(3)).logpdf(x.numpy())
    torch.testing.assert_close(WORLDS["covariance"].log_density(x, sigma), torch.as_tensor(expected), rtol=1e-12, atol=0)

    x = _random(2, 6, 2)
    parts = [
        w * stats.multivariate_normal(m, (s**2 + sigma**2) * np.eye(2)).pdf(x.numpy())
        for m, s, w in zip(PLANE.means.numpy(), PLANE.stds.tolist(), PLANE.weights.tolist(), strict=True)
    ]
    torch.testing.assert_close(PLANE.log_density(x, sigma), torch.as_tensor(np.log(sum(parts))), rtol=1e-12, atol=0)


def test_denoiser_with_covariance_is_the_matrix_formula() -> None:
    x, sigma, mean = _random(3, 6, 3), 0.8, _t(0.3, -1.0, 0.1)
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(3).double())
    torch.testing.assert_close(WORLDS["covariance"].denoiser(x, sigma), mean + (x - mean) @ gain.T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("x", [-3.0, -0.4, 0.0, 0.3, 2.0])
def test_denoiser_is_the_posterior_mean(x: float) -> None:
    """E[y | x] by numerical integration over the data, which shares nothing with the closed form."""
    means, stds, weights, sigma = (-1.0, 0.4), (0.3, 0.1), (0.6, 0.4), 0.5

    def joint(y: float) -> float:
        return sum(w * stats.norm.pdf(y, m, s) for w, m, s in zip(weights, means, stds, strict=True)) * stats.norm.pdf(
            x, y, sigma
        )

    places = [-1.0, 0.4, x]
    above = integrate.quad(lambda y: y * joint(y), -8, 8, points=places, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
    below = integrate.quad(joint, -8, 8, points=places, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
    world = Mixture(_t(*means)[:, None], _t(*stds), _t(*weights))
    assert float(world.denoiser(_t(x)[:, None], sigma)) == pytest.approx(above / below, abs=1e-9)


def test_mixture_of_one_is_a_gaussian() -> None:
    gaussian, mixture = Gaussian(_t(0.3, -1.0), 0.4), Mixture(_t(0.3, -1.0)[None], _t(0.4), _t(2.0))
    x = 3 * _random(4, 7, 2)
    for name in ("denoiser", "score", "velocity", "log_density"):
        torch.testing.assert_close(getattr(mixture, name)(x, 1.3), getattr(gaussian, name)(x, 1.3), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(mixture.solution(x, 80.0, 0.0), gaussian.solution(x, 80.0, 0.0), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(mixture.solution(x, 0.002, 5.0), gaussian.solution(x, 0.002, 5.0), rtol=1e-11, atol=1e-12)


def _integrated(world: World, x: Tensor, sigma: float, to: float) -> Tensor:
    def slope(level: float, flat: np.ndarray) -> np.ndarray:
        return world.velocity(torch.as_tensor(flat).reshape(x.shape), level).numpy().ravel()

    answer = integrate.solve_ivp(slope, (sigma, to), x.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.as_tensor(answer.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("name", ["diagonal", "covariance", "mixture"])
def test_solution_is_the_integrated_ode(name: str) -> None:
    """Against an integrator that knows only the slope."""
    world = WORLDS[name]
    x = _random(5, 4, DIMENSIONS[name])
    torch.testing.assert_close(
        world.solution(80 * x, 80.0, 0.002), _integrated(world, 80 * x, 80.0, 0.002), rtol=1e-8, atol=1e-9
    )
    torch.testing.assert_close(world.solution(x, 0.3, 2.0), _integrated(world, x, 0.3, 2.0), rtol=1e-8, atol=1e-9)


def _by_quantiles(world: Mixture, x: float, sigma: float, to: float) -> float:
    """In one dimension the trajectories cannot cross, so they join equal quantiles."""
    means, stds = world.means[:, 0].numpy(), world.stds.numpy()
    weights = world.weights.numpy() / world.weights.numpy().sum()

    def tail(v: float, level: float, law: Callable[..., Any]) -> float:
        return float((weights * law((v - means) / np.sqrt(stds**2 + level**2))).sum())

    law = stats.norm.cdf if tail(x, sigma, stats.norm.cdf) < 0.5 else stats.norm.sf
    goal = math.log(tail(x, sigma, law))
    return float(optimize.brentq(lambda v: math.log(max(tail(v, to, law), 1e-300)) - goal, -700, 700, xtol=1e-15, rtol=1e-14))


@pytest.mark.parametrize(
    ("means", "stds", "weights"),
    [
        ((-1.0, 1.0), (0.3, 0.5), (0.8, 0.2)),
        ((-1.0, 0.2, 1.0), (0.05, 0.05, 0.1), (0.5, 0.2, 0.3)),
        ((-1.0, 1.0), (0.01, 0.01), (0.6, 0.4)),
        ((-1.0, 1.0), (0.0, 0.0), (0.8, 0.2)),
    ],
)
def test_mixture_solution_joins_equal_quantiles(
    means: tuple[float, ...], stds: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    """The stated accuracy of the integration."""
    world = Mixture(_t(*means)[:, None], _t(*stds), _t(*weights))
    x = 80 * torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]
    expected = torch.tensor([_by_quantiles(world, v, 80.0, 0.002) for v in x[:, 0].tolist()], dtype=torch.float64)[:, None]
    torch.testing.assert_close(world.consistency(x, 80.0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(world.solution(x, 80.0, 0.002, steps=160), expected, rtol=0, atol=2e-13)
    up = _by_quantiles(world, 0.3, 0.05, 3.0)
    assert float(world.solution(_t(0.3)[:, None], 0.05, 3.0)) == pytest.approx(up, abs=1e-10)


def test_integration_has_order_twelve() -> None:
    gaussian, mixture, x = Gaussian(0.0, 0.5), Mixture(_t(0.0)[:, None], _t(0.5), _t(1.0)), _t(1.0)[:, None]
    exact = gaussian.solution(x, 10.0, 0.01)
    errors = [float((mixture.solution(x, 10.0, 0.01, steps=steps) / exact - 1).abs()) for steps in (2, 4, 8)]
    assert errors[0] < 1e-5
    assert math.log2(errors[0] / errors[2]) / 2 > 11


@pytest.mark.parametrize("name", WORLDS)
def test_consistency_is_constant_along_a_trajectory_and_identity_at_its_end(name: str) -> None:
    world = WORLDS[name]
    x = 80 * _random(6, 5, DIMENSIONS[name])
    end = world.consistency(x, 80.0)
    for sigma in (10.0, 1.0, 0.1):
        torch.testing.assert_close(world.consistency(world.solution(x, 80.0, sigma), sigma), end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(world.consistency(end, 0.002), end, rtol=0, atol=1e-14)
    torch.testing.assert_close(world.solution(end, 0.002, 80.0), x, rtol=1e-6, atol=1e-6)


@settings(max_examples=30)
@given(
    mean=st.floats(-2, 2),
    std=st.floats(0.05, 3),
    x=st.floats(-5, 5),
    levels=st.tuples(st.floats(0, 80), st.floats(0, 80), st.floats(0, 80)),
)
def test_gaussian_solutions_compose(mean: float, std: float, x: float, levels: tuple[float, float, float]) -> None:
    world, a, (s, m, e) = Gaussian(mean, std), _t(x)[:, None], levels
    torch.testing.assert_close(world.solution(world.solution(a, s, m), m, e), world.solution(a, s, e), rtol=1e-12, atol=1e-11)


def test_solution_carries_the_density() -> None:
    """ln p_to(solution) + ln |d solution / dx| = ln p_sigma(x): the flow moves one distribution into the other."""
    x = 1.2 * _random(7, 4, 2)
    for world in (PLANE, WORLDS["diagonal"]):
        end = world.solution(x, 1.0, 0.2)
        jacobian = torch.stack(
            [torch.autograd.functional.jacobian(lambda v, w=world: w.solution(v[None], 1.0, 0.2)[0], row) for row in x]
        )
        moved = world.log_density(end, 0.2) + torch.logdet(jacobian)
        torch.testing.assert_close(moved, world.log_density(x, 1.0), rtol=0, atol=1e-8)


def test_forward_mode_derivatives_work() -> None:
    """Continuous-time objectives differentiate along a direction, in the state and in the level."""
    x, direction, h = _random(8, 3, 2), _random(9, 3, 2), 1e-5
    for call in (PLANE.denoiser, PLANE.velocity, PLANE.consistency, WORLDS["diagonal"].consistency):
        got = torch.func.jvp(lambda v, s, call=call: call(v, s), (x, _t(0.7)[0]), (direction, _t(0.4)[0]))[1]
        expected = (call(x + h * direction, 0.7 + 0.4 * h) - call(x - h * direction, 0.7 - 0.4 * h)) / (2 * h)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_fixed_point_is_the_composition_of_expected_euler_steps() -> None:
    """Training pulls f(x_{i+1}) to E[f(x_i)]: one Euler step with the exact denoiser, then the multiplier below."""
    grid, m, s = karras_grid(21), 0.4, 0.5
    world, a = Gaussian(m, s), ct_fixed_point(grid, s)
    offset = 1.7
    for i in range(20):
        t, r = float(grid[i + 1]), float(grid[i])
        x = _t(m + offset)[:, None]
        target = x + (r - t) * world.velocity(x, t)
        assert float(m + a[i] * (target - m)) == pytest.approx(float(m + a[i + 1] * offset), rel=1e-12)


def test_fixed_point_is_where_the_sampled_loss_is_least() -> None:
    """Least squares on drawn pairs: the regression of a_i x_i on x_{i+1} has the slope a_{i+1}."""
    grid, s, n = karras_grid(6), 0.5, 400_000
    a = ct_fixed_point(grid, s)
    y, z = s * _random(10, n), _random(11, n)
    for i in range(5):
        above, below = y + grid[i + 1] * z, y + grid[i] * z
        slope = float((above * a[i] * below).mean() / (above**2).mean())
        assert slope == pytest.approx(float(a[i + 1]), rel=0.01, abs=1e-4)


def test_bias_of_the_fixed_point_halves_with_the_intervals() -> None:
    exact = float(Gaussian(0.0, 0.5).consistency(_t(1.0)[:, None], 80.0))
    bias = [1 - float(ct_fixed_point(karras_grid(n), 0.5)[-1]) / exact for n in (161, 321, 641, 1281)]
    assert all(b > 0 for b in bias)
    for coarse, fine in zip(bias, bias[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 1.3)])
@pytest.mark.parametrize(("t", "r"), [(1.0, 0.0), (0.9, 0.3), (0.5, 0.499999), (0.2, 0.0)])
def test_average_velocity(mean: float, std: float, t: float, r: float) -> None:
    z = _t(0.9, -0.4)[:, None]

    # The instantaneous velocity is E[e - y | z], by the denoiser at sigma = t / (1 - t).
    if t < 1:
        denoised = Gaussian(mean, std).denoiser(z / (1 - t), t / (1 - t))
        torch.testing.assert_close(gaussian_average_velocity(z, t, t, std, mean), (z - denoised) / t, rtol=1e-11, atol=1e-12)

    def u(state: Tensor, early: Tensor, late: Tensor) -> Tensor:
        return gaussian_average_velocity(state, early, late, std, mean)

    # MeanFlow's identity u = v - (t - r) du/dt, the derivative along the trajectory.
    velocity = u(z, _t(t)[0], _t(t)[0])
    value, rate = torch.func.jvp(u, (z, _t(r)[0], _t(t)[0]), (velocity, _t(0.0)[0], _t(1.0)[0]))[:2]
    torch.testing.assert_close(value, velocity - (t - r) * rate, rtol=1e-11, atol=1e-11)

    # One step with it is the integrated trajectory.
    answer = integrate.solve_ivp(
        lambda time, state: u(torch.as_tensor(state)[:, None], _t(time)[0], _t(time)[0])[:, 0].numpy(),
        (t, r),
        z[:, 0].numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    torch.testing.assert_close((z - (t - r) * value)[:, 0], torch.as_tensor(answer.y[:, -1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("mean", "std", "sigma_data"), [(0.0, 1.0, 0.5), (0.4, 0.3, 0.5), (-0.2, 0.5, 1.0)])
@pytest.mark.parametrize("t", [1e-4, 0.2, 0.9, 1.5])
def test_trigflow_is_the_world_on_another_clock(mean: float, std: float, sigma_data: float, t: float) -> None:
    """sigma = sigma_data tan t and x_t = cos t x_sigma; derivatives against differences along the trajectory."""
    x = _t(0.7, -1.1)[:, None]
    world, sigma = Gaussian(mean, std), sigma_data * math.tan(t)
    answer = gaussian_trigflow(x, t, std, sigma_data, mean)
    loose: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9 + 1e-15 / t}
    torch.testing.assert_close(answer.f, world.solution(x / math.cos(t), sigma, 0.0), rtol=1e-12, atol=1e-12)
    denoised = world.denoiser(x / math.cos(t), sigma)
    torch.testing.assert_close(answer.teacher, (math.cos(t) * x - denoised) / (math.sin(t) * sigma_data), **loose)
    torch.testing.assert_close(answer.student, (math.cos(t) * x - answer.f) / (math.sin(t) * sigma_data), **loose)

    if t > 1e-3:
        h = 1e-4

        def along(time: float) -> Tensor:
            """The state of the same trajectory at another time."""
            sigma_there = sigma_data * math.tan(time)
            there = math.cos(time) * world.solution(x / math.cos(t), sigma, sigma_there)
            return gaussian_trigflow(there, time, std, sigma_data, mean).student

        difference = (along(t + h) - along(t - h)) / (2 * h)
        torch.testing.assert_close(answer.student_rate, difference, rtol=1e-6, atol=1e-6)
