"""Denoising in one call, and estimating how much noise there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce import editing as edit
from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.core.streams import Stream, normal
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel


def noise(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return normal(seed, torch.arange(n), shape, Stream.EVALUATE)


# ---- the estimate


@pytest.mark.parametrize("sigma", [0.01, 0.3, 5.0])
def test_pure_noise_on_a_smooth_image(sigma: float) -> None:
    ramp = torch.linspace(-1, 1, 64)[:, None] + torch.linspace(0, 0.5, 64)[None]
    found = edit.estimate_sigma(ramp + sigma * noise(20, (3, 64, 64)))
    assert found.shape == (20,)
    assert float((found / sigma - 1).abs().max()) < 0.05


def test_a_smooth_image_has_none() -> None:
    ramp = torch.linspace(-1, 1, 16, dtype=torch.float64)[None, :, None] + torch.linspace(0, 1, 16, dtype=torch.float64)
    assert float(edit.estimate_sigma(ramp)) < 1e-6


@given(st.floats(0.01, 10), st.floats(-1, 1), st.integers(0, 1000))
def test_it_follows_scale_and_ignores_offset_and_slope(scale: float, offset: float, seed: int) -> None:
    x = noise(2, (1, 12, 12), seed)
    slope = torch.linspace(0, 1, 12)
    whole = edit.estimate_sigma(x)
    torch.testing.assert_close(edit.estimate_sigma(scale * x + offset + slope), scale * whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edit.estimate_sigma(x[1]), whole[1])


def test_a_few_edges_do_not_matter() -> None:
    x = torch.full((1, 1, 64, 64), -0.8)
    x[:, :, 20:40, 20:40] = 0.9
    found = float(edit.estimate_sigma(x + 0.1 * noise(1, (1, 64, 64))))
    assert abs(found - 0.1) < 0.005
    assert float((x + 0.1 * noise(1, (1, 64, 64))).diff(dim=-1).std()) > 0.2  # a plain standard deviation sees them


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sigma", "median"),
    [
        ("fashion-mnist", 0.1, 0.123),
        ("fashion-mnist", 0.2, 0.224),
        ("fashion-mnist", 0.4, 0.420),
        ("fashion-mnist", 0.8, 0.818),
        ("cifar10", 0.1, 0.115),
        ("cifar10", 0.2, 0.211),
        ("cifar10", 0.4, 0.406),
        ("cifar10", 0.8, 0.805),
    ],
)
def test_real_images_at_a_known_level(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, sigma: float, median: float
) -> None:
    """Detail is taken for noise, so the estimate is too high: by a fifth at .1, by a few hundredths above .4."""
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    x = from_uint8(open_data(name, split="test").images[:256])
    found = edit.estimate_sigma(x + sigma * normal(0, torch.arange(256), tuple(x.shape[1:]), Stream.EDIT))
    assert abs(float(found.median()) - median) < 0.002
    assert sigma < float(found.median()) < 1.25 * sigma


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (torch.zeros(1, 1, 8), "2 x 2"),
        (torch.zeros(8, 8), r"image has shape \[8, 8\]"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "image is torch.uint8, must be float"),
        (torch.full((1, 8, 8), float("nan")), "not finite"),
    ],
)
def test_images_that_cannot_be_judged(image: Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        edit.estimate_sigma(image)


# ---- denoising


def test_it_is_one_call(model: ConsistencyModel) -> None:
    x = 0.5 * noise(3, (1, 8, 8)) + 0.3 * noise(3, (1, 8, 8), 1)
    out = edit.denoise(model, x, 0.3)
    torch.testing.assert_close(out, model(x, 0.3).clamp(-1, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(edit.denoise(model, x[1], 0.3), out[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(edit.denoise(model, x, 0.3, batch=2), out, rtol=0, atol=1e-5)
    each = edit.denoise(model, x, torch.tensor([0.1, 0.3, 0.5]))
    torch.testing.assert_close(each[1], out[1], rtol=0, atol=1e-5)
    assert float((each[0] - out[0]).abs().max()) > 1e-3


def test_a_denoiser_may_denoise(denoiser: ConsistencyModel) -> None:
    x = 0.5 * noise(2, (1, 8, 8))
    torch.testing.assert_close(edit.denoise(denoiser, x, 0.3), denoiser(x, 0.3).clamp(-1, 1), rtol=0, atol=1e-6)


def test_without_a_level_it_is_estimated(model: ConsistencyModel) -> None:
    x = 0.5 * noise(3, (1, 8, 8))
    torch.testing.assert_close(edit.denoise(model, x), edit.denoise(model, x, edit.estimate_sigma(x)), rtol=0, atol=1e-6)


def test_a_clean_image_comes_back(model: ConsistencyModel) -> None:
    flat = torch.linspace(-1, 1, 8).expand(2, 1, 8, 8).clone()
    mixed = torch.cat([flat, 0.3 * noise(1, (1, 8, 8))])
    out = edit.denoise(model, mixed)
    assert torch.equal(out[:2], flat)
    torch.testing.assert_close(out[2:], edit.denoise(model, mixed[2:]), rtol=0, atol=1e-5)
    loud = 500 * noise(1, (1, 8, 8))  # more than the model knows: as much as it knows
    assert bool(torch.isfinite(edit.denoise(model, loud)).all())


def test_noise_is_taken_away_where_the_answer_is_known(world: Callable[..., Any]) -> None:
    """For normal data f scales to the data's spread: correlation stays, and the error falls below the noise."""
    model = world(std=0.3)
    y = 0.3 * noise(500, (1, 4, 4))
    y = y.clamp(-1, 1)
    noisy = y + 0.4 * noise(500, (1, 4, 4), 1)
    out = edit.denoise(model, noisy, 0.4)
    torch.testing.assert_close(out, (noisy * 0.3 / 0.5).clamp(-1, 1), rtol=0, atol=1e-4)
    assert float((out - y).square().mean()) < 0.6 * float((noisy - y).square().mean())


def test_missing_labels_are_guessed_from_the_image(world: Callable[..., Any]) -> None:
    """Three classes with means four spreads apart: half of an image, its means or its noise tell which."""
    model = world(means=(-0.6, 0.0, 0.6), std=0.15)
    labels = torch.arange(60) % 3
    y = (model.means[labels].reshape(-1, 1, 1, 1) + 0.15 * noise(60, (1, 4, 4))).clamp(-1, 1)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    seen: list[dict[str, Any]] = []
    for call in (
        lambda: edit.inpaint(model, y, mask, steps=2, callback=seen.append),
        lambda: edit.upscale(model, edit.to_averages(y, 2), 2, steps=2, callback=seen.append),
        lambda: edit.stroke(model, y, steps=1, callback=seen.append),
        lambda: edit.local(model, y, mask, steps=1, callback=seen.append),
    ):
        call()
        assert float((seen[-1]["labels"] == labels).double().mean()) > 0.9
    noisy = y + 0.1 * noise(60, (1, 4, 4), 1)
    guessed = edit.denoise(model, noisy, 0.1)
    told = edit.denoise(model, noisy, 0.1, labels=labels)
    assert float((guessed == told).flatten(1).all(1).double().mean()) > 0.9


def test_too_many_classes_to_guess(world: Callable[..., Any]) -> None:
    model = world(means=tuple(k / 101 for k in range(101)))
    with pytest.raises(InputError, match="labels are missing: this model makes one of 101 classes"):
        edit.stroke(model, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), 0.0), "sigma is 0, must be above 0.002 and at most 80"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), 81.0), "sigma is 81"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), float("nan")), "sigma is nan"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), torch.tensor([0.1, 0.2, 0.3])), "sigma has 3 values for 2 images"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), "some"), "sigma is 'some'"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), 0.1, batch=0), "batch is 0"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 8), 0.1, labels=1), "unconditional"),
        (lambda m: edit.denoise(m, torch.zeros(2, 1, 8, 9), 0.1), "noisy has shape"),
        (lambda m: edit.denoise(m, torch.full((1, 8, 8), float("inf")), 0.1), "noisy has values that are not finite"),
    ],
)
def test_refused_in_one_line(model: ConsistencyModel, call: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_guesses_fit_together_over_shards_and_are_told(classes: ConsistencyModel) -> None:
    noisy = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[dict[str, Any]] = []
    whole = edit.denoise(classes, noisy, 0.3, batch=4, callback=seen.append)
    parts = [edit.denoise(classes, noisy[i : i + 2], 0.3, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert [(info["first"], info["done"], info["calls"]) for info in seen] == [(0, 4, 10), (4, 6, 10)]
    told = torch.cat([info["labels"] for info in seen])
    torch.testing.assert_close(edit.denoise(classes, noisy, 0.3, labels=told), whole, rtol=0, atol=1e-5)


def test_many_values_are_no_obstacle_to_estimating() -> None:
    image = 0.2 * torch.randn(1, 4200, 4200, generator=torch.Generator().manual_seed(0))  # torch.quantile stops at 2^24
    assert float(edit.estimate_sigma(image)) == pytest.approx(0.2, rel=0.01)
