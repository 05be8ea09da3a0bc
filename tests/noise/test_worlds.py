"""Worlds as tools: shapes, devices of randomness, bad input. Their mathematics is in tests/oracles."""

from __future__ import annotations

import math

import pytest
import torch

from atonce.core import streams
from atonce.core.errors import InputError
from atonce.noise.worlds import Gaussian, Mixture

_MIX = Mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.1, 0.3]), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize(
    "world", [Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])), _MIX], ids=["gaussian", "mixture"]
)
def test_sample_is_a_function_of_seed_and_index(world: Gaussian | Mixture) -> None:
    whole = world.sample(10, seed=3)
    assert whole.shape == (10, 2)
    assert whole.dtype == torch.float64
    assert torch.equal(torch.cat([world.sample(4, 3), world.sample(6, 3, first=4)]), whole)
    assert not torch.equal(world.sample(10, seed=4), whole)


def test_sample_shares_no_numbers_with_training_noise() -> None:
    y = Gaussian(0.0, 1.0).sample(50, seed=0, shape=(16,))
    for stream in set(streams.Stream) - {streams.Stream.WORLD}:
        z = streams.normal(0, torch.arange(50), (16,), stream).to(torch.float64)
        assert abs(float(torch.corrcoef(torch.stack([y.flatten(), z.flatten()]))[0, 1])) < 0.15


def test_moments_of_samples() -> None:
    n = 40_000
    y = Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])).sample(n, seed=1)
    torch.testing.assert_close(y.mean(0), torch.tensor([0.3, -1.0]).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(y.std(0), torch.tensor([0.5, 2.0]).double(), atol=0, rtol=0.02)

    covariance = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
    y = Gaussian.from_covariance(torch.tensor([1.0, 0.0, -1.0]), covariance).sample(n, seed=2)
    torch.testing.assert_close(torch.cov(y.T), covariance, atol=0.05, rtol=0)

    y = _MIX.sample(n, seed=3)
    left = y[:, 0] < 0  # the components are ten and three standard deviations from the border
    assert float(left.double().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(y[left].std(0), torch.tensor([0.1, 0.1]).double(), atol=0, rtol=0.05)
    torch.testing.assert_close(y[~left].mean(0), torch.tensor([1.0, 0.5]).double(), atol=0.02, rtol=0)


def test_number_worlds_take_any_shape() -> None:
    world = Gaussian()
    assert world.sample(3, 0).shape == (3, 1)
    x = world.sample(3, 0, shape=(2, 4, 4)) + 1
    for answer in (world.denoiser(x, 1.0), world.score(x, 1.0), world.velocity(x, 1.0), world.consistency(x, 1.0)):
        assert answer.shape == x.shape
    assert world.log_density(x, 1.0).shape == (3,)


def test_mixtures_of_images() -> None:
    means = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    world = Mixture(means, torch.tensor([0.2, 0.1]), torch.tensor([0.5, 0.5]))
    x = world.sample(5, 0)
    assert x.shape == (5, 1, 2, 2)
    for answer in (world.denoiser(x, 1.0), world.score(x, 1.0), world.velocity(x, 1.0), world.consistency(x, 1.0)):
        assert answer.shape == x.shape
    flat = Mixture(means.flatten(1), world.stds, world.weights)
    torch.testing.assert_close(world.denoiser(x, 0.7).flatten(1), flat.denoiser(x.flatten(1), 0.7))


@pytest.mark.parametrize(
    "world", [Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])), _MIX], ids=["gaussian", "mixture"]
)
def test_each_sample_may_have_its_own_level(world: Gaussian | Mixture) -> None:
    x = world.sample(3, 0) + 0.1
    sigma, to = torch.tensor([0.1, 1.0, 20.0]), torch.tensor([1.0, 0.0, 0.5])
    for name in ("denoiser", "score", "velocity", "log_density", "consistency"):
        together = getattr(world, name)(x, sigma)
        for i in range(3):
            torch.testing.assert_close(
                together[i : i + 1], getattr(world, name)(x[i : i + 1], float(sigma[i])), rtol=1e-12, atol=1e-12
            )
    together = world.solution(x, sigma, to)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], world.solution(x[i : i + 1], float(sigma[i]), float(to[i])), rtol=1e-12, atol=1e-12
        )


def test_results_are_double_whatever_comes_in() -> None:
    x = torch.zeros(2, 2)
    for world in (Gaussian(), _MIX):
        for name in ("denoiser", "score", "velocity", "log_density", "consistency"):
            assert getattr(world, name)(x, 1.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: Gaussian(0.0, -1.0), "standard deviation"),
        (lambda: Gaussian(0.0, math.nan), "standard deviation"),
        (lambda: Gaussian.from_covariance(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "eigenvalue"),
        (lambda: Gaussian().denoiser(torch.zeros(2, 1), -1.0), "noise level"),
        (lambda: Gaussian().denoiser(torch.zeros(2, 1), math.nan), "noise level"),
        (lambda: Gaussian().denoiser(torch.zeros(2, 1), torch.ones(3)), "do not fit"),
        (lambda: Gaussian(0.0, 0.0).score(torch.zeros(2, 1), 0.0), "point mass"),
        (lambda: Mixture(torch.zeros(2), torch.ones(2), torch.ones(2)), "means"),
        (lambda: Mixture(torch.zeros(2, 1), torch.ones(3), torch.ones(2)), "means"),
        (lambda: Mixture(torch.zeros(2, 1), -torch.ones(2), torch.ones(2)), "at least 0"),
        (lambda: Mixture(torch.zeros(2, 1), torch.ones(2), torch.zeros(2)), "at least 0"),
        (lambda: _MIX.denoiser(torch.zeros(2, 3), 1.0), "does not fit"),
        (lambda: Mixture(torch.zeros(2, 1), torch.zeros(2), torch.ones(2)).score(torch.zeros(1, 1), 0.0), "point mass"),
        (lambda: Mixture(torch.zeros(2, 1), torch.zeros(2), torch.ones(2)).solution(torch.zeros(1, 1), 1.0, 0.0), "point mass"),
        (lambda: _MIX.solution(torch.zeros(1, 2), 1.0, 0.0, steps=0), "steps"),
    ],
)
def test_bad_values_are_named(call: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        call()  # type: ignore[operator]
