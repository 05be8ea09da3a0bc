"""Classifier-free guidance: away from what a denoiser gives without a class, towards what it gives with one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Conditional = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [B, C, H, W], sigma [B], label [B]) -> [B, C, H, W]


def guided(denoiser: Conditional, x: Tensor, sigma: Tensor, label: Tensor, scale: float | Tensor) -> Tensor:
    """D_w = D(x, sigma) + w (D(x, sigma, label) - D(x, sigma)). Ho and Salimans 2022, equation 6, with w = 1 + their weight.

    Both are computed in one call on twice the batch. w = 1 is the class-conditional denoiser, w = 0 the one without a class.

    Args:
        denoiser: D with a class; a negative label means "no class", which it must have been trained with.
        x: Noisy images [B, C, H, W].
        sigma: Noise levels [B].
        label: Classes int64 [B].
        scale: w, one number or [B].

    Returns:
        [B, C, H, W].
    """
    none = torch.full_like(label, -1)
    with_class, without = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, none])).chunk(2)
    w = scale.to(x.dtype).reshape(-1, *([1] * (x.dim() - 1))) if isinstance(scale, Tensor) else scale
    return without + w * (with_class - without)
