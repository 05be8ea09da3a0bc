"""Forward-mode derivatives through the layers: how a tensor that carries a tangent passes each of them.

PyTorch's own rules would do for most operations, but not for fused attention, nor for group normalisation of images whose
channels come last, and they convolve three times where two suffice. So each layer asks :func:`parts` whether its input carries
a tangent; where it does, value and tangent go through in one explicit step, otherwise nothing changes. What lies between the
layers (sums, products, concatenation, resampling) follows PyTorch's rules. See ``atonce.objectives.derivative`` for the use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor


def parts(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Value and tangent of a dual tensor.

    Args:
        x: Any tensor.

    Returns:
        Both, of one shape; ``None`` for a tensor without a tangent, always so outside a forward-mode derivative.
    """
    if forward_ad._current_level < 0:
        return None
    value, tangent = forward_ad.unpack_dual(x)
    return None if tangent is None else (value, tangent)


def join(value: Tensor, tangent: Tensor) -> Tensor:
    """A dual tensor: the inverse of :func:`parts`."""
    return forward_ad.make_dual(value, tangent)


def affine(function: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map plus a bias; the tangent goes through the linear map alone.

    Args:
        function: function(x, bias); with ``None`` for the bias it is linear in x.
        x: Input, dual or not.
        bias: What is added.

    Returns:
        function(x, bias), dual where x is.
    """
    pair = parts(x)
    return function(x, bias) if pair is None else join(function(pair[0], bias), function(pair[1], None))


def silu(x: Tensor) -> Tensor:
    """X sigmoid(x), whose derivative is s (1 + x (1 - s)) with s = sigmoid(x)."""
    pair = parts(x)
    if pair is None:
        return F.silu(x)
    value, tangent = pair
    s = torch.sigmoid(value)
    return join(value * s, tangent * (s * (1 + value * (1 - s))))


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of [B, C, H, W].

    With y = (x - mean) / std, dy = (dx - mean(dx) - y mean(y dx)) / std, means over each group.

    Args:
        x: Input, dual or not.
        groups: Groups of channels.
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.

    Returns:
        Of the shape of ``x``, dual where it is.
    """
    pair = parts(x)
    if pair is None:
        return F.group_norm(x, groups, weight, bias, eps)
    value, tangent = pair
    n, c, h, w = value.shape
    whole, _, rate = torch.native_group_norm(value, None, None, n, c, h * w, groups, eps)
    y, dx, over = whole.unflatten(1, (groups, -1)), tangent.unflatten(1, (groups, -1)), (2, 3, 4)
    dy = dx - dx.mean(over, keepdim=True) - y * (dx * y).mean(over, keepdim=True)
    scale = weight[:, None, None]
    return join(whole * scale + bias[:, None, None], (dy * rate[:, :, None, None, None]).flatten(1, 2) * scale)


def attention(qkv: Tensor, split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """softmax(q.k / sqrt(c)) v: fused where nothing is differentiated forwards, written out where there is a tangent.

    Args:
        qkv: What q, k and v are cut from, dual or not.
        split: A linear map from it to q, k and v, each [B, heads, positions, c].

    Returns:
        [B, heads, positions, c], dual where ``qkv`` is.
    """
    pair = parts(qkv)
    if pair is None:
        return F.scaled_dot_product_attention(*split(qkv))
    (q, k, v), (dq, dk, dv) = (split(part) for part in pair)
    scale = q.shape[-1] ** -0.5
    p = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)
    ds = (dq @ k.transpose(-1, -2) + q @ dk.transpose(-1, -2)) * scale
    dp = p * (ds - (p * ds).sum(-1, keepdim=True))
    return join(p @ v, dp @ v + p @ dv)
