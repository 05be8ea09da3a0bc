"""Augmentation as a function of (seed, global sample index)."""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.core.streams import Stream, bits

_FLIP = 0  # the step of the stream that is spent on flips


def flip(images: Tensor, seed: int, index: Tensor) -> Tensor:
    """Mirror each image left to right where a fair coin says so.

    Args:
        images: [B, C, H, W], any type, any device.
        seed: The run's seed.
        index: Global sample indices, int64 [B]; the coin of an index never changes.

    Returns:
        A new tensor like ``images``.
    """
    if len(index) == 0:
        return images.clone()
    coin = bits(seed, index.to(images.device), 1, Stream.AUGMENT, _FLIP)[:, 0] >> 31
    return torch.where(coin.bool()[:, None, None, None], images.flip(-1), images)
