"""What an edit is compared with: simple ways to fill, enlarge and smooth grey pictures, and measures of how near they come.

Pictures are float64 arrays [N, H, W] in [-1, 1], masks bool [N, H, W], true where pixels are to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

Array = NDArray[Any]
Mask = NDArray[np.bool_]


# ---- filling


def mean_fill(x: Array, mask: Mask) -> Array:
    """The mean of each picture's known pixels."""
    known = np.where(mask, 0.0, x).sum((1, 2)) / np.maximum((~mask).sum((1, 2)), 1)
    return np.where(mask, known[:, None, None], x)


def nearest_fill(x: Array, mask: Mask) -> Array:
    """The value of the nearest known pixel."""
    out = x.copy()
    for image, hole in zip(out, mask, strict=True):
        rows, columns = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
        image[hole] = image[rows[hole], columns[hole]]
    return out


def biharmonic_fill(x: Array, mask: Mask) -> Array:
    """The smoothest surface through the known pixels: least sum of squared Laplacians, with free borders."""
    laplacian = _laplacian(*x.shape[1:])
    energy = laplacian.T @ laplacian
    return _solve_each(x, mask, lambda known, made: -np.linalg.solve(energy[np.ix_(made, made)], energy[np.ix_(made, known)]))


def _laplacian(height: int, width: int) -> Array:
    """The second differences of a picture [H W, H W]; at the border that along it, and none at corners."""
    out = np.zeros((height * width, height * width))
    place = np.arange(height * width).reshape(height, width)
    for middle, one, other in (
        (place[1:-1], place[:-2], place[2:]),
        (place[:, 1:-1], place[:, :-2], place[:, 2:]),
    ):
        m, a, b = middle.ravel(), one.ravel(), other.ravel()
        out[m, m] += 2
        out[m, a] -= 1
        out[m, b] -= 1
    return out


def _solve_each(x: Array, mask: Mask, weights: Callable[[Any, Any], Array], mean: Array | None = None) -> Array:
    """Pictures whose missing pixels are a linear function of the known ones; equal masks are solved together."""
    n, d = len(x), x[0].size
    flat, holes = x.reshape(n, d).copy(), mask.reshape(n, d)
    centre = np.zeros(d) if mean is None else mean
    for hole in np.unique(holes, axis=0):
        rows = np.flatnonzero((holes == hole).all(1))
        known, made = np.flatnonzero(~hole), np.flatnonzero(hole)
        w = weights(known, made)
        flat[np.ix_(rows, made)] = centre[made] + (flat[np.ix_(rows, known)] - centre[known]) @ w.T
    return flat.reshape(x.shape).clip(-1, 1)


class Linear:
    """The best linear guess from training pictures: the conditional mean of a normal distribution that is fitted to them.

    Args:
        training: Pictures [M, H, W].
    """

    def __init__(self, training: Array) -> None:
        self.shape = training.shape[1:]
        flat = training.reshape(len(training), -1).astype(np.float64)
        self.mean: Array = flat.mean(0)
        centred = flat - self.mean
        self.covariance: Array = centred.T @ centred / (len(flat) - 1)
        self.covariance[np.diag_indices_from(self.covariance)] += 1e-4  # pixels that never change would be singular

    def fill(self, x: Array, mask: Mask) -> Array:
        """Missing pixels from known ones."""
        s = self.covariance

        def weights(known: Any, made: Any) -> Array:
            return np.linalg.solve(s[np.ix_(known, known)], s[np.ix_(known, made)]).T

        return _solve_each(x, mask, weights, self.mean)

    def enlarge(self, small: Array, factor: int) -> Array:
        """Pictures from their patch means."""
        height, width = self.shape
        places = np.arange(height * width).reshape(height, width)
        cells = (places // width // factor) * (width // factor) + places % width // factor
        a = np.zeros((small[0].size, height * width))
        a[cells.ravel(), places.ravel()] = 1 / factor**2
        gain = np.linalg.solve(a @ self.covariance @ a.T, a @ self.covariance).T
        out = self.mean + (small.reshape(len(small), -1) - a @ self.mean) @ gain.T
        return out.reshape(len(small), height, width).clip(-1, 1)

    def denoise(self, noisy: Array, sigma: float) -> Array:
        """Wiener's filter for pictures of these statistics."""
        s = self.covariance
        gain = np.linalg.solve(s + sigma**2 * np.eye(len(s)), s)
        out = self.mean + (noisy.reshape(len(noisy), -1) - self.mean) @ gain
        return out.reshape(noisy.shape).clip(-1, 1)


# ---- enlarging


def replicate(small: Array, factor: int) -> Array:
    """Every pixel becomes a patch."""
    return small.repeat(factor, 1).repeat(factor, 2)


def bicubic(small: Array, factor: int) -> Array:
    """Pillow's bicubic interpolation, in floating point."""
    size = (small.shape[2] * factor, small.shape[1] * factor)
    pictures = [Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for image in small]
    return np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures]).clip(-1, 1)


# ---- smoothing


def gaussian_filter(noisy: Array, width: float) -> Array:
    """A Gaussian filter with a standard deviation in pixels."""
    return ndimage.gaussian_filter(noisy, (0, width, width), mode="nearest").clip(-1, 1)


def local_wiener(noisy: Array, sigma: float) -> Array:
    """SciPy's adaptive filter on 3 x 3 neighbourhoods, told the variance of the noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([signal.wiener(image, 3, sigma**2) for image in noisy]).clip(-1, 1)


def total_variation(noisy: Array, weight: float, iterations: int = 100) -> Array:
    """The picture of least |x - noisy|^2 / 2 + weight TV(x), by projection (Chambolle 2004, section 3)."""
    p = np.zeros((2, *noisy.shape))
    for _ in range(iterations):
        g = _gradient(_divergence(p) - noisy / weight)
        p = (p + 0.24 * g) / (1 + 0.24 * np.sqrt((g**2).sum(0)))
    return (noisy - weight * _divergence(p)).clip(-1, 1)


def _gradient(x: Array) -> Array:
    out = np.zeros((2, *x.shape))
    out[0, :, :-1], out[1, :, :, :-1] = np.diff(x, axis=1), np.diff(x, axis=2)
    return out


def _divergence(p: Array) -> Array:
    """Minus the adjoint of :func:`_gradient`."""
    out = np.zeros(p.shape[1:])
    out[:, :-1] += p[0, :, :-1]
    out[:, 1:] -= p[0, :, :-1]
    out[:, :, :-1] += p[1, :, :, :-1]
    out[:, :, 1:] -= p[1, :, :, :-1]
    return out


def tuned(method: Callable[[Array, float], Array], noisy: Array, clean: Array, values: Sequence[float]) -> float:
    """The parameter with which a method comes nearest to training pictures in the mean square."""
    return min(values, key=lambda value: float(((method(noisy, value) - clean) ** 2).mean()))


# ---- measures


def squared_errors(x: Array, original: Array, mask: Mask | None) -> Array:
    """Mean squared difference of each picture, over the made pixels only: [N]."""
    squares = (x - original) ** 2
    if mask is None:
        return np.asarray(squares.mean((1, 2)))
    return np.asarray((squares * mask).sum((1, 2)) / mask.sum((1, 2)))


def psnr(error: float) -> float:
    """Decibels for a mean squared difference of pictures in [-1, 1]: 10 log10(2^2 / error)."""
    return float(10 * np.log10(4 / max(error, 1e-12)))


def ssim(x: Array, original: Array) -> Array:
    """Structural similarity of each pair of pictures, [N] (Wang et al. 2004, equation 13).

    Of intensities from 0 (black) to 1, with a Gaussian window of 11 x 11 pixels and standard deviation 1.5, K1 = .01 and
    K2 = .03; the mean over all windows inside the picture.
    """
    x, original = (x + 1) / 2, (original + 1) / 2
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def blurred(a: Array) -> Array:
        for axis in (1, 2):
            a = np.apply_along_axis(np.convolve, axis, a, taps, "valid")
        return a

    a, b = blurred(x), blurred(original)
    variance_a, variance_b = blurred(x * x) - a * a, blurred(original * original) - b * b
    both = blurred(x * original) - a * b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * a * b + c1) * (2 * both + c2)
    return np.asarray((top / ((a * a + b * b + c1) * (variance_a + variance_b + c2))).mean((1, 2)))
