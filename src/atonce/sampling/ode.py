"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma for denoisers; noise may be added on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from atonce.core.errors import InputError

Denoiser = Callable[[Tensor, float], Tensor]

_LARGEST_GAMMA = math.sqrt(2.0) - 1.0  # never more new noise than the image already has


@dataclass(frozen=True)
class Churn:
    """How much fresh noise the solver adds before each interval (Karras et al. 2022, Algorithm 2).

    The published values for ImageNet at 64x64 with 256 steps are 40, 0.05, 50 and 1.003; good ones differ from data to data.

    A raised level is up to sqrt(2) times that of the grid, so where sigma_max lies in [S_min, S_max] the first call lies above
    sigma_max. EDM does the same; its denoiser extrapolates well there. With S_max at most sigma_max / sqrt(2) no call does.

    Attributes:
        S_churn: Amount for the whole trajectory; 0 adds nothing.
        S_min: Lowest noise level at which noise is added.
        S_max: Highest noise level at which noise is added.
        S_noise: Standard deviation of the added noise; a little above 1 makes up for a denoiser that takes away too much.
    """

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: A value is out of its range.
        """
        if not 0 <= self.S_churn < math.inf:
            raise InputError(f"S_churn is {self.S_churn}, must be a finite number of at least 0")
        if not 0 <= self.S_min <= self.S_max:
            raise InputError(f"S_min is {self.S_min} and S_max {self.S_max}: 0 <= S_min <= S_max must hold")
        if not 0 < self.S_noise < math.inf:
            raise InputError(f"S_noise is {self.S_noise}, must be a finite number above 0 (1 is usual)")

    def gamma(self, sigma: float, count: int) -> float:
        """By which part of itself a noise level is raised: min(S_churn / count, sqrt(2) - 1) within [S_min, S_max], else 0.

        Args:
            sigma: Noise level of the grid.
            count: Levels of the grid above 0. EDM's num_steps is the same: its grid closes with a 0 that it does not count.

        Returns:
            gamma, in [0, sqrt(2) - 1].
        """
        return min(self.S_churn / count, _LARGEST_GAMMA) if self.S_min <= sigma <= self.S_max else 0.0


def euler_step(d: Tensor, x: Tensor, sigma: float | Tensor, to: float | Tensor) -> Tensor:
    """One Euler step: x + (to - sigma) (x - D) / sigma, with D = D(x, sigma) given."""
    return x + (to - sigma) * (x - d) / sigma


def integrate(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    order: int = 2,
    callback: Callable[[dict[str, object]], None] | None = None,
    *,
    churn: Churn | None = None,
    noise: Callable[[int], Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Integrate the ODE along ``sigmas`` (Karras et al. 2022, Algorithm 1; Euler where order is 1), or with churn Algorithm 2.

    Heun's second slope is left out where the interval ends at 0, where it is not defined. So a grid of n intervals costs n
    calls with Euler, 2 n with Heun, and 2 n - 1 with Heun where it closes with 0.

    Churn costs no call. Before an interval it raises the level t to u = t (1 + gamma) by noise,
    x <- x + sqrt(u^2 - t^2) S_noise z, and the interval starts there. gamma depends on the number of levels above 0, so a
    closing 0 changes nothing before it.

    Args:
        denoiser: D(x [B, C, H, W], sigma). With churn, sigma may be up to sqrt(2) times the grid's (see :class:`Churn`).
        x: State at ``sigmas[0]``; its dtype is that of the integration.
        sigmas: Descending noise levels, the last may be 0. Without churn they may ascend as well, from data to noise.
        order: 2 for Heun, 1 for Euler.
        callback: Called after each interval with ``step``, ``sigma`` (the grid's, where the interval begins), ``x0`` (the
            denoiser's estimate) and ``calls``.
        churn: Noise to add on the way; ``None``, or one with S_churn = 0, gives the deterministic solver to the bit.
        noise: Unit normal noise [B, C, H, W] of interval i = 0, 1, ...; asked for only where gamma is above 0.

    Returns:
        The state at ``sigmas[-1]`` and the number of network calls.

    Raises:
        InputError: ``order`` is not 1 or 2, a level that an interval starts from is not above 0, or churn comes without noise,
            with noise of another shape than the state, or with levels that do not descend.
    """
    _check(sigmas, order, churn, noise)
    count = sum(sigma > 0 for sigma in sigmas)
    calls = 0
    for i, (sigma, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        start = sigma
        if churn is not None and noise is not None and (gamma := churn.gamma(sigma, count)) > 0:
            z = noise(i)
            if z.shape != x.shape:
                raise InputError(f"the noise of step {i} has shape {list(z.shape)}, must be that of the state, {list(x.shape)}")
            start = sigma * (1 + gamma)
            # sqrt(start^2 - sigma^2), without the difference of nearly equal numbers where gamma is small.
            x = x + sigma * math.sqrt(gamma * (2 + gamma)) * churn.S_noise * z.to(x)
        d = denoiser(x, start)
        calls += 1
        slope = (x - d) / start
        end = x + (to - start) * slope
        if order == 2 and to > 0:
            slope_end = (end - denoiser(end, to)) / to
            calls += 1
            end = x + (to - start) * 0.5 * (slope + slope_end)
        x = end
        if callback is not None:
            callback({"step": i, "sigma": sigma, "x0": d, "calls": calls})
    return x, calls


def _check(sigmas: Sequence[float], order: int, churn: Churn | None, noise: Callable[[int], Tensor] | None) -> None:
    if order not in (1, 2):
        raise InputError(f"order is {order!r}, must be 1 (Euler) or 2 (Heun)")
    for i, sigma in enumerate(sigmas):
        if not (0 < sigma < math.inf or (sigma == 0 and i == len(sigmas) - 1)):
            raise InputError(f"noise level {i} is {sigma:g}, must be a finite number above 0; only the last may be 0")
    if churn is None or churn.S_churn == 0:
        return
    if noise is None:
        raise InputError(f"churn with S_churn = {churn.S_churn:g} needs noise: give the unit normal noise of each step")
    for i, (sigma, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if sigma <= to:
            raise InputError(f"noise level {i} is {sigma:g} and the next one {to:g}: with churn they must descend")
