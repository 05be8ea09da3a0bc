"""What an inspection measures: curves over sigma, nearest training images, and what each part of the noise decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.evaluation.neighbours import distance_blocks
from atonce.evaluation.selfconsistency import consistency_gap
from atonce.reports.inspection_gaussian import FittedGaussian

Function = Callable[[Tensor, float], Tensor]

_POOL_VALUES = 1 << 23  # values of the images searched at a time: 64 MB in float64
_SAME = 1e-6  # below any real difference of 8-bit images, above the rounding of their distance


@dataclass(frozen=True)
class Curve:
    """A mean over images at each of several noise levels, in units of pixels from -1 to 1.

    Attributes:
        sigmas: Noise levels, ascending.
        values: Root mean squares per pixel.
        errors: Their standard errors over the images.
    """

    sigmas: tuple[float, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """The consistency gap and the error of denoising over sigma, each beside what is exactly known of a fitted Gaussian.

    Attributes:
        gap: Difference between the answers at neighbouring levels of one noise; a value stands at the upper level.
        gap_exact: The same of the Gaussian's exact function of the model's kind, on the same images and noises.
        error: Difference between the answer and the image that the noise was added to.
        error_linear: The same of the Gaussian's denoiser (Wiener's filter).
        error_exact: The same of the Gaussian's exact consistency function; ``None`` for a denoiser.
        images: Number of images.
    """

    gap: Curve
    gap_exact: Curve
    error: Curve
    error_linear: Curve
    error_exact: Curve | None
    images: int


def curves(
    f: Function,
    images: Tensor,
    sigmas: Sequence[float],
    gaussian: FittedGaussian,
    sigma_end: float | None,
    seed: int = 0,
) -> Curves:
    """Both curves from one pass over the images, all with the same noises.

    Args:
        f: The model; its labels, if any, belong to all the images in their order.
        images: float [n, C, H, W] in [-1, 1], at least 2.
        sigmas: Noise levels, ascending.
        gaussian: Fitted to the training images.
        sigma_end: Where the model's answers lie; ``None`` for a denoiser, whose answer is a mean.
        seed: Of the noise.

    Returns:
        The curves.
    """

    def measured(function: Function) -> tuple[Curve, Curve]:
        squares: list[Tensor] = []

        def recorded(x: Tensor, sigma: float) -> Tensor:
            out = function(x, sigma)
            squares.append((out - images.to(out)).double().square().flatten(1).mean(1).cpu())
            return out

        gap = consistency_gap(recorded, images, sigmas, seed=seed, batch=len(images))
        root = math.sqrt(images[0].numel())  # from lengths of whole images to root mean squares of pixels
        mean = torch.stack(squares)
        rms = mean.mean(1).sqrt()
        error = mean.std(1) / len(images) ** 0.5 / (2 * rms).clamp(min=1e-30)
        return (
            Curve(gap.sigmas[1:], tuple(g / root for g in gap.gaps), tuple(e / root for e in gap.errors)),
            Curve(gap.sigmas, tuple(rms.tolist()), tuple(error.tolist())),
        )

    gap, error = measured(f)
    mean_gap, mean_error = measured(gaussian.denoiser)
    if sigma_end is None:
        return Curves(gap, mean_gap, error, mean_error, None, len(images))
    end = sigma_end
    exact_gap, exact_error = measured(lambda x, s: gaussian.consistency(x, s, end))
    return Curves(gap, exact_gap, error, mean_error, exact_error, len(images))


@dataclass(frozen=True)
class Neighbours:
    """Samples beside what they are nearest to among the training images, in root mean squares of pixels.

    Attributes:
        samples: Those nearest to a training image, nearest first, uint8 [k, C, H, W].
        nearest: The nearest training images of each, uint8 [k, m, C, H, W].
        distances: Their distances, float64 [k, m].
        all_samples: Distance of every sample to its nearest training image, float64 [n].
        real: The same of real images: held out, or training images among the others.
        unseen: Whether the real ones were held out.
        searched: Training images that were searched.
    """

    samples: Tensor
    nearest: Tensor
    distances: Tensor
    all_samples: Tensor
    real: Tensor
    unseen: bool
    searched: int

    @property
    def ratio(self) -> float | None:
        """Median distance of the samples over that of real images; ``None`` where real images are repeated."""
        median = float(self.real.median())
        return float(self.all_samples.median()) / median if median > _SAME else None


def neighbours(
    samples: Tensor, training: Tensor, held_out: Tensor | None, probe: Tensor, shown: int = 8, each: int = 3
) -> Neighbours:
    """The nearest training images of samples, and of real images for comparison.

    Args:
        samples: uint8 [n, C, H, W].
        training: The training images, uint8 [N, C, H, W].
        held_out: Images that were not trained on, uint8 [h, C, H, W]; ``None`` where there are none.
        probe: Which training images stand in for them, int64 [h]: each is compared with all the others.
        shown: Samples that are kept, those nearest to a training image.
        each: Training images kept for each.

    Returns:
        What was found.

    Raises:
        InputError: There are fewer than two training images.
    """
    if len(training) < 2:
        raise InputError(f"nearest neighbours need at least 2 training images, there are {len(training)}")
    each = min(each, len(training))
    distances, index = closest(samples, training, each)
    if held_out is not None:
        real = closest(held_out, training, 1)[0][:, 0]
    else:
        near, where = closest(training[probe], training, 2)
        itself = where == probe[:, None]
        # Where a copy of the image took its place among equal distances, either entry is at the right distance.
        itself[~itself.any(1), 1] = True
        real = near[~itself]
    order = distances[:, 0].argsort(stable=True)[:shown]
    return Neighbours(
        samples[order],
        training[index[order]],
        distances[order],
        distances[:, 0],
        real,
        held_out is not None,
        len(training),
    )


def closest(images: Tensor, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k images of a pool that are nearest to each image, in root mean squares of pixels in [-1, 1].

    Args:
        images: uint8 [n, C, H, W].
        pool: uint8 [N, C, H, W]; searched in parts, so that memory stays small.
        k: At most N.

    Returns:
        Distances float64 [n, k], ascending, and positions in the pool int64 [n, k].
    """
    x = from_uint8(images).flatten(1)
    dimension = x.shape[1]
    part = max(k, _POOL_VALUES // dimension)
    best = torch.full((len(x), k), torch.inf, dtype=torch.float64)
    where = torch.zeros((len(x), k), dtype=torch.int64)
    for start in range(0, len(pool), part):
        y = from_uint8(pool[start : start + part]).flatten(1)
        for rows, block in distance_blocks(x, y):
            low, index = block.topk(min(k, block.shape[1]), dim=1, largest=False)
            both, positions = torch.cat([best[rows], low], 1), torch.cat([where[rows], index + start], 1)
            best[rows], order = both.topk(k, dim=1, largest=False)
            where[rows] = positions.gather(1, order)
    return best / math.sqrt(dimension), where


@dataclass(frozen=True)
class Sensitivity:
    """How the image changes where the noise of one region is drawn anew, for regions of a square grid in reading order.

    Attributes:
        maps: Root mean square of the change over noises and channels at each pixel, float [regions, H, W].
        regions: (top, bottom, left, right) of each region.
        inside: Share of the squared change that falls inside the region itself, a mean over regions.
        noises: How many images the mean is over.
    """

    maps: Tensor
    regions: tuple[tuple[int, int, int, int], ...]
    inside: float
    noises: int

    @property
    def influence(self) -> Tensor:
        """Root mean square of the whole image's change for each region, float [regions]."""
        return self.maps.square().mean((1, 2)).sqrt()


def regions(height: int, width: int, grid: int = 4) -> tuple[tuple[int, int, int, int], ...]:
    """(top, bottom, left, right) of the cells of a grid over an image, in reading order; they cover every pixel once."""
    rows = [round(i * height / grid) for i in range(grid + 1)]
    columns = [round(i * width / grid) for i in range(grid + 1)]
    return tuple((rows[i], rows[i + 1], columns[j], columns[j + 1]) for i in range(grid) for j in range(grid))


def sensitivity(generate: Callable[[Tensor], Tensor], noise: Tensor, other: Tensor, grid: int = 4) -> Sensitivity:
    """Which part of the noise decides which part of the image, by drawing one region of the noise anew.

    Args:
        generate: From unit noise [m, C, H, W] to images of that shape.
        noise: [m, C, H, W].
        other: Noise to put into the regions, of that shape.
        grid: Regions along each side, at most the side of the image.

    Returns:
        The changes.
    """
    cells = regions(noise.shape[2], noise.shape[3], grid)
    before = generate(noise)
    maps, shares = [], []
    for top, bottom, left, right in cells:
        changed = noise.clone()
        changed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        square = (generate(changed) - before).double().square().mean((0, 1)).cpu()
        maps.append(square.sqrt())
        total = float(square.sum())
        shares.append(float(square[top:bottom, left:right].sum()) / total if total > 0 else 0.0)
    return Sensitivity(torch.stack(maps), cells, sum(shares) / len(shares), len(noise))
