"""Interpolation on the sphere, and the noise that an image comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce import editing as edit
from atonce.core.errors import InputError
from atonce.editing.latent import invert_with_info
from atonce.model import ConsistencyModel


def unit(n: int, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def _t(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ---- slerp


@pytest.mark.parametrize(
    ("a", "b", "alpha", "between"),
    [
        ((1.0, 0.0), (0.0, 1.0), 0.25, (0.92387953, 0.38268343)),
        ((1.0, 2.0, 3.0), (-1.0, 0.5, 2.0), 0.3, (0.40901669, 1.64550728, 2.88199787)),
    ],
)
def test_known_values(a: tuple[float, ...], b: tuple[float, ...], alpha: float, between: tuple[float, ...]) -> None:
    torch.testing.assert_close(edit.slerp(_t(*a), _t(*b), alpha), _t(*between), rtol=0, atol=6e-9)


def test_every_sample_has_its_own_angle() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0], [math.cos(0.3), math.sin(0.3)]], dtype=torch.float64)
    middle = edit.slerp(a, b, 0.5)
    torch.testing.assert_close(middle[1], torch.tensor([math.cos(0.15), math.sin(0.15)], dtype=torch.float64))
    torch.testing.assert_close(middle[0], torch.tensor([0.5**0.5, 0.5**0.5], dtype=torch.float64))


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_way_stays_on_the_sphere_and_ends_where_it_should(seed: int, alpha: float) -> None:
    a, b = unit(3, (5,), seed).double(), unit(3, (5,), seed + 1).double()
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    z = edit.slerp(a, b, alpha)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(edit.slerp(a, b, 0.0), a, rtol=0, atol=1e-12)
    torch.testing.assert_close(edit.slerp(a, b, 1.0), b, rtol=0, atol=1e-12)
    torch.testing.assert_close(edit.slerp(b, a, 1 - alpha), z, rtol=0, atol=1e-9)
    # At constant speed: the angle from a is alpha times the whole.
    psi, part = torch.arccos((a * b).sum(1)), torch.arccos((a * z).sum(1).clamp(-1, 1))
    torch.testing.assert_close(part, alpha * psi, rtol=0, atol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-9, 1e-7, 1e-5])
def test_the_same_direction_is_a_straight_line(apart: float) -> None:
    a = unit(2, (6,)).double()
    b = 2 * a + apart * unit(2, (6,), 1).double()
    torch.testing.assert_close(edit.slerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (_t(1.0, 2.0), _t(-1.0, -2.0), "two noises point in opposite directions"),
        (_t(1.0, 2.0), _t(0.0, 0.0), "a noise is all zeros"),
        (_t(1.0, 2.0), _t(1.0, 2.0, 3.0), "they must be equal"),
    ],
)
def test_ways_that_do_not_exist(a: Tensor, b: Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        edit.slerp(a, b, 0.5)


# ---- interpolation


def test_images_on_the_way(model: ConsistencyModel) -> None:
    z = unit(4)
    out = edit.interpolate(model, z[:2], z[2:], 5)
    assert out.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(out[:, 0], model.sample(2, noise=z[:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, 4], model.sample(2, noise=z[2:]), rtol=0, atol=1e-5)
    middle = model.sample(2, noise=edit.slerp(z[:2], z[2:], 0.5))
    torch.testing.assert_close(out[:, 2], middle, rtol=0, atol=1e-5)
    torch.testing.assert_close(edit.interpolate(model, z[1], z[3], 5, batch=2), out[1], rtol=0, atol=1e-5)


def test_labels_of_an_interpolation(classes: ConsistencyModel) -> None:
    z = unit(4)
    mixed = edit.interpolate(classes, z[:2], z[2:], 3, labels=[2, 0])
    torch.testing.assert_close(mixed[0], edit.interpolate(classes, z[0], z[2], 3, labels=2), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="labels are missing: this model makes one of 3 classes"):
        edit.interpolate(classes, z[0], z[1], 3)


# ---- inversion


def test_the_noise_of_a_normal_world_is_found_again(world: Callable[..., Any]) -> None:
    """There f is a multiple of its input, so only one z gives the image."""
    z = 0.8 * unit(3, (1, 4, 4))
    model = world(std=0.2)
    image = model(80.0 * z, 80.0)
    assert float(image.abs().max()) < 1
    found, info = invert_with_info(model, image, iterations=300, restarts=1, prior=0.0)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-3)
    assert max(info.error) < 1e-3
    assert info.calls == 300
    torch.testing.assert_close(torch.tensor(info.length), z.square().flatten(1).mean(1).sqrt(), rtol=0, atol=1e-3)


def test_the_prior_keeps_the_length_of_noise(world: Callable[..., Any]) -> None:
    """An image in the tail of the world needs noise that is too long: the prior gives up some likeness for its length."""
    model = world(std=0.2)
    image = torch.full((1, 1, 4, 4), 0.5)
    free, _ = invert_with_info(model, image, iterations=200, restarts=1, prior=0.0)
    held, info = invert_with_info(model, image, iterations=200, restarts=1, prior=1.0)
    assert float(free.square().mean().sqrt()) > 2.4
    assert 1 < info.length[0] < 1.2
    assert info.error[0] > 0.1


def test_an_image_of_the_model_is_made_again(model: ConsistencyModel) -> None:
    x = model.sample(3, seed=4)
    seen: list[dict[str, Any]] = []
    z = edit.invert(model, x, iterations=150, restarts=1, batch=2, callback=seen.append)
    assert z.shape == x.shape
    again = model.sample(3, noise=z)
    error = (again - x).square().flatten(1).mean(1).sqrt()
    reports = [s["inversion"] for s in seen if "inversion" in s]
    told = torch.tensor([e for report in reports for e in report.error])
    torch.testing.assert_close(told, error, rtol=0, atol=0.02)  # what is sampled is clamped
    noise = (model.sample(3, seed=5) - x).square().flatten(1).mean(1).sqrt()
    assert bool((error < 0.3 * noise).all())
    assert [s["done"] for s in seen if "inversion" in s] == [2, 3]
    assert [s["step"] for s in seen if "step" in s] == [*range(150)] * 2


def test_inversion_repeats_and_does_not_depend_on_the_batch(model: ConsistencyModel) -> None:
    x = model.sample(3, seed=4)
    whole = edit.invert(model, x, iterations=5, restarts=2, seed=1, first=3)
    assert torch.equal(edit.invert(model, x, iterations=5, restarts=2, seed=1, first=3), whole)
    one = edit.invert(model, x[1], iterations=5, restarts=2, seed=1, first=4)
    torch.testing.assert_close(one, whole[1], rtol=0, atol=1e-3)
    assert not whole.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_more_starts_are_never_worse(model: ConsistencyModel) -> None:
    x = model.sample(2, seed=4)
    errors = [invert_with_info(model, x, iterations=8, restarts=k)[1].error for k in (1, 3)]
    assert all(b <= a for a, b in zip(*errors, strict=True))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, d: edit.interpolate(m, unit(1), unit(2), 3), "they must be equal"),
        (lambda m, d: edit.interpolate(m, unit(1), unit(1)[0], 3), "they must be equal"),
        (lambda m, d: edit.interpolate(m, unit(1), unit(1, seed=1), 1), "n is 1, must be a whole number of at least 2"),
        (lambda m, d: edit.interpolate(m, unit(1, (1, 7, 8)), unit(1), 3), "z_a has shape"),
        (lambda m, d: edit.interpolate(m, unit(1), unit(1) * float("inf"), 3), "z_b has values that are not finite"),
        (lambda m, d: edit.interpolate(d, unit(1), unit(1), 3), "this model is a denoiser"),
        (lambda m, d: edit.invert(d, unit(1)), "this model is a denoiser"),
        (lambda m, d: edit.invert(m, 9 * unit(1)), "must be within -1 and 1"),
        (lambda m, d: edit.invert(m, unit(1).clamp(-1, 1), iterations=0), "iterations is 0"),
        (lambda m, d: edit.invert(m, unit(1).clamp(-1, 1), restarts=0), "restarts is 0"),
        (lambda m, d: edit.invert(m, unit(1).clamp(-1, 1), lr=0.0), "lr is 0.0, must be a finite number above 0"),
        (lambda m, d: edit.invert(m, unit(1).clamp(-1, 1), prior=-1.0), "prior is -1.0, must be a finite number of at least 0"),
        (lambda m, d: edit.invert(m, unit(1).clamp(-1, 1), seed="a"), "seed is 'a'"),
    ],
)
def test_refused_in_one_line(model: ConsistencyModel, denoiser: ConsistencyModel, call: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call(model, denoiser)
    assert "\n" not in str(caught.value)
