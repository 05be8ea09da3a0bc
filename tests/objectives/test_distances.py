"""Distances: printed values, gradients where the pair coincides, and the norm over the whole image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.objectives.distances import Distance, huber_constant, l1, l2, pseudo_huber


def pair(norm: float, dimension: int = 3072, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two images at the Euclidean distance ``norm``."""
    b = torch.randn(1, 3, 32, dimension // 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.randn(b.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (b + norm * direction / direction.norm()).to(dtype), b.to(dtype)


@pytest.mark.parametrize(
    ("dimension", "c"), [(3072, 0.0299298380), (12288, 0.0598596759), (784, 0.01512), (196608, 0.2394387036)]
)
def test_constant(dimension: int, c: float) -> None:
    assert abs(huber_constant(dimension) - c) <= 5e-11


@pytest.mark.parametrize(("norm", "value"), [(0.0, 0.0), (0.1, 0.0744530879), (1.0, 0.9705179594), (10.0, 9.9701149517)])
def test_pseudo_huber_values(norm: float, value: float) -> None:
    assert abs(float(pseudo_huber(*pair(norm))) - value) <= 5e-11


def test_pseudo_huber_at_the_constant() -> None:
    c = huber_constant(3072)
    a, b = pair(c)
    a.requires_grad_()
    value = pseudo_huber(a, b)
    value.sum().backward()
    assert abs(float(value.detach()) - 0.0123973448) <= 5e-11
    assert a.grad is not None
    assert abs(float(a.grad.norm()) - 0.70710678) <= 5e-9


def test_the_norm_is_of_the_whole_image() -> None:
    """A difference of .01 everywhere is .5251; with a constant for each element it would be .0016 (mean) or 4.996 (sum)."""
    a = torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    value = pseudo_huber(a + 0.01, a)
    assert value.shape == (2,)
    assert float((value - 0.52513394).abs().max()) <= 5e-9
    c = huber_constant(3072)
    wrong = (torch.full((3072,), 1e-4, dtype=torch.float64) + c**2).sqrt() - c
    assert abs(float(wrong.mean()) - 1.6263849e-3) < 1e-9
    assert abs(float(wrong.sum()) - 4.99625437) < 1e-7


def test_the_constant_is_of_one_image_not_of_the_batch() -> None:
    a, b = pair(0.1)
    torch.testing.assert_close(pseudo_huber(a.expand(5, -1, -1, -1), b.expand(5, -1, -1, -1)), pseudo_huber(a, b).expand(5))


@pytest.mark.parametrize("c", [0.0, 1e-4, 0.03, None])
def test_gradient_where_the_pair_coincides(c: float | None) -> None:
    a = torch.ones(2, 1, 4, 4, requires_grad=True)
    b = torch.ones(2, 1, 4, 4)
    b[1] += 0.1  # one coinciding pair beside one that does not
    value = pseudo_huber(a, b, c)
    value.sum().backward()
    assert a.grad is not None
    assert bool(torch.isfinite(a.grad).all())
    assert not a.grad[0].any()
    assert float(value[0].detach()) == 0.0
    assert float(a.grad[1].norm()) > 0.5


def test_without_a_constant_it_is_the_norm() -> None:
    a, b = pair(0.37)
    a.requires_grad_()
    value = pseudo_huber(a, b, 0.0)
    value.sum().backward()
    assert abs(float(value.detach()) - 0.37) < 1e-12
    assert a.grad is not None
    assert abs(float(a.grad.norm()) - 1) < 1e-12


@pytest.mark.parametrize("norm", [1e-6, 1e-4, 1e-2])
def test_close_pairs_do_not_cancel_in_float32(norm: float) -> None:
    """At large N pairs are this close; sqrt(x^2 + c^2) - c as written gives 0 or noise there."""
    a = torch.zeros(1, 3, 32, 32)
    value = float(pseudo_huber(a + norm / math.sqrt(3072), a))
    c = huber_constant(3072)
    assert math.isclose(value, norm**2 / (math.sqrt(norm**2 + c**2) + c), rel_tol=1e-4)


def test_l1_and_l2_are_means() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[0] += 0.5
    b[1, 0, 0, 0] = -2.0
    torch.testing.assert_close(l1(a, b), torch.tensor([0.5, 2 / 48]))
    torch.testing.assert_close(l2(a, b), torch.tensor([0.25, 4 / 48]))


@pytest.mark.parametrize("distance", [l1, l2, pseudo_huber, lambda a, b: pseudo_huber(a, b, 0.0)])
@given(st.integers(0, 2**31), st.floats(0.01, 10))
def test_what_every_distance_is(distance: Distance, seed: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64) * scale for _ in range(2))
    value = distance(a, b)
    assert value.shape == (4,)
    assert (value > 0).all()
    assert not distance(a, a).any()
    torch.testing.assert_close(distance(b, a), value)
    torch.testing.assert_close(distance(-a, -b), value)
    torch.testing.assert_close(distance(a[[2, 0]], b[[2, 0]]), value[[2, 0]])
    assert (distance(a + 2 * (a - b), b) > value).all()
