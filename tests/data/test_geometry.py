"""Resampling against functions that are known everywhere, and what any resampling has to keep."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.data import geometry
from atonce.data.geometry import rotation, stretch, warp

SIZES = [(4, 4), (8, 8), (12, 20), (33, 16)]
EYE, NONE = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
Picture = Callable[[Tensor, Tensor], Tensor]


def grid(height: int, width: int) -> Tensor:
    """Positions (x, y) of the pixels from the middle, float64 [H, W, 2]."""
    x, y = (torch.arange(side).double() + 0.5 - side / 2 for side in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def moved(picture: Picture, height: int, width: int, matrix: Tensor = EYE, shift: Tensor = NONE) -> Tensor:
    """The values [H, W] of a function that is carried along by p -> matrix p + shift, pixel by pixel."""
    source = (grid(height, width) - shift) @ torch.linalg.inv(matrix).T
    return picture(source[..., 0], source[..., 1])


def waves(height: int, width: int, shortest: float, seed: int) -> Picture:
    """A random sum of cosines, at most 1, of waves not shorter than that many pixels.

    Those that fit between the borders are their own mirror images, so the function is known outside as well.
    """
    orders = [(k, m) for k in range(2 * width) for m in range(2 * height) if math.hypot(k / width, m / height) <= 2 / shortest]
    weights = torch.randn(len(orders), generator=torch.Generator().manual_seed(seed)).double()
    weights /= weights.abs().sum()

    def picture(x: Tensor, y: Tensor) -> Tensor:
        parts = [
            weight * torch.cos(math.pi * k * (x / width + 0.5)) * torch.cos(math.pi * m * (y / height + 0.5))
            for weight, (k, m) in zip(weights, orders, strict=True)
        ]
        return torch.stack(parts).sum(0)

    return picture


def image(picture: Picture, height: int, width: int) -> Tensor:
    return moved(picture, height, width)[None, None].float()


# ---- matrices


def test_turns_are_counter_clockwise() -> None:
    """What is on the right goes to the top, y being counted downwards."""
    quarter = rotation(torch.tensor([math.pi / 2], dtype=torch.float64))[0]
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, -1.0]).double())
    torch.testing.assert_close(quarter @ torch.tensor([0.0, -1.0]).double(), torch.tensor([-1.0, 0.0]).double())


def test_stretching_is_along_the_axis() -> None:
    """By 4 along the rising diagonal, by a quarter across it; the axis is counted as the turns are."""
    found = stretch(torch.tensor([2.0]).double(), torch.tensor([math.pi / 4]).double())[0]
    rising, falling = torch.tensor([1.0, -1.0]).double(), torch.tensor([1.0, 1.0]).double()
    torch.testing.assert_close(found @ rising, 4 * rising)
    torch.testing.assert_close(found @ falling, falling / 4)


# ---- known functions


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0.37, 0.0), (0.0, -1.5), (2.25, 0.8), (-40.3, 31.1)])
def test_a_translation_by_a_fraction_of_a_pixel(size: tuple[int, int], shift: tuple[float, float]) -> None:
    """To 0.6 % for waves from five pixels on, borders and what was reflected from beyond them included."""
    picture, offset = waves(*size, 5, seed=1), torch.tensor(shift).double()
    expected = moved(picture, *size, shift=offset)
    assert float((expected - moved(picture, *size)).abs().max()) > 0.05  # it is another picture
    found = warp(image(picture, *size), EYE[None], offset[None])[0, 0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=6e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(6))
def test_any_affine_map_of_any_size(size: tuple[int, int], seed: int) -> None:
    """Waves that are longer than five pixels before and after the map are where they should be, to 0.6 %."""
    numbers = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double()
    matrix = stretch(0.3 * numbers[:1], numbers[1:2])[0] @ rotation(2 * numbers[2:3])[0] * torch.exp2(0.2 * numbers[3])
    shortest = 5 * max(1.0, 1 / float(torch.linalg.svdvals(matrix).min()))
    picture, offset = waves(*size, shortest, seed), 0.2 * numbers[4:] * torch.tensor(size[::-1])
    found = warp(image(picture, *size), matrix[None], offset[None])[0, 0]
    torch.testing.assert_close(found.double(), moved(picture, *size, matrix, offset), rtol=0, atol=6e-3)


def test_a_quarter_turn_is_that_of_the_pixels() -> None:
    images = torch.cat([image(waves(16, 16, 5, seed), 16, 16) for seed in range(3)], 1)
    found = warp(images, rotation(torch.tensor([math.pi / 2])), torch.zeros(1, 2))
    assert float((found - images).abs().max()) > 0.2
    torch.testing.assert_close(found, torch.rot90(images, 1, (2, 3)), rtol=0, atol=6e-3)  # counter-clockwise


def test_beyond_the_borders_is_the_mirror_image() -> None:
    """Shifting by the whole width gives the mirrored image, by twice the width the image: also where it is small."""
    for height, width in SIZES:
        images = image(waves(height, width, 4, seed=5), height, width)
        shift = torch.tensor([[float(width), 0.0]])
        torch.testing.assert_close(warp(images, EYE[None], shift), images.flip(-1), rtol=0, atol=6e-3)
        torch.testing.assert_close(
            warp(images, EYE[None], -shift.flip(-1) * height / width), images.flip(-2), rtol=0, atol=6e-3
        )
        torch.testing.assert_close(warp(images, EYE[None], 2 * shift), images, rtol=0, atol=6e-3)


def test_what_the_pixels_cannot_hold_is_taken_away() -> None:
    """A wave of 2.8 pixels at half the size is one of 1.4, which pixels show as one of 3.5: unfiltered, at full strength."""
    images = moved(lambda x, y: torch.cos(2 * math.pi * x / 2.8) + 0 * y, 64, 64)[None, None].float()
    found = warp(images, 0.5 * EYE[None], torch.zeros(1, 2))[..., 24:40, 24:40]
    plain = functional.grid_sample(images, (grid(64, 64) / 0.5 / 32).float()[None], align_corners=False)[..., 24:40, 24:40]
    assert float(plain.std()) > 0.3
    assert float(found.std()) < 0.03


# ---- what is kept


MAPS = st.tuples(*[st.floats(-1, 1)] * 3, *[st.floats(-2, 2)] * 3)


def drawn(map_: tuple[float, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    s, r, log2, angle, x, y = (torch.tensor([value]).double() for value in map_)
    return stretch(s, angle) @ rotation(math.pi * r) * torch.exp2(log2), torch.stack([x * size[1], y * size[0]], -1)


@given(MAPS, st.integers(1, 9), st.integers(1, 9), st.floats(-1, 1))
def test_flat_images_stay_flat(map_: tuple[float, ...], height: int, width: int, value: float) -> None:
    """Of any size: a filter of six pixels on one pixel too."""
    images = torch.full((1, 2, height, width), value)
    torch.testing.assert_close(warp(images, *drawn(map_, (height, width))), images, rtol=0, atol=1e-6)


@given(MAPS, st.sampled_from([(4, 4), (5, 8)]), st.integers(0, 2**31))
def test_it_is_linear_and_commutes_with_half_a_turn(map_: tuple[float, ...], size: tuple[int, int], seed: int) -> None:
    matrix, shift = drawn(map_, size)
    a, b = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    images = torch.stack([a, b, 2 * a - b, a.flip(-1, -2)])
    found = warp(images, matrix.repeat(4, 1, 1), torch.stack([shift[0], shift[0], shift[0], -shift[0]]))
    torch.testing.assert_close(found[2], 2 * found[0] - found[1], rtol=0, atol=3e-5)
    # Positions are float32, so those on the other side may be rounded to others by some millionths of a pixel.
    torch.testing.assert_close(found[3], found[0].flip(-1, -2), rtol=0, atol=3e-4)


def test_pieces_and_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(7, 6, generator=torch.Generator().manual_seed(3)).double()
    matrix, shift = stretch(0.2 * numbers[:, 0], numbers[:, 1]) @ rotation(numbers[:, 2]), numbers[:, 4:]
    images = torch.randn(7, 3, 10, 6, generator=torch.Generator().manual_seed(4))
    whole = warp(images, matrix, shift)
    monkeypatch.setattr(geometry, "_PIECE", 2 * 16 * images[:1].numel())
    torch.testing.assert_close(warp(images, matrix, shift), whole, rtol=0, atol=1e-6)
    for i in range(7):
        torch.testing.assert_close(warp(images[i : i + 1], matrix[i : i + 1], shift[i : i + 1])[0], whole[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_type_of_the_images_is_kept(dtype: torch.dtype) -> None:
    images = image(waves(8, 8, 5, seed=0), 8, 8).to(dtype)
    found = warp(images, rotation(torch.tensor([0.3])), torch.zeros(1, 2))
    assert found.dtype == dtype
    expected = warp(images.float(), rotation(torch.tensor([0.3])), torch.zeros(1, 2)).to(dtype)
    assert torch.equal(found, expected)


def test_nothing_given_is_changed() -> None:
    given_ = [torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)), EYE.repeat(2, 1, 1), torch.ones(2, 2)]
    kept = [tensor.clone() for tensor in given_]
    warp(*given_)
    assert all(torch.equal(a, b) for a, b in zip(given_, kept, strict=True))


# ---- what is refused


@pytest.mark.parametrize(
    ("matrix", "shift", "message"),
    [
        ([[1.0, 2.0], [2.0, 4.0]], [0.0, 0.0], "cannot be inverted"),
        ([[1.0, math.nan], [0.0, 1.0]], [0.0, 0.0], "cannot be inverted"),
        ([[1.0, 0.0], [0.0, 1.0]], [math.inf, 0.0], "shift of an affine map is not finite"),
    ],
)
def test_maps_that_are_none(matrix: list[list[float]], shift: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        warp(torch.zeros(1, 1, 4, 4), torch.tensor([matrix]), torch.tensor([shift]))
    assert "\n" not in str(caught.value)
