"""Affine maps of images, resampled with little blur and little aliasing.

An image is enlarged fourfold by a low-pass filter, read between its points by linear interpolation on the twofold grid of the
result, and brought to size by a second low-pass filter. Outside its borders an image goes on as its mirror image, again
and again, however small it is. The filters are sums of shifted copies and not convolutions, so that neither a reduced matrix
precision nor the size of a batch can change a pixel.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from atonce.core.errors import InputError

# A filter reaches over this many pixels; with a Kaiser window of this shape it keeps waves longer than four pixels to 0.4 %.
_REACH, _SHAPE = 6, 4.0
_FINE = 4  # points a pixel that the input is enlarged to
_PIECE = 1 << 26  # enlarged points that are worked on at once


def rotation(angle: Tensor) -> Tensor:
    """Matrices that turn counter-clockwise as one sees it, x to the right and y down.

    Args:
        angle: Radians, [B].

    Returns:
        [B, 2, 2].
    """
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def stretch(log2_factor: Tensor, axis: Tensor) -> Tensor:
    """Matrices that stretch along an axis and shrink by the same factor across it.

    Args:
        log2_factor: Base-2 logarithm r of the factor along the axis, [B].
        axis: Angle of the axis, counter-clockwise from the x axis as one sees it, in radians, [B].

    Returns:
        [B, 2, 2], of determinant 1.
    """
    diagonal = torch.diag_embed(torch.stack([torch.exp2(log2_factor), torch.exp2(-log2_factor)], -1))
    return rotation(axis) @ diagonal @ rotation(-axis)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for it.

    Args:
        tensor: Any, on the CPU.
        device: Where it is needed.

    Returns:
        The tensor there; itself if it is there already.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def warp(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Move what is at position p, counted from the middle of the image, to ``matrix`` p + ``shift``.

    Shrinking to less than half the size aliases: the grid of the output has twice its resolution, not more.

    Args:
        images: [B, C, H, W], floating point, any device. Filters overshoot: beside sharp edges values can leave [-1, 1].
        matrix: [B, 2, 2], for positions (x, y) in pixels, x to the right and y down; best on the CPU.
        shift: [B, 2], in pixels, likewise.

    Returns:
        Images of the same shape, type and device.

    Raises:
        InputError: A matrix cannot be inverted, or a matrix or shift is not finite.
    """
    height, width = images.shape[-2:]
    forward, offset = matrix.double().cpu(), shift.double().cpu()
    size = torch.linalg.det(forward)
    if not bool((size.isfinite() & (size != 0)).all()):
        raise InputError("a matrix of an affine map cannot be inverted: its determinant must be finite and not 0")
    if not bool(offset.isfinite().all()):
        raise InputError("a shift of an affine map is not finite: give it in pixels")
    back = torch.linalg.inv(forward)
    start = -(back @ offset[:, :, None])
    # Positions in units of half a side, as the sampling wants them: -1 and 1 are the outer edges of the image.
    half = torch.tensor([width, height], dtype=torch.float64)[:, None] / 2
    coefficients = to_device((torch.cat([back, start], -1) / half).float(), images.device)
    piece = max(1, _PIECE // max(1, _FINE**2 * images[:1].numel()))
    pairs = zip(images.float().split(piece), coefficients.split(piece), strict=True)
    return torch.cat([_resample(some, maps) for some, maps in pairs]).to(images.dtype)


def _resample(images: Tensor, maps: Tensor) -> Tensor:
    """Read images where the affine maps [B, 2, 3] say, from pixels (x, y, 1) of the output to half sides of the input."""
    y, x = (_positions(side, images.device) for side in images.shape[-2:])
    parts = maps[:, :, :, None, None]
    points = torch.stack([parts[:, i, 0] * x + (parts[:, i, 1] * y[:, None] + parts[:, i, 2]) for i in (0, 1)], -1)
    fine = _enlarge(_enlarge(images, -1), -2)  # in the order that is cheaper
    # This way of reflecting mirrors at the outer edges, as _enlarge does.
    moved = functional.grid_sample(fine, points, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _halve(_halve(moved, -2), -1)


def _positions(side: int, device: torch.device) -> Tensor:
    """Where the points of the twofold output grid lie, from the middle, in pixels; with the margin that _halve takes off."""
    margin = _REACH - 1
    return (torch.arange(-margin, 2 * side + margin, device=device, dtype=torch.float32) + 0.5) / 2 - side / 2


def _low_pass(factor: int) -> np.ndarray:
    """Windowed sinc for ``factor`` points a pixel: half amplitude at the shortest wave that the pixels can hold. Sum 1."""
    count = factor * _REACH
    place = np.arange(count) - (count - 1) / 2
    taps = np.sinc(place / factor) * np.kaiser(count, _SHAPE)
    return taps / taps.sum()


@functools.cache
def _shrinking() -> list[float]:
    """The weights of :func:`_halve`."""
    return [float(weight) for weight in _low_pass(2)]


@functools.cache
def _enlarging() -> list[dict[int, float]]:
    """The weights of :func:`_enlarge`: for each point of a pixel those of the pixels around, by their distance; each sum is 1.

    They are sharpened by what the linear interpolation that follows blurs. At frequency v (waves per point) that multiplies by
    sinc(v)^2 = 1 - (pi v)^2 / 3 + ..., and three taps (-1, 14, -1) / 12 multiply by 1 + (1 - cos 2 pi v) / 6
    = 1 + (pi v)^2 / 3 - ..., so the second order cancels.
    """
    taps = np.convolve(_low_pass(_FINE), np.array([-1.0, 14.0, -1.0]) / 12)
    points: list[dict[int, float]] = []
    for point in range(_FINE):
        first = (_FINE + len(taps)) // 2 - 1 - point  # the tap of the pixel itself
        chosen = {(tap - first) // _FINE: float(taps[tap]) for tap in range(first % _FINE, len(taps), _FINE)}
        points.append({pixels: weight / sum(chosen.values()) for pixels, weight in chosen.items()})
    return points


def _mirrored(side: int, margin: int, device: torch.device) -> Tensor:
    """Indices of a side with its mirror images around it: int64 [side + 2 margin], whatever the margin."""
    place = torch.arange(-margin, side + margin, device=device) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def _enlarge(images: Tensor, dim: int) -> Tensor:
    """Four times as many points along ``dim`` (-2 or -1), evenly spread over each pixel."""
    side = images.shape[dim]
    wide = images.index_select(dim, _mirrored(side, _REACH, images.device))
    points = []
    for weights in _enlarging():
        total = torch.zeros_like(images)
        for pixels, weight in weights.items():
            total.add_(wide.narrow(dim, _REACH + pixels, side), alpha=weight)
        points.append(total)
    return torch.stack(points, dim).flatten(dim - 1, dim)


def _halve(images: Tensor, dim: int) -> Tensor:
    """Half as many points along ``dim`` (-2 or -1), after taking off the margin that the filter needs."""
    taps = _shrinking()
    side = (images.shape[dim] - len(taps)) // 2 + 1
    points = images.unflatten(dim, (-1, 2)).unbind(dim)
    total = torch.zeros_like(points[0].narrow(dim, 0, side))
    for tap, weight in enumerate(taps):
        total.add_(points[tap % 2].narrow(dim, tap // 2, side), alpha=weight)
    return total
