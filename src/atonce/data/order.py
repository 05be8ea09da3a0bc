"""The order of training: which image the k-th sample of a run is, for any k, without remembering anything."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import permutation


@functools.lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, n: int) -> Tensor:
    return permutation(seed, epoch, n)


def positions(seed: int, index: Tensor, n: int) -> Tensor:
    """Dataset positions of global sample indices.

    Sample i is position perm_e[i mod n] with e = i div n, perm_e being the order of epoch e: every epoch visits each image
    once, and the order depends on nothing but the seed.

    Args:
        seed: The run's seed.
        index: Global sample indices, int64 [B], not negative, on the CPU.
        n: Number of images.

    Returns:
        int64 [B], each in [0, n), on the CPU.

    Raises:
        InputError: ``n`` is below 1 or an index is negative.
    """
    if n < 1:
        raise InputError(f"an order needs at least one image, not {n}")
    result = torch.zeros_like(index, dtype=torch.int64)
    if index.numel() == 0 or n == 1:
        return result
    if int(index.min()) < 0:
        raise InputError(f"sample indices count from 0, not {int(index.min())}")
    epochs, place = torch.div(index, n, rounding_mode="floor"), index % n
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        result[here] = _epoch(seed, epoch, n)[place[here]]
    return result


def epoch_index(seed: int, first: int, count: int, n: int) -> Tensor:
    """Dataset positions of the global sample indices first ... first + count - 1; see :func:`positions`.

    Args:
        seed: The run's seed.
        first: First global sample index, from 0.
        count: How many.
        n: Number of images.

    Returns:
        int64 [count], each in [0, n).

    Raises:
        InputError: ``n`` is below 1, or ``first`` or ``count`` is negative.
    """
    if first < 0 or count < 0:
        raise InputError(f"sample indices and counts are not negative: first {first}, count {count}")
    return positions(seed, torch.arange(first, first + count), n)
