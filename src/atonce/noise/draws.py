"""Which noise levels a training step sees: distributions over grid intervals and over continuous levels.

Nothing here draws random bits: uniform numbers come in (see ``atonce.core.streams``), noise levels go out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atonce.core.errors import InputError

_LARGEST_BELOW_ONE = 1.0 - 2.0**-53


def _ascending(grid: Tensor) -> Tensor:
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise InputError(f"a noise grid has the shape {list(grid.shape)}, but must be one row of at least 2 levels")
    grid = grid.to(torch.float64)
    if not bool(((grid[1:] > grid[:-1]) & (grid[:-1] > 0) & torch.isfinite(grid[1:])).all()):
        raise InputError("a noise grid must hold finite levels above 0 in ascending order")
    return grid


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """ln(Phi(high) - Phi(low)) for low < high, with full relative accuracy in both tails."""
    # The density is even: an interval in the lower tail is moved to the upper one. There both ends share the factor
    # exp(-a^2/2), which is taken out before it can underflow; what stays is a difference of scaled erfc's.
    a, b = torch.where(low < 0, -high, low), torch.where(low < 0, -low, high)
    root = math.sqrt(0.5)
    inner = a.clamp(min=0)
    ratio = torch.exp(-0.5 * (b - inner) * (b + inner))
    scaled = torch.special.erfcx(inner * root) - torch.special.erfcx(b * root) * ratio
    tail = torch.log(0.5 * scaled.clamp(min=0)) - 0.5 * inner**2
    middle = torch.log(0.5 * (torch.erf(high * root) - torch.erf(low * root)))
    return torch.where((low < 0) & (high > 0), middle, tail)


def lognormal_interval_pmf(grid: Tensor, P_mean: float = -1.1, P_std: float = 2.0) -> Tensor:
    """Probability of each grid interval when ln(sigma) is normal: that of the normal's mass in it, normalised.

    p_i is proportional to erf((ln t_{i+1} - P_mean) / (sqrt(2) P_std)) - erf((ln t_i - P_mean) / (sqrt(2) P_std)): Song and
    Dhariwal, "Improved techniques for training consistency models", 2023. Note the sign of the mean: -1.1.

    Args:
        grid: Noise levels [n], ascending, above 0.
        P_mean: Mean of ln(sigma).
        P_std: Standard deviation of ln(sigma), above 0.

    Returns:
        float64 [n - 1], non-negative, of sum 1. The intervals far in the tails may be zero but never NaN.

    Raises:
        InputError: The grid is not ascending, or a parameter is out of range.
    """
    grid = _ascending(grid)
    if not (math.isfinite(P_mean) and math.isfinite(P_std) and P_std > 0):
        raise InputError(f"P_mean = {P_mean} and P_std = {P_std} must be numbers, the second above 0 (-1.1 and 2.0 are usual)")
    z = (torch.log(grid) - P_mean) / P_std
    pmf = torch.softmax(_log_normal_mass(z[:-1], z[1:]), dim=0)
    if not bool(torch.isfinite(pmf).all()):
        raise InputError(
            f"P_mean = {P_mean} and P_std = {P_std} cannot be resolved on this grid: take values nearer to -1.1 and 2.0"
        )
    return pmf


def uniform_interval_pmf(n: int) -> Tensor:
    """Equal probability for each interval of a grid, as in consistency training and distillation.

    Args:
        n: Number of grid points, at least 2.

    Returns:
        float64 [n - 1].

    Raises:
        InputError: The grid has no interval.
    """
    if n < 2:
        raise InputError(f"a noise grid of {n} points has no interval: ask for at least 2 points")
    return torch.full((n - 1,), 1.0 / (n - 1), dtype=torch.float64)


def draw_intervals(u: Tensor, pmf: Tensor) -> Tensor:
    """Intervals by the inverse of the cumulative distribution: the i with cdf_{i-1} <= u < cdf_i.

    An interval of probability zero is never drawn, whatever the rounding of the sums.

    Args:
        u: Uniform numbers in [0, 1), any shape.
        pmf: Probabilities [m], non-negative; they need not sum to 1.

    Returns:
        int64 tensor of the shape of ``u``, entries 0 to m - 1: the student stands at grid[i + 1], the target at grid[i].
    """
    cdf = torch.cumsum(pmf.to(torch.float64), dim=0)
    cdf = cdf / cdf[-1]
    return torch.searchsorted(cdf, u.to(torch.float64).clamp(0.0, _LARGEST_BELOW_ONE).contiguous(), right=True)


def lognormal_sigma(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """Continuous noise levels with ln(sigma) normal, by the inverse normal distribution of uniform numbers.

    Args:
        u: Uniform numbers in the open interval (0, 1), any shape.
        P_mean: Mean of ln(sigma): -1.2 for EDM's denoisers, -1.1 for easy consistency tuning.
        P_std: Standard deviation of ln(sigma), above 0: 1.2 and 2.0 there.

    Returns:
        float64 tensor of the shape of ``u``.

    Raises:
        InputError: A parameter is out of range.
    """
    if not (math.isfinite(P_mean) and math.isfinite(P_std) and P_std > 0):
        raise InputError(f"P_mean = {P_mean} and P_std = {P_std} must be numbers, the second above 0")
    return torch.exp(P_mean + P_std * torch.special.ndtri(u.to(torch.float64)))


def inverse_delta_weight(grid: Tensor) -> Tensor:
    """Loss weight of each interval, 1 / (t_{i+1} - t_i).

    Song and Dhariwal, "Improved techniques for training consistency models", 2023.

    Args:
        grid: Noise levels [n], ascending, above 0.

    Returns:
        float64 [n - 1].

    Raises:
        InputError: The grid is not ascending.
    """
    return 1.0 / torch.diff(_ascending(grid))
