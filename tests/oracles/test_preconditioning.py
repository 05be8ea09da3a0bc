"""Preconditionings where the network's right answer is known: F in closed form, in its own variables, gives f exactly.

The closed forms below are worked out by hand for data N(m, s^2) and a preconditioning made for standard deviation d, which need
not be s. They know the noise level from c_noise alone and the state from the network's input alone, as a network does:
sigma = exp(4 c_noise) and x = u sqrt(sigma^2 + d^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Gaussian, Mixture
from atonce.preconditioning import Preconditioning

Network = Callable[[Tensor, Tensor], Tensor]

# (m, s, d): matched, off-centre, data narrower and wider than assumed, and the 8x8 digits with EDM's usual 0.5.
DATA = [(0.0, 0.5, 0.5), (0.3, 0.5, 0.5), (-0.2, 0.1, 0.5), (0.7, 2.0, 0.5), (-0.389, 0.752, 0.5), (0.0, 1.0, 3.0)]
CASES = pytest.mark.parametrize(("m", "s", "d"), DATA)
ENDS = [0.0, 0.002, 0.003, 0.3]


def denoising(m: float, s: float, d: float) -> Network:
    """F of the exact denoiser under EDM's preconditioning.

    D = (s^2 x + sigma^2 m) / (s^2 + sigma^2), minus c_skip x and over c_out:
    F = sigma / (d (s^2 + sigma^2)) ((s^2 - d^2) u + m sqrt(sigma^2 + d^2)); it is 0 for centred data with s = d.
    """

    def network(u: Tensor, c_noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise)[:, None]
        return sigma / (d * (s**2 + sigma**2)) * ((s**2 - d**2) * u + m * torch.sqrt(sigma**2 + d**2))

    return network


def mapping(m: float, s: float, d: float, end: float) -> Network:
    """F of the exact consistency function, with the boundary shifted to ``end`` (0: EDM's own coefficients).

    f = m + g (x - m), g = sqrt((s^2 + end^2) / (s^2 + sigma^2)). With q = (1 - g) / (sigma - end)
    = (sigma + end) / ((s^2 + sigma^2) (1 + g)) and (1 - c_skip) / (sigma - end) = (sigma - end) / ((sigma - end)^2 + d^2) =: p,
    F = sqrt(sigma^2 + d^2) / d ((p - q) x + q m): no 0 / 0 is left at sigma = end.
    """

    def network(u: Tensor, c_noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise)[:, None]
        root = torch.sqrt(sigma**2 + d**2)
        g = torch.sqrt((s**2 + end**2) / (s**2 + sigma**2))
        q = (sigma + end) / ((s**2 + sigma**2) * (1 + g))
        p = (sigma - end) / ((sigma - end) ** 2 + d**2)
        return root / d * ((p - q) * root * u + q * m)

    return network


def preconditioning(d: float, end: float) -> Preconditioning:
    """The consistency model's for this end: EDM's own where it is 0."""
    return Preconditioning("boundary", d, end) if end else Preconditioning("edm", d, 0.0)


def _states(s: float, levels: Tensor) -> Tensor:
    """Typical states [B, 3] at each noise level, with data of spread ``s``."""
    z = torch.randn(len(levels), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return z * torch.sqrt(levels**2 + s**2)[:, None]


def _levels(end: float = 0.0) -> Tensor:
    grid = karras_grid(25)
    return torch.cat([torch.tensor([end], dtype=torch.float64), grid[grid > end]])


@CASES
def test_the_denoiser_of_gaussian_data(m: float, s: float, d: float) -> None:
    sigma = _levels()
    x = m + _states(s, sigma)
    out = Preconditioning("edm", d, 0.0)(denoising(m, s, d), x, sigma)
    torch.testing.assert_close(out, Gaussian(m, s).denoiser(x, sigma), rtol=1e-12, atol=1e-12)


@CASES
@pytest.mark.parametrize("end", ENDS)
def test_the_consistency_function_of_gaussian_data(m: float, s: float, d: float, end: float) -> None:
    sigma = _levels(end)
    x = m + _states(s, sigma)
    out = preconditioning(d, end)(mapping(m, s, d, end), x, sigma)
    torch.testing.assert_close(out, Gaussian(m, s).consistency(x, sigma, end), rtol=1e-12, atol=1e-12)
    assert torch.equal(out[0], x[0])


@pytest.mark.parametrize("end", [0.002, 0.3])
def test_the_boundary_needs_its_own_coefficients(end: float) -> None:
    """The right F under the coefficients of another end is not the consistency function: the test above can tell them apart."""
    sigma = torch.tensor([2 * end, 0.5, 80.0], dtype=torch.float64)
    x = 0.3 + _states(0.6, sigma)
    truth = Gaussian(0.3, 0.6).consistency(x, sigma, end)
    for other in (0.0, 0.5 * end):
        out = preconditioning(0.5, other)(mapping(0.3, 0.6, 0.5, end), x, sigma)
        assert bool(((out - truth).abs().amax(1) > 1e-6).all())


@CASES
@pytest.mark.parametrize("end", ENDS)
def test_what_the_network_has_to_give_stays_of_order_one(m: float, s: float, d: float, end: float) -> None:
    """The reason for preconditioning: the F that our coefficients ask for is bounded over all levels, right down to the end."""
    sigma = torch.cat([_levels(end)[1:], end + torch.tensor([1e-2, 1e-4, 1e-6], dtype=torch.float64)])
    x = m + _states(s, sigma)
    for shape, f in (
        (preconditioning(d, end), Gaussian(m, s).consistency(x, sigma, end)),
        (Preconditioning("edm", d, 0.0), Gaussian(m, s).denoiser(x, sigma)),
    ):
        c_skip, c_out, _, _ = (c[:, None] for c in shape.coefficients(sigma))
        assert float(((f - c_skip * x) / c_out).abs().max()) < 4 * max(s / d, 1.0)


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5, 3.0, 80.0])
@CASES
def test_the_denoiser_is_what_the_best_network_learns(m: float, s: float, d: float, sigma: float) -> None:
    """F's target (y - c_skip x) / c_out regressed on F's input c_in x has the closed form's slope and intercept.

    Covariances of y and x = y + sigma z by hand: var x = s^2 + sigma^2, cov(y, x) = s^2.
    """
    level = torch.tensor([sigma], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = Preconditioning("edm", d, 0.0).coefficients(level)
    slope = (s**2 - c_skip * (s**2 + sigma**2)) / c_out * c_in / (c_in**2 * (s**2 + sigma**2))
    intercept = (1 - c_skip) * m / c_out - slope * c_in * m
    at = lambda u: denoising(m, s, d)(torch.full((1, 1), u, dtype=torch.float64), c_noise)[0]
    torch.testing.assert_close(at(0.0), intercept, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(at(1.0) - at(0.0), slope, rtol=1e-9, atol=1e-10)


@given(st.floats(0.05, 5.0), st.floats(0.05, 5.0), st.floats(-2.0, 2.0), st.floats(1e-3, 100.0), st.sampled_from(ENDS))
def test_any_gaussian_data(s: float, d: float, m: float, sigma: float, end: float) -> None:
    level = torch.tensor([max(sigma, end)], dtype=torch.float64)
    x = m + _states(s, level)
    world, scale = Gaussian(m, s), 1 + float(x.abs().max())
    f = preconditioning(d, end)(mapping(m, s, d, end), x, level)
    torch.testing.assert_close(f, world.consistency(x, level, end), rtol=0, atol=1e-11 * scale)
    denoised = Preconditioning("edm", d, 0.0)(denoising(m, s, d), x, level)
    torch.testing.assert_close(denoised, world.denoiser(x, level), rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("end", [0.0, 0.002])
def test_single_precision_keeps_six_digits(end: float) -> None:
    """The coefficients in float32, as in training: against float64, relative to the larger of state and result."""
    sigma = _levels(end)[1:]
    x = _states(0.6, sigma)
    truth = Gaussian(0.3, 0.6).consistency(x, sigma, end)
    out = preconditioning(0.5, end)(mapping(0.3, 0.6, 0.5, end), x.float(), sigma.float())
    assert out.dtype == torch.float32
    # c_skip x and c_out F nearly cancel nowhere: both are of the order of the data, so 1e-5 of 1 is a few last bits.
    assert float((out.double() - truth).abs().max()) < 1e-5


# ---- two points: not linear in x, and still known


def test_two_points() -> None:
    """Data at -1 and 1 alike: D = tanh(x / sigma^2), so F = (tanh(x / sigma^2) - c_skip x) / c_out in its variables."""
    d, points = 1.0, torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    world = Mixture(points, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))

    def network(u: Tensor, c_noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise)[:, None]
        root = torch.sqrt(sigma**2 + d**2)
        return (root * torch.tanh(root * u / sigma**2) - d**2 * u) / (sigma * d)

    sigma = torch.tensor([0.05, 0.3, 0.5, 1.0, 3.0, 80.0], dtype=torch.float64)
    x = _states(1.0, sigma)[:, :1]
    out = Preconditioning("edm", d, 0.0)(network, x, sigma)
    torch.testing.assert_close(out, world.denoiser(x, sigma), rtol=1e-12, atol=1e-12)
    assert math.isclose(float(world.denoiser(x[3:4], 1.0)), math.tanh(float(x[3])), rel_tol=1e-12)
