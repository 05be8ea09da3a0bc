"""MeanFlow and its improved form (iMF): the average velocity between two times, learnt from an identity that holds for it.

Geng et al. 2025, "Mean flows for one-step generative modeling", Algorithm 1; Geng et al. 2025, "Improved mean flows". All is a
flow with unit noise: z_t = (1 - t) y + t e, velocity v = e - y, and u(z, t, r) is the mean of the velocity on the trajectory
through (z, t) from r to t, so that z_r = z_t - (t - r) u. Differentiating (t - r) u along the trajectory gives

    u = v - (t - r) du/dt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from atonce.objectives.derivative import How, along
from atonce.objectives.discrete import Terms
from atonce.preconditioning import Network, Preconditioning

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # u(z [B, C, H, W], t [B], r [B])
Along = Literal["sample", "predicted"]


def mean_flow(
    u: Velocity,
    y: Tensor,
    e: Tensor,
    t: Tensor,
    r: Tensor,
    *,
    direction: Along = "sample",
    guide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    p: float = 1.0,
    c: float = 0.01,
    how: How = "jvp",
    plain: Velocity | None = None,
) -> Terms:
    """||u - sg(v - (t - r) du/dt)||^2 / sg(||.||^2 + c)^p. Geng et al. 2025, Algorithm 1 and equation 22.

    The derivative is that of u along (dz, dt, dr) = (v, 1, 0). MeanFlow goes along the sample's v = e - y. iMF goes along the
    velocity that the network itself predicts, u(z, t, t): then u + (t - r) du/dt does not depend on the sample, and regressing
    it on v is regression proper (the gradient passes through u alone in both).

    Args:
        u: The average velocity that is trained.
        y: Clean images [B, C, H, W].
        e: Unit normal noise [B, C, H, W].
        t: Flow times [B].
        r: Earlier flow times [B], 0 <= r <= t.
        direction: Along which velocity u is differentiated: ``"sample"`` (MeanFlow) or ``"predicted"`` (iMF).
        guide: What the sample's velocity becomes under guidance, of (v, z, t); see :func:`guided_velocity`.
        p: Power of the weight; 0 is the plain squared error.
        c: What keeps the weight finite.
        how: How the derivative is computed.
        plain: u for the derivative, where ``u`` runs a compiled network.

    Returns:
        Loss [B], and as the distance the root mean square of the error.
    """
    steady = plain or u
    late, early = (s.reshape(-1, *[1] * (y.dim() - 1)) for s in (t, r))
    z, v = (1 - late) * y + late * e, e - y
    with torch.no_grad():
        if guide is not None:
            v = guide(v, z, t)
        way = v if direction == "sample" else steady(z, t, t)
        _, du = along(lambda z, t: steady(z, t, r), (z, t), (way, torch.ones_like(t)), how)
        goal = v - (late - early) * du
    error = (u(z, t, r) - goal).square().flatten(1).sum(1)
    return Terms(error / (error.detach() + c) ** p, (error.detach() / y[0].numel()).sqrt())


def average_velocity(preconditioning: Preconditioning, network: Network, **told: Any) -> Velocity:
    """U of a network under a preconditioning: what makes z_t - (t - r) u the preconditioning's own map.

    For ``"flow"`` u = F(z, ...) as published. For ``"trigflow"``, with sigma = t / (1 - t) and x = z / (1 - t),

        u = (sigma - sigma_data^2) / (sigma^2 + sigma_data^2) x + (1 + sigma) sigma_data / sqrt(sigma^2 + sigma_data^2) F,

    whatever r is, so that a diffusion model of EDM's form is the exact start: its velocity, for every r.

    Args:
        preconditioning: Of kind ``"flow"`` or ``"trigflow"``.
        network: F.
        told: What it is told beside the times.

    Returns:
        u(z, t, r).
    """
    p = preconditioning

    def u(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        sigma, to = t / (1 - t), r / (1 - r)
        told["second"] = p.time(sigma) - p.time(to)
        if p.kind == "flow":
            return network(z, p.c_noise(sigma), **told)
        b = (slice(None), *[None] * (z.dim() - 1))
        x, c_in = z / (1 - t)[b], (sigma**2 + p.sigma_data**2).rsqrt()
        skip, out = (sigma - p.sigma_data**2) * c_in**2, (1 + sigma) * p.sigma_data * c_in
        return skip[b] * x + out[b] * network(c_in[b] * x, p.c_noise(sigma), **told)

    return u


def guided_velocity(u: Velocity, without: Velocity, scale: Tensor, known: Tensor, direction: Along) -> Any:
    """The sample's velocity under guidance with scale w, such that the network learns v_u + w (v_c - v_u) by itself.

    MeanFlow: w v + (1 - w) u_u (Geng et al. 2025, equation 19 with kappa = 0), with u_u = u(z, t, t) without a class. iMF:
    v + (1 - 1/w) (u_c - u_u), of less variance; where u_c has learnt it, u_c = v_c + (1 - 1/w) (u_c - u_u) says the same.
    Images without a class keep v.

    Args:
        u: The average velocity of images with their classes.
        without: The same without classes.
        scale: w [B], at least 1.
        known: Which images have a class, bool [B].
        direction: Form of the method.

    Returns:
        A function of (v, z, t).
    """

    def guide(v: Tensor, z: Tensor, t: Tensor) -> Tensor:
        w = torch.where(known, scale.to(v.dtype), 1.0).reshape(-1, *[1] * (v.dim() - 1))
        if direction == "sample":
            return w * v + (1 - w) * without(z, t, t)
        return v + (1 - 1 / w) * (u(z, t, t) - without(z, t, t))

    return guide
