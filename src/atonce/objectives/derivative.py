"""The derivative of a network along a direction: by one forward-mode pass, or by differences where a network has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

How = Literal["jvp", "difference"]


@torch.no_grad()
def along(
    function: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor], how: How = "jvp"
) -> tuple[Tensor, Tensor]:
    """A function's value and its derivative along a direction; neither carries gradients.

    ``"jvp"`` is one Jacobian-vector product (about two and a half calls). ``"difference"`` is the central difference
    (F(a + h d) - F(a - h d)) / 2h with h the cube root of the rounding unit, 0.005 in float32, where truncation and rounding
    are about equal: three calls, and some four digits in float32.

    Args:
        function: Of as many tensors as there are in ``at``.
        at: Where.
        direction: One tensor for each of ``at``, of its shape.
        how: The way.

    Returns:
        F and dF, of one shape.
    """
    if how == "difference":
        h = float(torch.finfo(at[0].dtype).eps) ** (1 / 3)
        ahead, behind = (function(*(a + s * d for a, d in zip(at, direction, strict=True))) for s in (h, -h))
        return function(*at), (ahead - behind) / (2 * h)
    with forward_ad.dual_level():
        result = function(*(forward_ad.make_dual(a, d) for a, d in zip(at, direction, strict=True)))
        value, tangent = forward_ad.unpack_dual(result)
    return value, torch.zeros_like(value) if tangent is None else tangent
