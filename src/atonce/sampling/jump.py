"""Sampling with a flow map: jumps along the trajectory, without fresh noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from atonce.core.errors import InputError

Map = Callable[[Tensor, float, float], Tensor]


def jump(
    f: Map,
    noise: Callable[[int], Tensor],
    sigmas: Sequence[float],
    sigma_end: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    callback: Callable[[dict[str, object]], None] | None = None,
) -> Tensor:
    """X <- f(x, sigma_i, to = sigma_{i+1}) from x = sigma_1 z to the end of the trajectory: deterministic given z.

    Geng et al. 2025 (Mean flows), equation 12; Zhou et al. 2025 (IMM), Algorithm 2 ("pushforward").

    Args:
        f: Flow map of (x [B, C, H, W], sigma, to).
        noise: Unit normal noise [B, C, H, W] of step i; only that of step 0 is used.
        sigmas: Descending noise levels; one network call each.
        sigma_end: Where the trajectory ends.
        clip: Range to which the result is clamped, or ``None``. What lies between are noisy states and stays as it is.
        callback: Called after each step with ``step``, ``sigma``, ``x0`` (the state reached, at last the image) and ``calls``.

    Returns:
        Samples [B, C, H, W].

    Raises:
        InputError: There are no noise levels.
    """
    if not sigmas:
        raise InputError("sigmas is empty: give at least one noise level")
    x = sigmas[0] * noise(0)
    for i, (sigma, to) in enumerate(zip(sigmas, [*sigmas[1:], sigma_end], strict=True)):
        x = f(x, sigma, to)
        if clip is not None and to == sigma_end:
            x = x.clamp(*clip)
        if callback is not None:
            callback({"step": i, "sigma": sigma, "x0": x, "calls": i + 1})
    return x
