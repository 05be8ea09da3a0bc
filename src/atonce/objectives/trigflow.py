"""Continuous-time consistency models, sCT and sCD: the limit of pairs (t, r) as r goes to t.

Lu and Song 2024, "Simplifying, stabilizing and scaling continuous-time consistency models", Algorithm 1. All is TrigFlow:
x_t = cos t y + sin t sigma_data z = cos t (y + sigma z) with tan t = sigma / sigma_data, the network's input is
x_t / sigma_data, its output F the slope of the trajectory over sigma_data, and f = cos t x_t - sin t sigma_data F its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from atonce.objectives.derivative import How, along
from atonce.objectives.discrete import Function, Terms
from atonce.preconditioning import Preconditioning

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], cos t, sin t) -> dx/dt
Norm = Literal["sample", "rcm", "rms", "clip", "none"]


def continuous(
    network: Function,
    y: Tensor,
    z: Tensor,
    sigma: Tensor,
    *,
    preconditioning: Preconditioning,
    slope: Slope,
    warmth: float,
    norm: Norm = "sample",
    log_weight: Tensor | None = None,
    how: How = "jvp",
    plain: Function | None = None,
) -> Terms:
    """exp(w) / D ||F - sg F - g||^2 - w, with the tangent g from one Jacobian-vector product. Lu and Song 2024, Algorithm 1.

    Args:
        network: F(x_t / sigma_data, c_noise).
        y: Clean images [B, C, H, W].
        z: Unit normal noise [B, C, H, W].
        sigma: Noise levels [B].
        preconditioning: The model's, of kind ``"trigflow"``.
        slope: dx/dt of the trajectory through x_t: :func:`same_noise_slope` (sCT) or :func:`teacher_slope` (sCD).
        warmth: r in [0, 1]: how much of the tangent's second part is in use.
        norm: How the tangent is brought to size, see :func:`normalised`.
        log_weight: w(t) [B], learnt together with F; ``None`` for 0.
        how: How the derivative is computed.
        plain: F for the derivative, where ``network`` is a compiled form of it.

    Returns:
        Loss [B], and as the distance the root mean square of the tangent before it is normalised.
    """
    sigma_data, b = preconditioning.sigma_data, (slice(None), *[None] * (y.dim() - 1))
    sin, cos = ((s / (sigma**2 + sigma_data**2).sqrt())[b] for s in (sigma, torch.full_like(sigma, sigma_data)))
    x = cos * y + sin * sigma_data * z
    at = (x / sigma_data, preconditioning.c_noise(sigma))
    with torch.no_grad():
        dx = slope(x, cos, sin)
        # d/d(ln sigma) = cos t sin t d/dt: the rearranged tangents of section 4.1, in which no clock explodes.
        rate = (cos * sin).reshape(-1) if preconditioning.clock == "time" else torch.full_like(sigma, 0.25)
        target, dF = along(plain or network, at, (cos * sin * dx / sigma_data, rate), how)
        g = tangent(sigma_data * target, sigma_data * dF, x, dx, cos, sin, warmth, norm)
        distance = g.square().flatten(1).mean(1).sqrt()
        goal = target + normalised(g, norm)
    error = (network(*at) - goal).square().flatten(1).mean(1)
    loss = error if log_weight is None else log_weight.exp() * error - log_weight
    return Terms(loss, distance)


def tangent(F: Tensor, dF: Tensor, x: Tensor, dx: Tensor, cos: Tensor, sin: Tensor, r: float, norm: Norm) -> Tensor:
    """G = -cos^2 t (sigma_data F - dx/dt) - r cos t sin t (x_t + sigma_data dF/dt). Lu and Song 2024, Algorithm 1.

    At r = 1 it is cos t df/dt. With ``norm="rcm"`` the first factor is cos t sqrt(1 - r^2 sin^2 t) as in the code of rCM
    (Zheng et al. 2025): cos t at r = 0, where the loss then is the diffusion model's, and cos^2 t at r = 1.

    Args:
        F: sigma_data F [B, C, H, W].
        dF: cos t sin t sigma_data dF/dt along the trajectory [B, C, H, W].
        x: States x_t.
        dx: Slope of the trajectory.
        cos: cos t [B, 1, 1, 1].
        sin: sin t [B, 1, 1, 1].
        r: Warm-up, from 0 to 1.
        norm: Convention.

    Returns:
        [B, C, H, W].
    """
    first = cos * (1 - r**2 * sin**2).sqrt() if norm == "rcm" else cos**2
    return -first * (F - dx) - r * (cos * sin * x + dF)


def normalised(g: Tensor, norm: Norm, c: float = 0.1) -> Tensor:
    """The tangent at a size that does not depend on the noise level. Lu and Song 2024, section 4.1.

    ``"sample"``: g / (||g|| + 0.1) with the Euclidean norm over the whole image (the paper). ``"rcm"``: the same, with the norm
    in float64 (rCM's code). ``"rms"``: with ||g|| / sqrt(D) instead, so that the result's size does not depend on the number of
    pixels (FastGen's code; its further constant factors vanish under a learnt weight). ``"clip"``: to [-1, 1] (the paper's
    alternative). ``"none"``: as it is.

    Args:
        g: Tangents [B, C, H, W].
        norm: Convention.
        c: What keeps small tangents small.

    Returns:
        [B, C, H, W].
    """
    match norm:
        case "none":
            return g
        case "clip":
            return g.clamp(-1, 1)
        case "sample" | "rcm" | "rms":
            size = torch.linalg.vector_norm(g.double() if norm == "rcm" else g, dim=tuple(range(1, g.dim())), keepdim=True)
            return g / (size / g[0].numel() ** 0.5 + c if norm == "rms" else size + c).to(g.dtype)


def same_noise_slope(y: Tensor, z: Tensor, sigma_data: float) -> Slope:
    """dx/dt = cos t sigma_data z - sin t y: the one-sample estimate (sCT). Lu and Song 2024, section 3."""
    return lambda x, cos, sin: cos * sigma_data * z - sin * y


def teacher_slope(denoiser: Function, sigma: Tensor) -> Slope:
    """dx/dt = (cos t x_t - D) / sin t of a diffusion model (sCD), with D at the variance-exploding state x_t / cos t.

    Args:
        denoiser: D(x, sigma) of the teacher.
        sigma: Noise levels [B].

    Returns:
        The slope.
    """
    return lambda x, cos, sin: (cos * x - denoiser(x / cos, sigma)) / sin
