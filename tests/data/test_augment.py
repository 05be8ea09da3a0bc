"""Geometric augmentation: what is drawn and how often, what becomes of the image, what the network is told."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.data.augment import AUGMENT_LABELS, Transformations, augment, draw, flip

COUNT, P = 20_000, 0.12
SHAPES = [(1, 4, 4), (3, 8, 8), (1, 9, 14), (3, 16, 5)]
KINDS = {"x_flip": [0], "y_flip": [1], "scale": [2], "angle": [3, 4], "stretch": [5, 6], "shift": [7, 8]}  # their columns


@functools.cache
def many(p: float = P) -> Transformations:
    return draw(1, torch.arange(COUNT), p)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def applied(of: Transformations) -> dict[str, Tensor]:
    """Which images each transformation was applied to."""
    return {kind: getattr(of, kind).reshape(COUNT, -1).any(-1) for kind in KINDS}


def only(kind: str, count: int = 6) -> Tensor:
    """The first indices for which nothing but one transformation was drawn."""
    where = applied(many())
    others = torch.stack([mask for name, mask in where.items() if name != kind]).any(0)
    found = (where[kind] & ~others).nonzero()[:count, 0]
    assert len(found) == count
    return found


# ---- what is drawn


def deviations(hits: Tensor, p: float) -> float:
    return abs(float(hits.double().mean()) - p) / math.sqrt(p * (1 - p) / len(hits))


def test_each_is_drawn_as_often_as_it_should_be() -> None:
    """A flip by a fair coin (top to bottom only where it is drawn), the others with p, each by itself."""
    where = applied(many())
    expected = {"x_flip": 1 / 2, "y_flip": P / 2, "scale": P, "angle": P, "stretch": P, "shift": P}
    assert {kind: deviations(where[kind], p) < 4 for kind, p in expected.items()} == dict.fromkeys(KINDS, True)
    for i, first in enumerate(KINDS):
        for second in list(KINDS)[i + 1 :]:
            assert deviations(where[first] & where[second], expected[first] * expected[second]) < 4, (first, second)
    everything = applied(many(1.0))
    assert deviations(everything["x_flip"], 1 / 2) < 4
    assert deviations(everything["y_flip"], 1 / 2) < 4
    assert all(bool(everything[kind].all()) for kind in ("scale", "angle", "stretch", "shift"))


def assert_normal(values: Tensor, std: float) -> None:
    """Mean and standard deviation within four deviations of their estimates, and tails as those of a normal distribution."""
    n = len(values)
    assert abs(float(values.mean())) < 4 * std / math.sqrt(n)
    assert abs(float(values.std()) / std - 1) < 4 / math.sqrt(2 * n)
    assert deviations(values.abs() < 0.6745 * std, 0.5) < 4


@pytest.mark.parametrize("p", [P, 1.0])
def test_sizes_are_as_the_paper_has_them(p: float) -> None:
    """Base-2 logarithms of scales N(0, 0.2^2), shifts N(0, 0.125^2) of a side, angles uniform on the circle."""
    of, where = many(p), applied(many(p))
    assert_normal(of.scale[where["scale"]], 0.2)
    assert_normal(of.stretch[where["stretch"]], 0.2)
    for column in of.shift[where["shift"]].T:
        assert_normal(column, 0.125)
    for angle in (of.angle[where["angle"]], of.axis[where["stretch"]]):
        assert float(angle.abs().max()) <= math.pi
        for quarter in range(4):
            assert deviations((angle >= (quarter - 2) * math.pi / 2) & (angle < (quarter - 1) * math.pi / 2), 1 / 4) < 4


def test_numbers_are_not_shared() -> None:
    """Under p = 1 the six continuous numbers, the coins and those of plain flips are pairwise uncorrelated."""
    of, plain = many(1.0), flip(torch.arange(2.0).expand(COUNT, 1, 1, 2), 1, torch.arange(COUNT))[:, 0, 0, 0]
    numbers = [of.x_flip, of.y_flip, of.scale, of.angle, of.stretch, of.axis, of.shift[:, 0], of.shift[:, 1], plain]
    correlation = torch.corrcoef(torch.stack([number.double() for number in numbers]))
    assert float((correlation - torch.eye(len(numbers))).abs().max()) < 4.5 / math.sqrt(COUNT)


def test_labels_are_the_drawn_numbers() -> None:
    """Flips as 0 or 1, angles by cosine and sine, scale, stretch and shifts as the unit normal numbers behind them."""
    for p in (P, 1.0):
        of, labels = many(p), many(p).labels()
        assert labels.dtype == torch.float32
        assert tuple(labels.shape) == (COUNT, AUGMENT_LABELS) == (COUNT, 9)
        expected = np.stack(
            [
                of.x_flip.numpy(),
                of.y_flip.numpy(),
                of.scale.numpy() * 5,
                np.cos(of.angle.numpy()) - 1,
                np.sin(of.angle.numpy()),
                of.stretch.numpy() * 5 * np.cos(of.axis.numpy()),
                of.stretch.numpy() * 5 * np.sin(of.axis.numpy()),
                of.shift[:, 0].numpy() * 8,
                of.shift[:, 1].numpy() * 8,
            ],
            -1,
        )
        np.testing.assert_allclose(labels.numpy(), expected, rtol=1e-6, atol=1e-7)
    told = {kind: (many().labels()[:, columns] != 0).any(-1) for kind, columns in KINDS.items()}
    assert [kind for kind, mask in applied(many()).items() if not torch.equal(mask, told[kind])] == []


def test_other_seeds_and_indices_draw_other_things() -> None:
    rows = torch.cat([draw(seed, torch.arange(100), 1.0).labels() for seed in (0, 1, 2**40)])
    assert len(torch.unique(rows[:, 2:], dim=0)) == 300


# ---- what becomes of the image


def blob(height: int, width: int, x: float, y: float, std: float = 2.0) -> Tensor:
    """A Gaussian at (x, y) from the middle, x to the right and y down: [1, 1, H, W]."""
    across, down = torch.arange(width) + 0.5 - width / 2, torch.arange(height) + 0.5 - height / 2
    return torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / (2 * std**2))[None, None]


def moments(image: Tensor) -> tuple[float, np.ndarray, np.ndarray]:
    """Sum, centre (x, y) from the middle and covariance of an image [1, H, W] that is read as a density."""
    density = image[0].double().numpy()
    height, width = density.shape
    down, across = np.mgrid[:height, :width] + 0.5 - np.array([height, width])[:, None, None] / 2
    points = np.stack([across, down]).reshape(2, -1)
    weights = density.ravel() / density.sum()
    centre = points @ weights
    return float(density.sum()), centre, (points - centre[:, None]) * weights @ (points - centre[:, None]).T


def of_blob(kind: str, x: float = 6.0, y: float = -3.0) -> list[tuple[np.ndarray, float, np.ndarray, np.ndarray]]:
    """For some indices with one transformation: the labels, and sum, centre and covariance relative to the blob's."""
    image, index = blob(48, 56, x, y), only(kind)
    images, labels = augment(image.expand(len(index), 1, 48, 56), 1, index, P)
    total, _, covariance = moments(image[0])
    out = []
    for each, told in zip(images, labels.double().numpy(), strict=True):
        assert set(np.flatnonzero(told)) == set(KINDS[kind])
        found = moments(each)
        out.append((told, found[0] / total, found[1], found[2] / covariance[0, 0]))
    assert len(out) >= 3  # so that no loop over them is empty
    return out


def near(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_a_turned_blob_lands_where_the_label_says() -> None:
    """At the angle's place, counter-clockwise as one sees it: for a positive sine what is on the right goes up."""
    turned = of_blob("angle", 9.0, 0.0)
    assert max(abs(told[4]) for told, *_ in turned) > 0.5
    for told, total, centre, covariance in turned:
        near(centre, [9 * (told[3] + 1), -9 * told[4]], 0.02)
        near(total, 1, 0.003)
        near(covariance, np.eye(2), 0.01)


def test_a_scaled_blob_grows_as_the_label_says() -> None:
    """By 2^(0.2 label) in both directions, away from the middle."""
    sizes = []
    for told, total, centre, covariance in of_blob("scale"):
        factor = 2 ** (0.2 * told[2])
        near(centre, [6 * factor, -3 * factor], 0.02)
        near(total, factor**2, 0.005 * factor**2)
        near(covariance, factor**2 * np.eye(2), 0.015 * factor**2)
        sizes.append(factor)
    assert min(sizes) < 0.9 < 1.1 < max(sizes)


def test_a_stretched_blob_is_an_ellipse_along_the_axis() -> None:
    """Longer by 2^r along an axis that is turned counter-clockwise from the right, shorter by as much across it."""
    drawn = draw(1, only("stretch"), P)
    assert float(drawn.stretch.abs().max()) > 0.1
    for i, (told, total, centre, covariance) in enumerate(of_blob("stretch")):
        r, axis = float(drawn.stretch[i]), float(drawn.axis[i])
        near(told[5:7], [5 * r * math.cos(axis), 5 * r * math.sin(axis)], 1e-6)
        along, across = np.array([math.cos(axis), -math.sin(axis)]), np.array([math.sin(axis), math.cos(axis)])
        start = np.array([6.0, -3.0])
        near(centre, 2**r * along * (along @ start) + 2**-r * across * (across @ start), 0.02)
        near(total, 1, 0.005)
        near(along @ covariance @ along, 4**r, 0.015 * 4**r)
        near(across @ covariance @ across, 4**-r, 0.015 * 4**-r)
        near(along @ covariance @ across, 0, 0.01)


def test_a_shifted_blob_moves_by_parts_of_the_sides() -> None:
    """To the right by an eighth of the width for a label of 1, down by an eighth of the height."""
    shifted = of_blob("shift", 2.0, -1.0)
    assert max(abs(told[7:9]).max() for told, *_ in shifted) > 0.5
    for told, total, centre, covariance in shifted:
        near(centre, [2 + 56 / 8 * told[7], -1 + 48 / 8 * told[8]], 0.02)
        near(total, 1, 0.003)
        near(covariance, np.eye(2), 0.015)


def test_everything_together_in_its_order() -> None:
    """Flips, scale, turn, stretch, shift, one after the other: the whole image is the carried Gaussian, to 1 %."""
    index = torch.arange(1000)
    drawn = draw(5, index, 1.0)
    small = (drawn.shift.abs().amax(-1) < 0.15) & (drawn.scale.abs() + drawn.stretch.abs() < 0.4) & drawn.x_flip & drawn.y_flip
    rows = small.nonzero()[:8, 0]
    assert len(rows) == 8
    images, _ = augment(blob(64, 64, 5.0, 2.0, 3.0).expand(8, 1, 64, 64), 5, index[rows], 1.0)
    down, across = np.mgrid[:64, :64] + 0.5 - 32
    points = np.stack([across, down], -1)

    def turn(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    for row, image in zip(rows, images, strict=True):
        r, axis = float(drawn.stretch[row]), float(drawn.axis[row])
        ellipse = turn(axis) @ np.diag([2**r, 2**-r]) @ turn(-axis)
        matrix = ellipse @ turn(float(drawn.angle[row])) * 2 ** float(drawn.scale[row])
        centre = matrix @ [-5.0, -2.0] + drawn.shift[row].numpy() * 64
        inside = np.linalg.inv(9 * matrix @ matrix.T)
        offset = points - centre
        near(image[0].numpy(), np.exp(-np.einsum("hwi,ij,hwj->hw", offset, inside, offset) / 2), 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_resampled_keeps_its_bits(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Images for which nothing was drawn are as they were, and only mirrored pixels are moved and nothing else."""
    index = torch.cat([torch.arange(150), only("x_flip", 2), only("y_flip", 2)])
    images = noise(len(index), *shape).to(dtype)
    kept = images.clone()
    out, labels = augment(images, 1, index, P)
    assert torch.equal(images, kept)
    assert out.data_ptr() != images.data_ptr()
    assert (out.dtype, out.shape) == (dtype, images.shape)
    assert bool(out.isfinite().all())
    seen = set()
    for image, found, told in zip(images, out, labels.tolist(), strict=True):
        sides = [-1] * (told[0] == 1) + [-2] * (told[1] == 1)
        mirrored = image.flip(sides) if sides else image
        assert torch.equal(found, mirrored) == (not any(told[2:]))
        seen.add((told[0], told[1], any(told[2:])))
    assert {(0, 0, False), (1, 0, False), (0, 1, False), (0, 0, True)} <= seen


@pytest.mark.parametrize("shape", SHAPES)
def test_probability_zero_leaves_fair_flips(shape: tuple[int, int, int]) -> None:
    images = noise(400, *shape)
    out, labels = augment(images, 3, torch.arange(400), 0)
    coin = labels[:, 0].bool()
    assert deviations(coin, 0.5) < 4
    assert not labels[:, 1:].any()
    assert torch.equal(out, torch.where(coin[:, None, None, None], images.flip(-1), images))


@pytest.mark.parametrize("shape", SHAPES)
def test_probability_one_resamples_all(shape: tuple[int, int, int]) -> None:
    """Also 4x4, where filters and reflections reach several times over the image."""
    images = noise(40, *shape)
    out, labels = augment(images, 3, torch.arange(40), 1)
    assert bool((labels[:, 2:] != 0).all())
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) < 2  # filters overshoot a little even on noise
    assert all(float((a - b).abs().max()) > 0.05 for a, b in zip(out, images, strict=True))


# ---- what it may not depend on


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.floats(0, 1), st.data())
def test_an_image_does_not_depend_on_its_batch(seed: int, indices: list[int], p: float, data: st.DataObject) -> None:
    """Labels bit for bit, images to rounding, for any part of a batch in any order."""
    index, images = torch.tensor(indices), noise(len(indices), 1, 5, 6)
    whole, labels = augment(images, seed, index, p)
    part = torch.tensor(data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1, max_size=6)))
    found, told = augment(images[part], seed, index[part], p)
    assert torch.equal(told, labels[part])
    torch.testing.assert_close(found, whole[part], rtol=0, atol=2e-6)


@given(st.integers(0, 2**63 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_probability_only_adds(seed: int, one: float, other: float) -> None:
    """What is drawn at p is drawn with the same numbers at every higher p, so runs can be compared."""
    low, high = (draw(seed, torch.arange(20), p).labels() for p in sorted((one, other)))
    assert torch.equal(torch.where(low != 0, high, 0), low)


def test_channels_are_moved_together() -> None:
    images = noise(30, 1, 6, 7)
    out, _ = augment(images.expand(30, 3, 6, 7), 2, torch.arange(30), 0.5)
    alone, _ = augment(images, 2, torch.arange(30), 0.5)
    torch.testing.assert_close(out, alone.expand(30, 3, 6, 7), rtol=0, atol=2e-6)


def random_state() -> tuple[Any, ...]:
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2], random.getstate()


def test_global_random_state_is_left_alone() -> None:
    before = random_state()
    augment(noise(20, 1, 4, 4), 0, torch.arange(20), 1.0)
    assert random_state() == before


def test_an_empty_batch() -> None:
    out, labels = augment(torch.zeros(0, 3, 8, 8), 0, torch.arange(0), 0.5)
    assert tuple(out.shape) == (0, 3, 8, 8)
    assert tuple(labels.shape) == (0, 9)


@pytest.mark.cuda
def test_the_device_gives_the_same() -> None:
    images, index = noise(64, 3, 12, 16), torch.arange(64)
    out, labels = augment(images, 0, index, 0.5)
    for where in (index, index.cuda()):
        found, told = augment(images.cuda(), 0, where, 0.5)
        assert (found.device.type, told.device.type) == ("cuda", "cuda")
        assert torch.equal(told.cpu(), labels)
        torch.testing.assert_close(found.cpu(), out, rtol=0, atol=1e-4)


# ---- what is refused


@pytest.mark.parametrize("p", [-0.1, 1.0001, math.nan, math.inf, "0.12", None])
def test_a_probability_that_is_none(p: Any) -> None:
    with pytest.raises(InputError, match=r"augmentation probability is .*, must be from 0 to 1") as caught:
        augment(noise(2, 1, 4, 4), 0, torch.arange(2), p)
    assert repr(p) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "index", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), r"not torch.uint8 \[2, 1, 4, 4\]: convert"),
        (torch.zeros(2, 4, 4), torch.arange(2), r"images \[B, C, H, W\], not torch.float32 \[2, 4, 4\]"),
        (torch.zeros(2, 1, 4, 4), torch.arange(3), r"2 images need as many sample indices, not \[3\]"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, dtype=torch.int64), r"not \[2, 1\]"),
        (torch.zeros(2, 1, 4, 4), torch.tensor(0), r"not \[\]"),
    ],
)
def test_images_and_indices_that_do_not_fit(images: Tensor, index: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        augment(images, 0, index, 0.5)
    assert "\n" not in str(caught.value)
