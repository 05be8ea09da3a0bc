"""The Gaussian that is fitted to images: its answers are those of the closed forms with the images' own moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.noise.worlds import Gaussian
from atonce.reports.inspection_gaussian import fit_gaussian


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(n: int, channels: int, size: int) -> Tensor:
    """Images whose pixels depend on their neighbours and on the other channels, uint8."""
    x = numbers(n, channels, size + 4, size + 4)
    x = torch.nn.functional.avg_pool2d(x, 5, 1)
    x = x + 0.7 * x.mean(1, keepdim=True)
    return (x * 110 + 120).clamp(0, 255).to(torch.uint8)


def test_with_many_images_it_has_their_whole_covariance() -> None:
    images = smooth(400, 3, 4)
    flat = from_uint8(images).double().flatten(1)
    exact = Gaussian.from_covariance(flat.mean(0), torch.cov(flat.T, correction=0))
    fitted = fit_gaussian(images)
    x = numbers(5, 3, 4, 4, seed=1)
    assert fitted.full
    for sigma in (0.01, 0.5, 20.0):
        torch.testing.assert_close(fitted.denoiser(x, sigma).flatten(1), exact.denoiser(x.flatten(1), sigma))
        torch.testing.assert_close(
            fitted.consistency(x, sigma, 0.002).flatten(1), exact.consistency(x.flatten(1), sigma, 0.002)
        )


@pytest.mark.parametrize(("n", "channels", "size"), [(400, 1, 4), (40, 3, 6), (40, 1, 9)])
def test_its_coordinates_are_a_rotation(n: int, channels: int, size: int) -> None:
    fitted = fit_gaussian(smooth(n, channels, size))
    x = numbers(7, channels, size, size, seed=1).double()
    torch.testing.assert_close(fitted.back(fitted.turn(x)), x)
    lengths = (fitted.turn(x[1:]) - fitted.turn(x[:-1])).norm(dim=1)
    torch.testing.assert_close(lengths, (x[1:] - x[:-1]).flatten(1).norm(dim=1))


def test_with_few_images_each_frequency_has_their_variance() -> None:
    images = smooth(60, 3, 6)
    fitted = fit_gaussian(images)
    assert not fitted.full
    coordinates = fitted.turn(from_uint8(images))
    torch.testing.assert_close(coordinates.mean(0), torch.zeros(108, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(coordinates.square().mean(0).sqrt(), torch.as_tensor(fitted.world.std))


@pytest.mark.parametrize("n", [60, 600])
def test_it_denoises_better_than_a_gaussian_without_covariance(n: int) -> None:
    images, unseen = smooth(n + 200, 3, 6)[:n], from_uint8(smooth(n + 200, 3, 6)[n:]).double()
    fitted = fit_gaussian(images)
    pixels = from_uint8(images).double()
    plain = Gaussian(pixels.mean(0), pixels.std(0))
    x = unseen + 0.5 * numbers(*unseen.shape, seed=2)
    assert (fitted.denoiser(x, 0.5) - unseen).square().mean() < 0.8 * (plain.denoiser(x, 0.5) - unseen).square().mean()


def test_one_image_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 images, there are 1"):
        fit_gaussian(smooth(1, 1, 4))
