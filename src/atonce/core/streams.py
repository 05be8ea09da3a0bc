"""Random numbers as a function of (seed, sample index, purpose): counter-based, so nothing has to be replayed.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps a 128-bit counter and a 64-bit key
to 128 random bits. We use

    key     = the seed (64 bits)
    counter = (block within the sample, index low 32, index high 32, stream)

so every sample of every purpose has its own sequence, whatever the batch, the process or the interruptions around it.
Everything is elementwise integer arithmetic on tensors and gives the same bits on every device.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from atonce.core.errors import InputError

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


class Stream(enum.IntEnum):
    """What a sequence is for; two purposes never share numbers. Occupies the top byte of the stream word."""

    ORDER = 1  # order of the data in an epoch
    AUGMENT = 2  # flips and geometric augmentation
    SIGMA = 3  # noise levels, grid intervals
    NOISE = 4  # training noise z
    DROPOUT = 5  # dropout masks
    SAMPLE = 6  # noise of the samplers
    EVALUATE = 7  # subsets and resampling in evaluation
    LABEL = 8  # labels drawn for sampling, label dropout
    WORLD = 9  # samples of the closed-form worlds
    GUIDANCE = 10  # guidance scales in training
    EDIT = 11  # noise of edits


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor | int, Tensor | int], rounds: int = 10
) -> list[Tensor]:
    """Philox4x32: four words of random bits for each counter.

    Args:
        counter: Four broadcastable int64 tensors, each holding an unsigned 32-bit word.
        key: Two unsigned 32-bit words (ints or tensors broadcastable with the counter).
        rounds: 10 as published.

    Returns:
        Four int64 tensors of the broadcast shape, each in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2^64, so the low and (masked) high words are those of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [c0, c1, c2, c3]


def bits(seed: int | Tensor, index: Tensor, count: int, stream: Stream, step: int = 0) -> Tensor:
    """``count`` unsigned 32-bit words for each sample.

    Args:
        seed: One seed for all samples, or an int64 tensor [B] with one for each.
        index: Global sample indices, int64 [B]; the result lives on its device.
        count: Words for each sample.
        stream: The purpose.
        step: A number below 2^24 that separates uses within the purpose (sampling step, layer).

    Returns:
        int64 [B, count], each in [0, 2^32).

    Raises:
        InputError: ``step`` does not fit into its 24 bits, so it would run into another purpose's numbers.
    """
    if not 0 <= step < 1 << 24:
        raise InputError(
            f"step is {step}, must be from 0 to {(1 << 24) - 1}: larger ones would repeat another stream's numbers"
        )
    blocks = (count + 3) // 4
    block = torch.arange(blocks, device=index.device)[None, :]
    column = index.to(torch.int64)[:, None]
    word = torch.full((1, 1), (int(stream) << 24) | step, dtype=torch.int64, device=index.device)
    if isinstance(seed, Tensor):
        seed = seed.to(index.device)[:, None]
    key = (seed & _MASK, (seed >> 32) & _MASK)
    words = philox((block, column & _MASK, (column >> 32) & _MASK, word), key)
    shape = (index.shape[0], blocks)
    return torch.stack([w.expand(shape) for w in words], dim=-1).reshape(shape[0], 4 * blocks)[:, :count]


def uniform(seed: int | Tensor, index: Tensor, count: int, stream: Stream, step: int = 0) -> Tensor:
    """Uniform numbers in the open interval (0, 1): float64 [B, count]. Arguments as in :func:`bits`."""
    return (bits(seed, index, count, stream, step).to(torch.float64) + 0.5) * 2.0**-32


def normal(seed: int | Tensor, index: Tensor, shape: tuple[int, ...], stream: Stream, step: int = 0) -> Tensor:
    """Standard normal numbers: float32 [B, *shape], by Box and Muller's transform in float64.

    The rounding to float32 comes last, so a last-bit difference between math libraries almost never shows.
    Arguments as in :func:`bits`; ``shape`` is the shape of one sample.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    u = uniform(seed, index, 2 * pairs, stream, step).reshape(index.shape[0], pairs, 2)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0]))
    angle = (2.0 * math.pi) * u[..., 1]
    z = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return z.reshape(index.shape[0], 2 * pairs)[:, :count].to(torch.float32).reshape(index.shape[0], *shape)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which epoch ``epoch`` visits ``n`` items: int64 [n], on the CPU."""
    index = torch.arange(n)
    high, low = bits(seed, index, 2, Stream.ORDER, epoch % (1 << 24)).unbind(1)
    # 63 random bits and a stable sort: ties are as good as impossible and harmless.
    return torch.argsort((high << 31) ^ low, stable=True)


def dropout_masks(seed: int, index: Tensor, sizes: list[int], p: float, step: int = 0) -> list[Tensor]:
    """Scaled dropout masks, one for each layer, shared by every pass that is given them.

    The masks depend on the seed and each sample's index alone. One random byte decides each element, so ``p`` is rounded to a
    multiple of 1/256 (255/256 at most) and the kept ones are scaled by the inverse of the rounded rate: the mean stays exact.

    Args:
        seed: The run's seed.
        index: Global sample indices, int64 [B].
        sizes: Elements per sample of each layer's mask.
        p: Probability of dropping an element, in [0, 1).
        step: Other steps give other masks.

    Returns:
        For each layer a float32 tensor [B, size] with entries 0 or 1/(1 - p), p rounded as above.
    """
    threshold = min(round(p * 256), 255)
    keys = bits(seed, index, 4 * ((len(sizes) + 3) // 4), Stream.DROPOUT, step).to(torch.int32)
    masks = []
    for layer, size in enumerate(sizes):
        # One hash (Wellons' lowbias32) of element number xor key gives four bytes: enough for masks, a tenth of Philox's cost.
        x = torch.arange((size + 3) // 4, dtype=torch.int32, device=index.device)[None, :] ^ keys[:, layer, None]
        x = (x ^ ((x >> 16) & 0xFFFF)).mul_(0x7FEB352D)
        x = (x ^ ((x >> 15) & 0x1FFFF)).mul_(0x846CA68B - (1 << 32))
        x ^= (x >> 16) & 0xFFFF
        keep = x.view(torch.uint8)[:, :size] >= threshold
        masks.append(keep.to(torch.float32).mul_(256.0 / (256 - threshold)))
    return masks
