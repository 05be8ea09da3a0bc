"""Progressive distillation: a denoiser learns to do in one step of its grid what its teacher does in two.

The student is a denoiser on its own grid, sampled by Euler (DDIM) steps on that grid. When it has learnt, it becomes the
teacher of the next one, with half as many steps. In the terms of the discrete family this is one more path, with the data's
place taken by the clean image that two steps of the teacher imply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.objectives.discrete import Function, Path
from atonce.sampling.ode import euler_step


def two_steps(denoiser: Function, middle: Tensor) -> Path:
    """Path of progressive distillation. Salimans and Ho 2022, Algorithm 2, in variance-exploding form.

    Two Euler steps of the teacher, t to t' to t'', give x''. The clean image from which one step from t to t'' gives the same
    is D = (x'' - (t''/t) x) / (1 - t''/t), and the student regresses on it. Where t'' is 0, D = x''.

    Args:
        denoiser: D(x, sigma) of the teacher.
        middle: t' of each image [B], between r and t.

    Returns:
        A path from x_t to D, with r in the place of t''.
    """

    def path(x_t: Tensor, y: Tensor, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        a, m, b = (s.to(x_t.dtype).reshape(-1, *([1] * (x_t.dim() - 1))) for s in (t, middle, r))
        half = euler_step(denoiser(x_t, t), x_t, a, m)
        end = euler_step(denoiser(half, middle), half, m, b)
        return (end - b / a * x_t) / (1 - b / a)

    return path


def truncated_snr(t: Tensor) -> Tensor:
    """Weight max(SNR, 1) on the squared error of the clean image, SNR = 1 / t^2. Salimans and Ho 2022, section 4.

    Args:
        t: Noise levels of the student [B].

    Returns:
        [B].
    """
    return torch.clamp(t**-2, min=1.0)
