"""Distances between two images, one number for each pair of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference over C, H, W. Song et al. 2023, section 5.

    Args:
        a: Images [B, C, H, W].
        b: Images [B, C, H, W].

    Returns:
        [B].
    """
    return (a - b).abs().flatten(1).mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over C, H, W (no root). Song et al. 2023, section 5.

    Args:
        a: Images [B, C, H, W].
        b: Images [B, C, H, W].

    Returns:
        [B].
    """
    return (a - b).square().flatten(1).mean(1)


def huber_constant(dimension: int) -> float:
    """The constant of the pseudo-Huber distance, c = 0.00054 sqrt(d). Song and Dhariwal 2023, section 3.3.

    Args:
        dimension: Scalars in one image, d = C H W.

    Returns:
        c.
    """
    return 0.00054 * math.sqrt(dimension)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c, with the norm over the whole image, not per pixel. Song and Dhariwal 2023, equation 10.

    With c = 0 it is the Euclidean norm (the default of ECT), whose gradient at a = b is taken as zero.

    Args:
        a: Images [B, C, H, W].
        b: Images [B, C, H, W].
        c: Constant; default :func:`huber_constant` of the dimension.

    Returns:
        [B].
    """
    squared = (a - b).square().flatten(1).sum(1)
    if c is None:
        c = huber_constant(a[0].numel())
    if c == 0:
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
    # ||.||^2 / (sqrt(||.||^2 + c^2) + c) is the same number without cancellation where the pair is close.
    return squared / ((squared + c**2).sqrt() + c)
