"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma for denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]


def euler_step(d: Tensor, x: Tensor, sigma: float | Tensor, to: float | Tensor) -> Tensor:
    """One Euler step: x + (to - sigma) (x - D) / sigma, with D = D(x, sigma) given."""
    return x + (to - sigma) * (x - d) / sigma


def integrate(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    order: int = 2,
    callback: Callable[[dict[str, object]], None] | None = None,
) -> tuple[Tensor, int]:
    """Integrate the ODE along ``sigmas`` (Karras et al. 2022, Algorithm 1; Euler where order is 1).

    Heun's second slope is left out where the interval ends at 0, where it is not defined.

    Args:
        denoiser: D(x [B, C, H, W], sigma).
        x: State at ``sigmas[0]``; its dtype is that of the integration.
        sigmas: Descending noise levels, the last may be 0.
        order: 2 for Heun, 1 for Euler.
        callback: Called after each interval with ``step``, ``sigma``, ``x0`` (the denoiser's estimate) and ``calls``.

    Returns:
        The state at ``sigmas[-1]`` and the number of network calls.
    """
    calls = 0
    for i, (sigma, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        d = denoiser(x, sigma)
        calls += 1
        slope = (x - d) / sigma
        end = x + (to - sigma) * slope
        if order == 2 and to > 0:
            slope_end = (end - denoiser(end, to)) / to
            calls += 1
            end = x + (to - sigma) * 0.5 * (slope + slope_end)
        x = end
        if callback is not None:
            callback({"step": i, "sigma": sigma, "x0": d, "calls": calls})
    return x, calls
