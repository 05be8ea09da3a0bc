"""What is known of an image: projectors, their combinations, and that they are the paper's changes of coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.editing.fit import into_range
from atonce.editing.operators import (
    GREY,
    Known,
    averages,
    from_averages,
    from_grey,
    grey,
    nothing,
    pixels,
    to_averages,
    to_grey,
)

SHAPE = (2, 3, 8, 8)
LEFT = torch.zeros(8, 8, dtype=torch.bool)
LEFT[:, :4] = True
SPECKLED = torch.rand(8, 8, generator=torch.Generator().manual_seed(9)) < 0.4
EACH = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(8)) < 0.5

ALL: dict[str, Known] = {
    "pixels": pixels(SPECKLED),
    "pixels of each": pixels(EACH),
    "grey": grey(),
    "averages 2": averages(2),
    "averages 8": averages(8),
    "nothing": nothing(),
    "grey of the unmasked": pixels(SPECKLED) & grey(),
    "grey, and colour outside": grey() | pixels(SPECKLED),
    "small and grey": grey() & averages(4),
    "small, or grey": averages(4) | grey(),
    "two masks": pixels(SPECKLED) & pixels(EACH),
    "either mask": pixels(SPECKLED) | pixels(EACH),
    "nested means": averages(2) & averages(4),
    "small outside a mask": averages(4) & pixels(LEFT),
    "detail outside a mask": averages(4) | pixels(LEFT),
    "three": (grey() & averages(2)) | pixels(LEFT),
    "three again": (pixels(SPECKLED) | grey()) & pixels(EACH),
    "with nothing": grey() | nothing(),
}


def random(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(known: Known, shape: tuple[int, int, int]) -> Tensor:
    """P as a matrix: column j is the image of the unit vector j."""
    d = math.prod(shape)
    return known.project(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, d).T


@pytest.mark.parametrize("name", ALL)
def test_an_orthogonal_projector(name: str) -> None:
    known = ALL[name]
    known.check(SHAPE)
    x, y = random(0), random(1)
    p = known.project(x)
    torch.testing.assert_close(known.project(p), p, rtol=0, atol=1e-14)
    torch.testing.assert_close((p * y).sum(), (x * known.project(y)).sum(), rtol=0, atol=1e-11)
    torch.testing.assert_close(known.replace(x, y), x - p + known.project(y), rtol=0, atol=1e-14)
    assert known.error(known.replace(x, y), y) < 1e-14
    torch.testing.assert_close(known.project(2 * x - 3 * y), 2 * p - 3 * known.project(y), rtol=0, atol=1e-13)
    # What is not known stays: the complement of x is untouched.
    torch.testing.assert_close(known.replace(x, y) - known.project(y), x - p, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_rows_are_the_parts_of_a_batch(name: str) -> None:
    known, x, y = ALL[name], random(2), random(3)
    whole = known.replace(x, y)
    for i in range(2):
        assert torch.equal(known.rows(slice(i, i + 1)).replace(x[i : i + 1], y[i : i + 1]), whole[i : i + 1])


def test_the_ranks_are_what_is_known() -> None:
    shape, d = (3, 4, 4), 48
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True  # 4 of 16 pixels are to be made
    ranks = {
        "pixels": (pixels(mask), 36),
        "grey": (grey(), 16),
        "averages": (averages(2), 12),
        "grey of the unmasked": (pixels(mask) & grey(), 12),
        "either": (pixels(mask) | grey(), 36 + 4),
        "small and grey": (averages(2) & grey(), 4),
        "small or grey": (averages(2) | grey(), 12 + 16 - 4),
        "means outside a mask": (averages(2) & pixels(mask), 9),
        "means, and pixels outside a mask": (averages(2) | pixels(mask), 36 + 3),
        "nested and": (averages(2) & averages(4), 3),
        "nested or": (averages(2) | averages(4), 12),
        "nothing": (nothing(), 0),
        "and nothing": (grey() & nothing(), 0),
        "or nothing": (grey() | nothing(), 16),
    }
    for name, (known, rank) in ranks.items():
        p = matrix(known, shape)
        assert p.shape == (d, d)
        assert abs(float(p.trace()) - rank) < 1e-12, name
        torch.testing.assert_close(p, p.T, rtol=0, atol=1e-14)
        torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-14)


def test_combinations_are_products_and_unions() -> None:
    shape = (3, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    for a, b in ((pixels(mask), grey()), (grey(), averages(2)), (averages(2), pixels(mask)), (averages(2), averages(4))):
        pa, pb = matrix(a, shape), matrix(b, shape)
        for one, other in ((a, b), (b, a)):
            torch.testing.assert_close(matrix(one & other, shape), pa @ pb, rtol=0, atol=1e-14)
            torch.testing.assert_close(matrix(one | other, shape), pa + pb - pa @ pb, rtol=0, atol=1e-14)


# ---- the form of the paper: an orthogonal Q, by QR of I with its first column overwritten


def orthogonal(first: Tensor) -> Tensor:
    d = len(first)
    start = torch.eye(d, dtype=torch.float64)
    start[:, 0] = first
    q = torch.linalg.qr(start)[0]
    return -q if float(q[:, 0].sum()) < 0 else q


def test_the_matrix_for_colour_is_the_printed_one() -> None:
    w = torch.tensor(GREY, dtype=torch.float64)
    q = orthogonal(w / w.norm())
    printed = torch.tensor(
        [
            [0.44711344, -0.82042528, 0.35635927],
            [0.87807155, 0.47852936, 0.0],
            [0.17052838, -0.31290894, -0.93434901],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(q, printed, rtol=0, atol=6e-9)
    torch.testing.assert_close(q.T @ q, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-15)
    assert abs(float(w.norm()) - 0.6685104412) < 6e-11
    x = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    coefficients = torch.tensor([0.07788958, -0.56086972, -0.54713652], dtype=torch.float64)
    torch.testing.assert_close(x @ q, coefficients, rtol=0, atol=6e-9)
    value = to_grey(x.reshape(1, 3, 1, 1))
    assert abs(float(value) - 0.05207) < 1e-15
    assert abs(float((x @ q)[0] * w.norm()) - float(value)) < 1e-15
    # P x has the known coefficient and no other.
    torch.testing.assert_close(
        from_grey(value).flatten() @ q,
        torch.stack([(x @ q)[0], torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]),
        rtol=0,
        atol=1e-15,
    )


def test_grey_is_the_papers_form() -> None:
    w = torch.tensor(GREY, dtype=torch.float64)
    q = orthogonal(w / w.norm())
    x, y = random(4), random(5)
    a, b = x.movedim(1, -1) @ q, y.movedim(1, -1) @ q
    a[..., 0] = b[..., 0]
    torch.testing.assert_close(grey().replace(x, y), (a @ q.T).movedim(-1, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_averages_are_the_papers_form(factor: int) -> None:
    q = orthogonal(torch.full((factor**2,), 1 / factor, dtype=torch.float64))
    torch.testing.assert_close(q.T @ q, torch.eye(factor**2, dtype=torch.float64), rtol=0, atol=4e-15)
    if factor == 2:
        patch = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        printed = torch.tensor([5.0, -0.57735027, 0.40824829, -2.12132034], dtype=torch.float64)
        torch.testing.assert_close(patch @ q, printed, rtol=0, atol=6e-9)
        assert float(to_averages(patch.reshape(1, 1, 2, 2), 2)) * 2 == 5.0

    def patches(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // factor, factor, w // factor, factor).movedim(3, 4).reshape(b, c, -1, factor**2)

    x, y = random(6), random(7)
    a = patches(x) @ q
    a[..., 0] = (patches(y) @ q)[..., 0]
    torch.testing.assert_close(patches(averages(factor).replace(x, y)), a @ q.T, rtol=0, atol=1e-12)


# ---- what is copied keeps every bit


@pytest.mark.parametrize("name", ["pixels", "pixels of each", "grey, and colour outside", "detail outside a mask", "three"])
def test_known_pixels_keep_every_bit(name: str) -> None:
    mask = {"pixels of each": EACH, "detail outside a mask": LEFT, "three": LEFT}.get(name, SPECKLED)
    x, y = random(0).float() * 3, random(1).float()
    kept = ~mask.expand(2, 1, 8, 8).expand(SHAPE)
    assert torch.equal(ALL[name].replace(x, y)[kept], y[kept])
    assert torch.equal(
        into_range(ALL[name].replace(x, y.clamp(-1, 1)), ALL[name], y.clamp(-1, 1), (-1, 1))[kept], y.clamp(-1, 1)[kept]
    )


@given(st.integers(0, 10_000), st.sampled_from(sorted(ALL)))
def test_single_precision_keeps_what_is_known(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(SHAPE, generator=generator) * 2 - 1 for _ in range(2))
    assert ALL[name].error(ALL[name].replace(x, y), y) < 1e-6


# ---- into the range


@given(st.integers(0, 10_000), st.sampled_from(sorted(ALL)), st.sampled_from([0.0, 0.5, 1.0]))
def test_into_the_range_without_losing_what_is_known(seed: int, name: str, saturated: float) -> None:
    """Also where most of the image is black or white, and the range leaves no room."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(SHAPE, generator=generator) * 2 - 1
    y = torch.where(torch.rand(SHAPE, generator=generator) < saturated, torch.where(y > 0, 1.0, -1.0), y)
    known = ALL[name]
    x = known.replace((torch.randn(SHAPE, generator=generator)).clamp(-1, 1), y)
    result = into_range(x, known, y, (-1.0, 1.0))
    assert float(result.abs().max()) <= 1
    assert known.error(result, y) < 2e-4  # white has grey value 1, of which the weights leave out .0001
    assert torch.equal(into_range(x[:1], known.rows(slice(0, 1)), y[:1], (-1.0, 1.0)), result[:1])


def test_the_nearest_image_in_the_range() -> None:
    """One patch, where the projection onto a line and a box is a search over one number."""
    y = torch.tensor([[-1.0, -0.6], [-0.9, -0.7]], dtype=torch.float64)[None, None]  # mean -.8
    x = averages(2).replace(torch.tensor([[0.9, -1.0], [0.1, -0.3]], dtype=torch.float64)[None, None], y)
    result = into_range(x, averages(2), y, (-1.0, 1.0), rounds=400)
    low, high = -2.0, 2.0
    for _ in range(100):
        shift = (low + high) / 2
        low, high = (shift, high) if float((x + shift).clamp(-1, 1).mean()) < -0.8 else (low, shift)
    torch.testing.assert_close(result, (x + low).clamp(-1, 1), rtol=0, atol=1e-9)
    assert averages(2).error(x.clamp(-1, 1), y) > 0.05  # what a bare clamp loses


def test_what_is_in_the_range_is_left_alone() -> None:
    y = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(into_range(y, pixels(SPECKLED), y, (-1.0, 1.0)), y)
    torch.testing.assert_close(into_range(y, averages(2), y, (-1.0, 1.0)), y, rtol=0, atol=1e-6)


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: pixels(torch.zeros(4, 4)), "the mask is torch.float32, must be a bool tensor"),
        (lambda: pixels([[True]]), "the mask is list, must be a bool tensor"),  # type: ignore[arg-type]
        (lambda: pixels(torch.zeros(3, 4, 4, dtype=torch.bool)), r"the mask has shape \[3, 4, 4\], must be \[H, W\]"),
        (lambda: pixels(torch.zeros(2, 3, 4, 4, dtype=torch.bool)), r"the mask has shape \[2, 3, 4, 4\]"),
        (lambda: grey((0.0, 0.0, 0.0)), "grey weights are"),
        (lambda: grey((0.3, float("nan"), 0.1)), "grey weights are"),
        (lambda: grey(()), "grey weights are"),
        (lambda: averages(0), "factor is 0, must be a whole number of at least 1"),
        (lambda: averages(2.0), "factor is 2.0, must be a whole number"),  # type: ignore[arg-type]
        (lambda: averages(True), "factor is True"),
        (lambda: averages(2) & averages(3), "factors 2 and 3 cannot be combined"),
        (lambda: averages(2) | pixels(SPECKLED), "the mask does not follow the patches of 2 x 2 pixels"),
        (lambda: pixels(SPECKLED) & (grey() & averages(2)), "the mask does not follow the patches of 2 x 2"),
        (lambda: averages(3) & pixels(LEFT), "the mask does not follow the patches of 3 x 3"),
        (lambda: grey() & grey((1.0, 1.0, 1.0)), "different weights cannot be combined"),
        (lambda: grey() | grey((1.0, 1.0)), "different weights cannot be combined"),
        (lambda: averages(3).check(SHAPE), "factor 3 does not divide images of 8 x 8: possible are 2, 4, 8"),
        (lambda: averages(2).check((1, 1, 7, 8)), "factor 2 does not divide images of 7 x 8: possible are none but 1"),
        (lambda: grey().check((2, 1, 8, 8)), "grey values of 3 channels are known, but the images have 1"),
        (lambda: (grey() & averages(2)).check((2, 1, 8, 8)), "grey values of 3 channels"),
        (lambda: pixels(LEFT).check((2, 3, 8, 9)), r"give one mask \[8, 9\], or one for each image \[2, 1, 8, 9\]"),
        (lambda: pixels(EACH).check((3, 3, 8, 8)), r"the mask has shape \[2, 1, 8, 8\], the images \[3, 3, 8, 8\]"),
    ],
)
def test_refused_in_one_line(make: object, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_equal_weights_of_another_length_are_the_same_grey() -> None:
    both = grey() & grey(tuple(2 * w for w in GREY))
    torch.testing.assert_close(both.project(random(0)), grey().project(random(0)), rtol=0, atol=1e-14)


def test_lifting_is_the_inverse_of_measuring() -> None:
    x = random(0)
    torch.testing.assert_close(to_grey(from_grey(to_grey(x))), to_grey(x))
    torch.testing.assert_close(grey().project(x), from_grey(to_grey(x)))
    torch.testing.assert_close(to_averages(from_averages(to_averages(x, 4), 4), 4), to_averages(x, 4))
    torch.testing.assert_close(averages(4).project(x), from_averages(to_averages(x, 4), 4))
