"""Augmentation as a function of (seed, global sample index)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, bits, normal, uniform
from atonce.data.geometry import rotation, stretch, to_device, warp

_FLIP = 0  # the step of the stream that is spent on flips
_CHOICES = 1  # the step for what is applied, coins and angles
_SIZES = 2  # the step for the normal numbers behind scales and shifts

AUGMENT_LABELS = 9  # the width of the label vector of augment
SCALE_STD = 0.2  # of the base-2 logarithm of a scale, in the same way for both kinds
SHIFT_STD = 0.125  # in sides of the image


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


@dataclass(frozen=True)
class Transformations:
    """What is done to each of B images, in this order; zero where a transformation is not applied. All on the CPU.

    Attributes:
        x_flip: Mirrored left to right, bool [B].
        y_flip: Mirrored top to bottom, bool [B].
        scale: Base-2 logarithm of the enlargement, float64 [B].
        angle: Turn counter-clockwise in radians, float64 [B].
        stretch: Base-2 logarithm of the factor along the axis; across it the image shrinks by the same, float64 [B].
        axis: Angle of that axis from the x axis in radians, float64 [B].
        shift: To the right and down, in widths and heights of the image, float64 [B, 2].
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    axis: Tensor
    shift: Tensor

    @property
    def resampled(self) -> Tensor:
        """Which images need more than flips: bool [B]."""
        drawn = torch.stack([self.scale, self.angle, self.stretch, self.shift[:, 0], self.shift[:, 1]], -1)
        return (drawn != 0).any(-1)

    def labels(self) -> Tensor:
        """What the network is told: float32 [B, 9], zero for an image as it was.

        The columns: x-flip, y-flip, scale, cos(angle) - 1, sin(angle), stretch cos(axis), stretch sin(axis), the two shifts,
        where scale, stretch and shifts are in standard deviations, so that all columns are of one size
        (Karras et al., 2022, appendix F.2 and table 6: what is told are the unit normal numbers).
        """
        columns = [
            self.x_flip,
            self.y_flip,
            self.scale / SCALE_STD,
            self.angle.cos() - 1,
            self.angle.sin(),
            self.stretch / SCALE_STD * self.axis.cos(),
            self.stretch / SCALE_STD * self.axis.sin(),
            self.shift[:, 0] / SHIFT_STD,
            self.shift[:, 1] / SHIFT_STD,
        ]
        return torch.stack([column.double() for column in columns], -1).float()

    def matrices(self) -> Tensor:
        """The linear part of all but the flips, for positions (x, y) in pixels, y down: float64 [B, 2, 2]."""
        return stretch(self.stretch, self.axis) @ rotation(self.angle) * torch.exp2(self.scale)[:, None, None]


def draw(seed: int, index: Tensor, probability: float) -> Transformations:
    """Draw what :func:`augment` does to the samples of given indices.

    An image is mirrored left to right by a fair coin, whatever the probability. Each of the other five transformations is
    drawn with ``probability``, independently: a fair coin for the flip top to bottom, 2^N(0, 0.2^2) for the scale and for the
    stretch, any angle for the turn and for the axis, N(0, 0.125^2) of a side for both shifts (Karras et al., 2022, "Elucidating
    the Design Space of Diffusion-Based Generative Models", appendix F.2 and table 6).

    Args:
        seed: The run's seed.
        index: Global sample indices, int64 [B].
        probability: Of each transformation, in [0, 1]; 0.12 is usual for CIFAR-10, 0.15 for faces of 64 pixels.

    Returns:
        The transformations.

    Raises:
        InputError: ``probability`` is not a number from 0 to 1.
    """
    if not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise InputError(f"the augmentation probability is {probability!r}, must be from 0 to 1 (0.12 is usual)")
    index = index.cpu()
    chance, coins = uniform(seed, index, 9, Stream.AUGMENT, _CHOICES).split([5, 4], dim=-1)
    sizes = normal(seed, index, (4,), Stream.AUGMENT, _SIZES).double()
    y_flip, scale, angle, along, shift = (chance < probability).unbind(-1)
    turn = math.pi * (2 * coins[:, 2:] - 1)
    return Transformations(
        x_flip=coins[:, 0] < 0.5,
        y_flip=y_flip & (coins[:, 1] < 0.5),
        scale=SCALE_STD * sizes[:, 0] * scale,
        angle=turn[:, 0] * angle,
        stretch=SCALE_STD * sizes[:, 1] * along,
        axis=turn[:, 1] * along,
        shift=SHIFT_STD * sizes[:, 2:] * shift[:, None],
    )


def augment(images: Tensor, seed: int, index: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Transform images geometrically and say how, so that a network can learn from them without imitating it.

    The network is given the labels; at sampling they are zero, which means "as it was" (Karras et al., 2022, appendix F.2).
    Flips move pixels and nothing else; an image for which nothing was drawn is returned bit for bit. The rest is resampled
    by :func:`~atonce.data.geometry.warp`, in float32. No device is waited for if ``index`` is on the CPU.

    Args:
        images: Floating point [B, C, H, W] in [-1, 1], any device.
        seed: The run's seed.
        index: Global sample indices, int64 [B]; what happens to an index never changes. Best on the CPU.
        probability: Of each transformation but the flip left to right, as in :func:`draw`.

    Returns:
        New images of the same shape and type (beside sharp edges resampling can overshoot [-1, 1] a little), and augmentation
        labels float32 [B, 9], both on the images' device.

    Raises:
        InputError: ``images`` are not floating point or not [B, C, H, W], ``index`` does not fit them, or ``probability`` is
            not a number from 0 to 1.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"augmentation takes floating-point images [B, C, H, W], not {images.dtype} {list(images.shape)}: convert first"
        )
    if index.shape != images.shape[:1]:
        raise InputError(f"{len(images)} images need as many sample indices, not {list(index.shape)}")
    drawn = draw(seed, index, probability)
    device = images.device
    rows = drawn.resampled.nonzero()[:, 0]
    out = torch.where(_column(drawn.x_flip, device), images.flip(-1), images)
    out = torch.where(_column(drawn.y_flip, device), out.flip(-2), out)
    if len(rows) > 0:
        sides = torch.tensor([images.shape[-1], images.shape[-2]], dtype=torch.float64)
        place = to_device(rows, device)
        out[place] = warp(out[place], drawn.matrices()[rows], drawn.shift[rows] * sides)
    return out, to_device(drawn.labels(), device)


def _column(mask: Tensor, device: torch.device) -> Tensor:
    return to_device(mask, device)[:, None, None, None]
