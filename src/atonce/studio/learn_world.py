"""The plane on which the Learn tab shows everything: four clusters of points, for which every answer is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atonce.noise.karras import karras_grid
from atonce.noise.worlds import Mixture

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
SIGMA_DATA = 0.5
"""As the papers have it; the standard deviation of this world's coordinates is 0.501."""

P_MEAN, P_STD, S0, S1 = -1.1, 2.0, 10, 1280
"""iCT's: where pairs lie, and how many intervals the curriculum begins and ends with (Song and Dhariwal, 2023)."""

_MEANS = ((-0.66, 0.34), (0.14, 0.66), (0.70, -0.12), (-0.22, -0.56))
_STDS = (0.12, 0.10, 0.14, 0.11)
_WEIGHTS = (0.3, 0.2, 0.3, 0.2)
_SHOWN, _SEED = 240, 5


def world() -> Mixture:
    """The mixture: four round clusters in the plane."""
    return Mixture(*(torch.tensor(values, dtype=torch.float64) for values in (_MEANS, _STDS, _WEIGHTS)))


def noise_levels(points: int) -> Tensor:
    """The grid of noise levels that the tab speaks of: float64 [points], ascending from 0.002 to 80."""
    return karras_grid(points, SIGMA_MIN, SIGMA_MAX, RHO)


def spread() -> float:
    """The standard deviation of one coordinate of the world's data, over both coordinates, exactly."""
    mixture = world()
    share = mixture.weights / mixture.weights.sum()
    mean = (share[:, None] * mixture.means).sum(0)
    around = (share[:, None] * (mixture.means - mean) ** 2).sum(0)
    return float((around + (share * mixture.stds**2).sum()).mean().sqrt())


def facts() -> dict[str, Any]:
    """What the page is told: the mixture, the constants, and some points of it with the noise they are shown under.

    Returns:
        JSON values: ``means`` [4][2], ``stds`` [4], ``weights`` [4], the constants, ``points`` [n][2] and ``noise`` [n][2].
    """
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(_SHOWN, 2, generator=generator, dtype=torch.float64)
    return {
        "means": [list(row) for row in _MEANS],
        "stds": list(_STDS),
        "weights": list(_WEIGHTS),
        "sigma_min": SIGMA_MIN,
        "sigma_max": SIGMA_MAX,
        "sigma_data": SIGMA_DATA,
        "rho": RHO,
        "p_mean": P_MEAN,
        "p_std": P_STD,
        "s0": S0,
        "s1": S1,
        "points": _rounded(world().sample(_SHOWN, _SEED)),
        "noise": _rounded(noise),
    }


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(float(number), 4) for number in row] for row in values]
