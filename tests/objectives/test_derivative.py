"""The derivative along a direction: exact by forward mode, four digits by differences, and no gradients from either."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.objectives.derivative import along


def function(x: Tensor, c: Tensor) -> Tensor:
    return (x * c[:, None].sin()).exp() + c[:, None] ** 2


X = torch.tensor([[0.3, -1.0], [0.7, 2.0]], dtype=torch.float64)
C = torch.tensor([0.4, 1.3], dtype=torch.float64)
DX = torch.tensor([[1.0, 0.5], [-2.0, 0.1]], dtype=torch.float64)
DC = torch.tensor([0.2, -1.0], dtype=torch.float64)
EXACT = (X * C[:, None].sin()).exp() * (DX * C[:, None].sin() + X * C[:, None].cos() * DC[:, None]) + 2 * (C * DC)[:, None]


@pytest.mark.parametrize(
    ("how", "dtype", "error"),
    [
        ("jvp", torch.float64, 1e-14),
        ("jvp", torch.float32, 2e-6),
        ("difference", torch.float64, 1e-9),
        ("difference", torch.float32, 5e-4),
    ],
)
def test_it_is_the_derivative(how: str, dtype: torch.dtype, error: float) -> None:
    at, direction = [X.to(dtype), C.to(dtype)], [DX.to(dtype), DC.to(dtype)]
    value, tangent = along(function, at, direction, how)  # type: ignore[arg-type]
    assert value.dtype == tangent.dtype == dtype
    torch.testing.assert_close(value, function(*at), rtol=0, atol=0)
    assert float((tangent.double() - EXACT).abs().max() / EXACT.abs().max()) < error


@pytest.mark.parametrize("how", ["jvp", "difference"])
def test_no_gradient_comes_out(how: str) -> None:
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    value, tangent = along(lambda x, c: function(x * scale, c), [X, C], [DX, DC], how)  # type: ignore[arg-type]
    assert not value.requires_grad
    assert not tangent.requires_grad


def test_a_constant_has_derivative_zero() -> None:
    value, tangent = along(lambda x, c: torch.ones(2, 2, dtype=torch.float64), [X, C], [DX, DC])
    assert float(value.sum()) == 4
    assert torch.equal(tangent, torch.zeros(2, 2, dtype=torch.float64))
