"""Sampling with a consistency function: one step, or restarts from fresh noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Function = Callable[[Tensor, float], Tensor]


def restart(
    f: Function,
    noise: Callable[[int], Tensor],
    sigmas: Sequence[float],
    sigma_end: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    callback: Callable[[dict[str, object]], None] | None = None,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1).

    x <- f(sigma_1 z, sigma_1); then for each further sigma: x <- f(x + sqrt(sigma^2 - sigma_end^2) z, sigma).

    Args:
        f: Consistency function of (x [B, C, H, W], sigma).
        noise: Unit normal noise [B, C, H, W] of step i.
        sigmas: Descending noise levels; one network call each.
        sigma_end: The noise level at which f's outputs live.
        clip: Range to which every estimate is clamped, or ``None``.
        callback: Called after each step with ``step``, ``sigma``, ``x0`` and ``calls``.

    Returns:
        Samples [B, C, H, W].
    """
    x0: Tensor | None = None
    for i, sigma in enumerate(sigmas):
        z = noise(i)
        x = sigma * z if x0 is None else x0 + (sigma**2 - sigma_end**2) ** 0.5 * z
        x0 = f(x, sigma)
        if clip is not None:
            x0 = x0.clamp(*clip)
        if callback is not None:
            callback({"step": i, "sigma": sigma, "x0": x0, "calls": i + 1})
    assert x0 is not None  # sigmas is never empty: the callers check
    return x0
