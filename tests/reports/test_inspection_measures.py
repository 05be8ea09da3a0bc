"""What an inspection measures, on functions and images of which the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.reports.inspection_gaussian import fit_gaussian
from atonce.reports.inspection_measures import closest, curves, neighbours, regions, sensitivity

SIGMAS = (0.01, 0.1, 1.0, 10.0, 80.0)


def pictures(n: int, channels: int = 1, size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def test_the_exact_function_of_the_gaussian_lies_on_its_own_curves() -> None:
    images = pictures(200)
    fitted = fit_gaussian(images)
    made = curves(lambda x, s: fitted.consistency(x, s, 0.002), from_uint8(images[:20]), SIGMAS, fitted, 0.002)
    assert made.gap == made.gap_exact
    assert made.error == made.error_exact
    assert made.gap.sigmas == SIGMAS[1:]
    assert made.error.sigmas == SIGMAS
    assert made.images == 20


def test_the_curves_of_the_gaussian_are_the_closed_forms() -> None:
    """On data from the Gaussian itself the mean square of each curve is a sum over principal axes."""
    fitted = fit_gaussian(pictures(400))
    world, end = fitted.world, 0.002
    images = fitted.back(world.sample(4000, 0)).float()
    made = curves(fitted.denoiser, images, SIGMAS, fitted, end)
    s = torch.as_tensor(world.std)

    def gain(sigma: float) -> Tensor:
        return ((s**2 + end**2) / (s**2 + sigma**2)).sqrt()

    for i, sigma in enumerate(SIGMAS):
        posterior = s**2 * sigma**2 / (s**2 + sigma**2)
        assert made.error.values[i] == pytest.approx(float(posterior.mean().sqrt()), rel=0.02)
        # f = a(sigma) (y + sigma z): its distance to y
        exact = (gain(sigma) - 1) ** 2 * s**2 + gain(sigma) ** 2 * sigma**2
        assert made.error_exact is not None
        assert made.error_exact.values[i] == pytest.approx(float(exact.mean().sqrt()), rel=0.02)
    assert made.error == made.error_linear
    for i, (low, high) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        variance = (gain(high) - gain(low)) ** 2 * s**2 + (gain(high) * high - gain(low) * low) ** 2
        # A mean of lengths is a little below the root of the mean square, in 16 dimensions by 1/64.
        ratio = made.gap_exact.values[i] / float(variance.mean().sqrt())
        assert 0.96 < ratio < 1.0


def test_standard_errors_are_those_of_the_mean() -> None:
    fitted = fit_gaussian(pictures(400))
    images = fitted.back(fitted.world.sample(3200, 0)).float()
    parts = [curves(fitted.denoiser, images[i : i + 64], SIGMAS, fitted, None, seed=i) for i in range(0, 3200, 64)]
    for name in ("gap", "error"):
        values = torch.tensor([getattr(part, name).values for part in parts])
        errors = torch.tensor([getattr(part, name).errors for part in parts])
        torch.testing.assert_close(errors.mean(0), values.std(0), rtol=0.35, atol=0.0)


def test_a_denoiser_has_no_consistency_function_beside_it() -> None:
    fitted = fit_gaussian(pictures(200))
    made = curves(fitted.denoiser, from_uint8(pictures(8)), SIGMAS, fitted, None)
    assert made.error_exact is None
    assert made.gap == made.gap_exact


def test_closest_agrees_with_all_distances_whatever_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, pool = pictures(6, 3, seed=1), pictures(50, 3, seed=2)
    distances = torch.cdist(from_uint8(x).double().flatten(1), from_uint8(pool).double().flatten(1)) / math.sqrt(48)
    low, index = distances.topk(4, largest=False)
    for values in (48 * 7, 1 << 23):
        monkeypatch.setattr("atonce.reports.inspection_measures._POOL_VALUES", values)
        found, where = closest(x, pool, 4)
        torch.testing.assert_close(found, low, rtol=1e-6, atol=1e-7)
        assert torch.equal(where, index)


def test_copies_of_training_images_are_found_and_come_first() -> None:
    training, held_out = pictures(60, seed=1), pictures(40, seed=2)
    samples = torch.cat([pictures(5, seed=3), training[[7, 31]]])
    found = neighbours(samples, training, held_out, torch.arange(3), shown=3)
    assert torch.equal(found.samples[:2], training[[7, 31]])
    assert torch.equal(found.nearest[:2, 0], training[[7, 31]])
    assert float(found.distances[:2, 0].max()) < 1e-6
    assert float(found.distances[2, 0]) > 0.1
    assert found.unseen
    assert found.searched == 60
    only = neighbours(training[:10], training, held_out, torch.arange(3))
    assert only.ratio == pytest.approx(0.0, abs=1e-5)


def test_samples_like_the_data_have_a_ratio_near_one() -> None:
    found = neighbours(pictures(200, seed=3), pictures(300, seed=1), pictures(200, seed=2), torch.arange(3))
    assert found.ratio == pytest.approx(1.0, abs=0.05)


def test_without_held_out_images_each_training_image_is_compared_with_the_others() -> None:
    training = pictures(60, seed=1)
    training[10] = training[20] = training[30]  # copies of each other
    probe = torch.tensor([4, 10, 20, 30])
    found = neighbours(pictures(5, seed=3), training, None, probe)
    assert not found.unseen
    distances = torch.cdist(*[from_uint8(training).double().flatten(1)] * 2).fill_diagonal_(torch.inf) / 4
    torch.testing.assert_close(found.real, distances[probe].min(1).values, rtol=1e-6, atol=1e-6)


def test_repeated_real_images_give_no_ratio() -> None:
    training = pictures(20, seed=1)
    assert neighbours(pictures(5, seed=3), training, training[:6], torch.arange(3)).ratio is None


def test_one_training_image_is_too_few() -> None:
    with pytest.raises(InputError, match="at least 2 training images, there are 1"):
        neighbours(pictures(5), pictures(1), None, torch.arange(1))


@pytest.mark.parametrize(("height", "width", "grid"), [(8, 8, 4), (28, 28, 4), (7, 10, 3), (5, 5, 4)])
def test_regions_cover_every_pixel_once(height: int, width: int, grid: int) -> None:
    seen = torch.zeros(height, width)
    for top, bottom, left, right in regions(height, width, grid):
        seen[top:bottom, left:right] += 1
    assert torch.equal(seen, torch.ones(height, width))


def test_noise_that_is_the_image_decides_its_own_place() -> None:
    z, other = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = sensitivity(lambda noise: noise, z, other)
    assert found.inside == pytest.approx(1.0)
    top, bottom, left, right = found.regions[5]
    outside = found.maps[5].clone()
    outside[top:bottom, left:right] = 0
    assert float(outside.max()) == 0.0
    expected = (other - z)[:, :, top:bottom, left:right].double().square().mean((0, 1)).sqrt()
    torch.testing.assert_close(found.maps[5][top:bottom, left:right], expected)


def test_noise_that_shifts_the_whole_image_is_spread_evenly() -> None:
    z, other = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = sensitivity(lambda noise: noise.mean((1, 2, 3), keepdim=True).expand_as(noise), z, other)
    assert found.inside == pytest.approx(1 / 16)
    assert found.influence.shape == (16,)


def test_noise_that_decides_nothing_changes_nothing() -> None:
    z = torch.zeros(2, 1, 8, 8)
    found = sensitivity(torch.zeros_like, z, z + 1)
    assert found.inside == 0.0
    assert float(found.influence.max()) == 0.0
