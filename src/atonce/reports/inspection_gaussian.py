"""The Gaussian that fits a set of images: the exactly known world that a network's curves are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.core.streams import permutation
from atonce.noise.worlds import Gaussian

LARGEST_FULL = 1024  # values in an image up to which the whole covariance is estimated
_FIT, _FIT_VALUES = 10_000, 1 << 25  # images it is estimated from: that many, fewer where they are large


@dataclass(frozen=True)
class FittedGaussian:
    """A Gaussian of images, whose exact answers are linear in the image.

    Attributes:
        world: Its independent coordinates.
        turn: Images [B, C, H, W] to coordinates [B, D]; a rotation, so lengths stay.
        back: The way back.
        images: How many images it was fitted to.
        full: Whether the whole covariance was estimated; else the coordinates are spatial frequencies of the principal colours.
    """

    world: Gaussian
    turn: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    images: int
    full: bool

    def denoiser(self, x: Tensor, sigma: float) -> Tensor:
        """E[y | x] (Wiener's filter) of x = y + sigma z, float64 [B, C, H, W]."""
        return self.back(self.world.denoiser(self.turn(x), sigma))

    def consistency(self, x: Tensor, sigma: float, sigma_end: float) -> Tensor:
        """The end at ``sigma_end`` of the trajectory through (x, sigma), float64 [B, C, H, W]."""
        return self.back(self.world.consistency(self.turn(x), sigma, sigma_end))


def fit_gaussian(images: Tensor) -> FittedGaussian:
    """The Gaussian with the mean and covariance of images.

    The whole covariance is estimated where there are enough images for it (four times as many as values in one, which are at
    most 1,024); else a diagonal one in the cosine transform of each principal colour, which is that of images whose statistics
    are nearly the same everywhere.

    Args:
        images: uint8 [N, C, H, W], N at least 2; of many, a fixed random 10,000 are used (at least 1,000 where they are large).

    Returns:
        The Gaussian.

    Raises:
        InputError: There are fewer than two images.
    """
    if len(images) < 2:
        raise InputError(f"a Gaussian needs at least 2 images, there are {len(images)}")
    most = min(_FIT, max(1000, _FIT_VALUES // images[0].numel()))
    if len(images) > most:
        images = images[permutation(0, 0, len(images))[:most]]
    n, shape = len(images), tuple(images.shape[1:])
    values = from_uint8(images).double()
    mean = values.mean(0)
    dimension = mean.numel()
    if dimension <= LARGEST_FULL and n >= 4 * dimension:
        centred = (values - mean).flatten(1)
        variance, axes = torch.linalg.eigh(centred.T @ centred / n)

        def turn(x: Tensor) -> Tensor:
            return (x.cpu().double() - mean).flatten(1) @ axes

        def back(c: Tensor) -> Tensor:
            return (c @ axes.T).reshape(-1, *shape) + mean

        return FittedGaussian(Gaussian(0.0, variance.clamp(min=0).sqrt()), turn, back, n, full=True)

    pixels = (values - mean).transpose(0, 1).flatten(1)
    _, colours = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1])

    def turn_colours(x: Tensor) -> Tensor:
        mixed = torch.einsum("bchw,ck->bkhw", x.cpu().double() - mean, colours)
        return torch.from_numpy(np.asarray(scipy.fft.dctn(mixed.numpy(), axes=(2, 3), norm="ortho"))).flatten(1)

    def back_colours(c: Tensor) -> Tensor:
        mixed = scipy.fft.idctn(c.reshape(-1, *shape).numpy(), axes=(2, 3), norm="ortho")
        return torch.einsum("bkhw,ck->bchw", torch.from_numpy(np.asarray(mixed)), colours) + mean

    variance = torch.stack([turn_colours(part).square().sum(0) for part in values.split(1024)]).sum(0) / n
    return FittedGaussian(Gaussian(0.0, variance.sqrt()), turn_colours, back_colours, n, full=False)
