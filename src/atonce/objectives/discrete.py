"""The discrete family: denoising, CD, CT, iCT and ECT are one function and five choices.

The choices: pairs (t, r), path from x_t to x_r, target network, distance, weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atonce.objectives.distances import Distance

Function = Callable[[Tensor, Tensor], Tensor]  # (x [B, C, H, W], sigma [B]) -> [B, C, H, W]
Path = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (x_t, y, z, t, r) -> x_r


@dataclass(frozen=True)
class Terms:
    """What one evaluation of an objective gives, for each image of the batch.

    Attributes:
        loss: weight x distance [B]; its mean is minimised.
        distance: Distance of the pair before the weight [B].
    """

    loss: Tensor
    distance: Tensor


def discrete(
    student: Function,
    target: Function | None,
    y: Tensor,
    z: Tensor,
    t: Tensor,
    r: Tensor,
    *,
    path: Path,
    distance: Distance,
    weight: Tensor,
) -> Terms:
    """weight(t, r) d(f_student(x_t, t), sg f_target(x_r, r)) with x_t = y + t z. Song et al. 2023, Algorithms 2 and 3.

    Args:
        student: The function that is trained.
        target: The function of the other end: the student itself (iCT, ECT), its moving average (CD, CT), or ``None`` where
            the point x_r is already the end of the trajectory (denoising).
        y: Clean images [B, C, H, W].
        z: Unit normal noise [B, C, H, W].
        t: Noise levels of the student [B].
        r: Noise levels of the target [B], below ``t``, 0 allowed.
        path: How x_r is got from x_t.
        distance: d.
        weight: Factor on the distance [B].

    Returns:
        Loss and distance [B].
    """
    x_t = y + _column(t, y) * z
    prediction = student(x_t, t)
    with torch.no_grad():
        x_r = path(x_t, y, z, t, r)
        goal = x_r if target is None else target(x_r, r)
    pair = distance(prediction, goal)
    return Terms(weight * pair, pair.detach())


def same_noise(x_t: Tensor, y: Tensor, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """x_r = y + r z: the Euler step of the one-sample score estimate (consistency training). Song et al. 2023, equation 10.

    Args:
        x_t: Noisy images [B, C, H, W].
        y: Clean images.
        z: The noise of ``x_t``.
        t: Its noise levels [B].
        r: The noise levels to go to [B].

    Returns:
        [B, C, H, W].
    """
    return y + _column(r, y) * z


def to_data(x_t: Tensor, y: Tensor, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """x_0 = y: the data itself (denoising). Arguments as in :func:`same_noise`."""
    return y


def teacher_step(denoiser: Function, order: int) -> Path:
    """Path of distillation: one step of the probability-flow ODE with a teacher. Song et al. 2023, equation 6 and Appendix C.

    Args:
        denoiser: D(x, sigma) of the teacher.
        order: 1 for Euler, 2 for Heun.

    Returns:
        A path: x_r = x_t + (r - t) slope, where Heun averages the slopes at both ends. Where r is 0 the slope there is not
        defined and the step is Euler's, as in the sampler.
    """

    def path(x_t: Tensor, y: Tensor, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        a, b = _column(t, x_t), _column(r, x_t)
        slope = (x_t - denoiser(x_t, t)) / a
        end = x_t + (b - a) * slope
        if order == 1:
            return end
        inside = b > 0
        slope_end = (end - denoiser(end, r)) / torch.where(inside, b, 1.0)
        return torch.where(inside, x_t + (b - a) * 0.5 * (slope + slope_end), end)

    return path


def _column(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))
