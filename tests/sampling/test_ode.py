"""ODE solvers as functions; their order of accuracy is in tests/oracles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atonce.sampling.ode import euler_step, integrate

X = torch.tensor([[1.0, -2.0]], dtype=torch.float64)


def denoiser(x: Tensor, sigma: float) -> Tensor:
    return x * 0.25 / (0.25 + sigma**2)


def test_one_step_by_hand() -> None:
    s, r = 2.0, 1.0
    slope = (X - denoiser(X, s)) / s
    end = X + (r - s) * slope
    torch.testing.assert_close(integrate(denoiser, X, [s, r], order=1)[0], end)
    torch.testing.assert_close(euler_step(denoiser(X, s), X, s, r), end)
    half = X + (r - s) * (slope + (end - denoiser(end, r)) / r) / 2
    torch.testing.assert_close(integrate(denoiser, X, [s, r], order=2)[0], half)


def test_a_step_to_zero_gives_the_denoiser() -> None:
    for order in (1, 2):
        x, calls = integrate(denoiser, X, [2.0, 0.0], order=order)
        torch.testing.assert_close(x, denoiser(X, 2.0))
        assert calls == 1


def test_callback() -> None:
    seen: list[dict[str, Any]] = []
    _, calls = integrate(denoiser, X, [4.0, 2.0, 0.0], order=2, callback=seen.append)
    assert [(info["step"], info["sigma"], info["calls"]) for info in seen] == [(0, 4.0, 2), (1, 2.0, 3)]
    assert calls == 3
    assert torch.equal(seen[0]["x0"], denoiser(X, 4.0))


def test_no_interval_no_call() -> None:
    x, calls = integrate(denoiser, X, [2.0])
    assert torch.equal(x, X)
    assert calls == 0
