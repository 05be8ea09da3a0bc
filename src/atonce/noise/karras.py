"""The grid of noise levels of Karras et al. (2022), which consistency models discretise their trajectories on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atonce.core.errors import InputError


def karras_sigma(u: Tensor | float, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The grid as a continuous map from a position in [0, 1] to a noise level, ascending.

    sigma(u) = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho: Karras et al., "Elucidating the design
    space of diffusion-based generative models", 2022, equation 5, with the direction reversed.

    Args:
        u: Positions in [0, 1], any shape; 0 gives exactly ``sigma_min`` and 1 exactly ``sigma_max``.
        sigma_min: Lowest noise level, above 0.
        sigma_max: Highest noise level, above ``sigma_min``.
        rho: Curvature, above 0; larger values crowd the levels towards ``sigma_min``.

    Returns:
        float64 tensor of the shape of ``u``, on its device.

    Raises:
        InputError: A parameter or a position is out of range.
    """
    if not (math.isfinite(sigma_min) and sigma_min > 0):
        raise InputError(f"sigma_min is {sigma_min}, but must be a number above 0 (0.002 is usual)")
    if not (math.isfinite(sigma_max) and sigma_max > sigma_min):
        raise InputError(f"sigma_max is {sigma_max}, but must be a number above sigma_min = {sigma_min} (80 is usual)")
    if not (math.isfinite(rho) and rho > 0):
        raise InputError(f"rho is {rho}, but must be a number above 0 (7 is usual)")
    position = torch.as_tensor(u, dtype=torch.float64)
    if not bool(((position >= 0) & (position <= 1)).all()):
        raise InputError("a position on the noise grid lies outside [0, 1]: give positions from 0 (sigma_min) to 1 (sigma_max)")
    try:
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    except OverflowError:
        low, high = math.inf, math.inf
    if not (math.isfinite(high) and 0 < low < high):
        raise InputError(f"rho = {rho} is too extreme for noise levels from {sigma_min} to {sigma_max}: take one nearer to 7")
    # Rounding in the powers may leave the range by a last bit, and the ends must be exact.
    sigma = ((low + position * (high - low)) ** rho).clamp(sigma_min, sigma_max)
    sigma = torch.where(position == 0, torch.full_like(sigma, sigma_min), sigma)
    return torch.where(position == 1, torch.full_like(sigma, sigma_max), sigma)


def karras_grid(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The noise levels t_1 < ... < t_n: n points with n - 1 intervals between them.

    Song et al., "Consistency models", 2023 (their N is our n). The published codes index the same
    points from the top: their index j is our n - 1 - j.

    Args:
        n: Number of points, at least 2.
        sigma_min: Lowest noise level, exactly the first point.
        sigma_max: Highest noise level, exactly the last point.
        rho: Curvature.

    Returns:
        float64 [n], strictly ascending, on the CPU.

    Raises:
        InputError: A parameter is out of range, or the points cannot be told apart in float64.
    """
    if n < 2:
        raise InputError(f"a noise grid of {n} points has no interval: ask for at least 2 points")
    grid = karras_sigma(torch.arange(n, dtype=torch.float64) / (n - 1), sigma_min, sigma_max, rho)
    if not bool((grid[1:] > grid[:-1]).all()):
        raise InputError(
            f"{n} noise levels between {sigma_min} and {sigma_max} (rho = {rho}) cannot be told apart in float64: "
            "ask for fewer points or a wider range"
        )
    return grid
