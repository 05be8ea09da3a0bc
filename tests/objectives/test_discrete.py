"""The discrete family as a function: who sees what, and where the gradient goes. Its mathematics is in tests/oracles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atonce.objectives.discrete import discrete, same_noise, teacher_step, to_data
from atonce.objectives.distances import l2

G = torch.Generator().manual_seed(0)
Y, Z = (torch.randn(3, 2, 4, 4, generator=G, dtype=torch.float64) for _ in range(2))
T = torch.tensor([0.5, 2.0, 40.0], dtype=torch.float64)
R = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)


def column(s: Tensor) -> Tensor:
    return s[:, None, None, None]


class Scale(nn.Module):
    """x times a weight, and a memory of what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((x.detach(), sigma, torch.is_grad_enabled()))
        return self.a * x


def test_who_sees_what() -> None:
    student, target = Scale(0.7), Scale(0.4)
    weight = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    terms = discrete(student, target, Y, Z, T, R, path=same_noise, distance=l2, weight=weight)
    x_t, x_r = Y + column(T) * Z, Y + column(R) * Z
    ((seen_t, level_t, grad_t),) = student.calls
    ((seen_r, level_r, grad_r),) = target.calls
    torch.testing.assert_close((seen_t, seen_r), (x_t, x_r))
    assert torch.equal(level_t, T)
    assert torch.equal(level_r, R)
    assert (grad_t, grad_r) == (True, False)
    expected = l2(0.7 * x_t, 0.4 * x_r)
    torch.testing.assert_close(terms.distance, expected)
    torch.testing.assert_close(terms.loss, weight * expected)
    assert not terms.distance.requires_grad


def test_no_gradient_reaches_the_target() -> None:
    student, target = Scale(0.7), Scale(0.4)
    discrete(student, target, Y, Z, T, R, path=same_noise, distance=l2, weight=torch.ones(3)).loss.sum().backward()
    assert target.a.grad is None
    assert student.a.grad is not None


def test_the_student_as_its_own_target_is_held_still() -> None:
    """iCT: the same weights at both ends, the gradient through one of them only."""
    student = Scale(0.7)
    discrete(student, student, Y, Z, T, R, path=same_noise, distance=l2, weight=torch.ones(3)).loss.sum().backward()
    x_t, x_r = Y + column(T) * Z, Y + column(R) * Z
    through_one = (2 * 0.7 * (x_t - x_r) * x_t).flatten(1).mean(1).sum()
    through_both = (2 * 0.7 * (x_t - x_r) ** 2).flatten(1).mean(1).sum()
    torch.testing.assert_close(student.a.grad, through_one)
    assert abs(float(through_one - through_both)) > 1


def test_denoising_has_no_target_network() -> None:
    student = Scale(0.7)
    terms = discrete(student, None, Y, Z, T, torch.zeros(3), path=to_data, distance=l2, weight=torch.ones(3))
    torch.testing.assert_close(terms.loss, l2(0.7 * (Y + column(T) * Z), Y))
    assert len(student.calls) == 1


def test_same_noise_ends_at_the_data() -> None:
    x_t = Y + column(T) * Z
    assert torch.equal(same_noise(x_t, Y, Z, T, torch.zeros(3)), Y)
    torch.testing.assert_close(same_noise(x_t, Y, Z, T, T), x_t)


@pytest.mark.parametrize("order", [1, 2])
def test_a_teacher_step_down_to_zero_is_an_euler_step(order: int) -> None:
    """Heun's second slope is not defined at 0, and one 0 in the batch must not spoil the others."""
    x_t = Y + column(T) * Z
    r = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (0.25 / (0.25 + column(sigma) ** 2))

    x_r = teacher_step(denoiser, order)(x_t, Y, Z, T, r)
    assert bool(torch.isfinite(x_r).all())
    torch.testing.assert_close(x_r[[0, 2]], denoiser(x_t, T)[[0, 2]])
    inner = teacher_step(denoiser, order)(x_t[1:2], Y[1:2], Z[1:2], T[1:2], r[1:2])
    torch.testing.assert_close(x_r[1:2], inner)
