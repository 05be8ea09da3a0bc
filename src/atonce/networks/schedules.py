"""The noise schedules of DDPM and its kin as noise levels: which sigma a step stands for, and which step a sigma is.

x_t = sqrt(abar_t) y + sqrt(1 - abar_t) z is sqrt(abar_t) times the variance-exploding state at
sigma_t = sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

import functools
import math
from typing import Literal, get_args

import torch
from torch import Tensor

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
_NEAR = 1e-3


@functools.lru_cache(maxsize=16)
def log_sigmas(schedule: Schedule, beta_start: float, beta_end: float, steps: int) -> Tensor:
    """ln(sigma_t) for t = 0, 1, ...

    The betas and their product are computed in float32, as the networks saw them.

    Args:
        schedule: ``"linear"`` (Ho et al. 2020), ``"scaled_linear"`` (its square root is linear), ``"squaredcos_cap_v2"``
            (Nichol & Dhariwal 2021, equation 17) or ``"sigmoid"``.
        beta_start: First beta.
        beta_end: Last beta.
        steps: Number of steps.

    Returns:
        float64 [steps], ascending, on the CPU.
    """
    with torch.inference_mode(False), torch.device("cpu"):  # the table outlives the call
        if schedule == "squaredcos_cap_v2":

            def left(t: float) -> float:
                return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

            betas = torch.tensor([min(1 - left((i + 1) / steps) / left(i / steps), 0.999) for i in range(steps)])
        elif schedule == "sigmoid":
            betas = torch.sigmoid(torch.linspace(-6, 6, steps)) * (beta_end - beta_start) + beta_start
        elif schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
        else:
            betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
        product = torch.cumprod(1 - betas.float(), 0).double()
        return 0.5 * ((1 - product) / product).log()


def step_of(log_sigma: Tensor, schedule: Schedule, beta_start: float, beta_end: float, steps: int) -> Tensor:
    """The step of a noise level: between two steps by linear interpolation in ln(sigma), beyond the last the last.

    A level within a thousandth of a step is that step: levels that are computed in float32 then meet what was trained.

    Args:
        log_sigma: ln(sigma), float64, any shape.
        schedule: See :func:`log_sigmas`.
        beta_start: First beta.
        beta_end: Last beta.
        steps: Number of steps.

    Returns:
        Steps from 0 to ``steps`` - 1, of the shape of ``log_sigma``; its derivative is that of the interpolation.
    """
    table = log_sigmas(schedule, beta_start, beta_end, steps).to(log_sigma.device)
    if steps == 1:
        return torch.zeros_like(log_sigma)
    value = log_sigma.clamp(float(table[0]), float(table[-1]))
    below = (torch.searchsorted(table, value.detach(), right=True) - 1).clamp(0, steps - 2)
    step = below + (value - table[below]) / (table[below + 1] - table[below])
    nearest = step.detach().round()
    return torch.where((step - nearest).abs() < _NEAR, step + (nearest - step.detach()), step)
