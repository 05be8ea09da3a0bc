"""Data distributions for which every answer of the noise process is known: the ground that tests stand on.

A state at noise level sigma is x = y + sigma z with y from the world and z standard normal. The probability-flow ODE is
dx/dsigma = (x - D(x, sigma)) / sigma with the denoiser D(x, sigma) = E[y | x] (Karras et al., 2022, equation 1 with
sigma(t) = t). All results are float64 on the device of the state.

Shapes: states are [B, ...]; a noise level is a number or [B]; the result has the shape of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from atonce.core import streams
from atonce.core.errors import InputError

Level = Tensor | float

# Steps of the stream of worlds: noise within a component, and the choice of the component.
_STEP_NORMAL, _STEP_COMPONENT = 0, 1


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=x.device)


def _level(sigma: Level, x: Tensor) -> Tensor:
    """The noise level as a float64 tensor that broadcasts against x [B, ...]."""
    level = _like(sigma, x)
    if not bool((torch.isfinite(level) & (level >= 0)).all()):
        raise InputError("a noise level must be a finite number of at least 0")
    if level.ndim == 1 and level.shape[0] == x.shape[0]:
        return level.reshape(-1, *[1] * (x.ndim - 1))
    if level.ndim != 0:
        raise InputError(
            f"noise levels of shape {list(level.shape)} do not fit a state of shape {list(x.shape)}: give one or [B]"
        )
    return level


def _sum(values: Tensor) -> Tensor:
    """Sum over everything but the batch: [B, ...] to [B]."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Normal data with independent coordinates, or with any covariance (:meth:`from_covariance`).

    Attributes:
        mean: A number, or a tensor of the shape of one sample.
        std: Standard deviation, at least 0: a number or a tensor that broadcasts with one sample; along the columns of
            ``basis`` where that is given.
        basis: Orthogonal [D, D], columns are the principal axes; None for the coordinate axes.
    """

    mean: Tensor | float = 0.0
    std: Tensor | float = 0.5
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool((torch.isfinite(torch.as_tensor(self.std)) & (torch.as_tensor(self.std) >= 0)).all()):
            raise InputError(f"the standard deviation of a Gaussian world must be finite and at least 0, not {self.std}")

    @staticmethod
    def from_covariance(mean: Tensor, covariance: Tensor) -> Gaussian:
        """The Gaussian with mean [D] and covariance [D, D] (symmetric, no negative eigenvalue)."""
        values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
        if float(values[0]) < -1e-9 * max(float(values[-1]), 0.0):
            raise InputError(f"a covariance must have no negative eigenvalue, but the least one is {float(values[0]):.3g}")
        return Gaussian(mean, values.clamp(min=0).sqrt(), vectors)

    def _deviation(self, x: Tensor, factor: Tensor) -> Tensor:
        """The deviation of x from the mean, times a factor along the principal axes: every map of this world is made of it."""
        centred = x - _like(self.mean, x)
        if self.basis is None:
            return factor * centred
        basis = _like(self.basis, x)
        return ((centred @ basis) * factor) @ basis.T

    def _variance(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Variance of the state at a noise level, along the principal axes; above 0."""
        variance = _like(self.std, x) ** 2 + sigma**2
        if not bool((variance > 0).all()):
            raise InputError("a point mass has no density at noise level 0: give a noise level above 0")
        return variance

    def sample(self, n: int, seed: int, first: int = 0, shape: tuple[int, ...] | None = None) -> Tensor:
        """Data: sample i is a function of (seed, first + i).

        Args:
            n: How many.
            seed: The seed.
            first: Index of the first sample.
            shape: Shape of one sample; by default that of mean and std, or (1,) where both are numbers.

        Returns:
            float64 [n, *shape].
        """
        if shape is None:
            shape = tuple(torch.broadcast_shapes(torch.as_tensor(self.mean).shape, torch.as_tensor(self.std).shape)) or (1,)
        index = torch.arange(first, first + n)
        z = streams.normal(seed, index, shape, streams.Stream.WORLD, _STEP_NORMAL).to(torch.float64)
        scaled = z * _like(self.std, z)
        return _like(self.mean, z) + (scaled if self.basis is None else scaled @ _like(self.basis, z).T)

    def denoiser(self, x: Tensor, sigma: Level) -> Tensor:
        """E[y | x] = mean + s^2 / (s^2 + sigma^2) (x - mean)."""
        x = x.to(torch.float64)
        return _like(self.mean, x) + self._deviation(x, _like(self.std, x) ** 2 / self._variance(_level(sigma, x), x))

    def score(self, x: Tensor, sigma: Level) -> Tensor:
        """Gradient of the log density at noise level sigma."""
        x = x.to(torch.float64)
        return self._deviation(x, -1.0 / self._variance(_level(sigma, x), x))

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        """Slope of the probability-flow ODE, (x - D) / sigma; its limit 0 at sigma = 0."""
        x = x.to(torch.float64)
        return -_level(sigma, x) * self.score(x, sigma)

    def log_density(self, x: Tensor, sigma: Level) -> Tensor:
        """Log density of the state at noise level sigma: [B]."""
        x = x.to(torch.float64)
        variance = self._variance(_level(sigma, x), x)
        centred = x - _like(self.mean, x)
        along = centred if self.basis is None else centred @ _like(self.basis, x)
        return _sum(-0.5 * (along**2 / variance + torch.log(2 * math.pi * variance)))

    def solution(self, x: Tensor, sigma: Level, to: Level) -> Tensor:
        """Where the probability-flow ODE takes x from noise level sigma to noise level ``to`` (up or down), exactly."""
        x = x.to(torch.float64)
        end = _like(self.std, x) ** 2 + _level(to, x) ** 2
        return _like(self.mean, x) + self._deviation(x, torch.sqrt(end / self._variance(_level(sigma, x), x)))

    def consistency(self, x: Tensor, sigma: Level, sigma_end: float = 0.002) -> Tensor:
        """The exact consistency function: the end at ``sigma_end`` of the trajectory through (x, sigma)."""
        return self.solution(x, sigma, sigma_end)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of K round Gaussians; a standard deviation of 0 makes an atom.

    Attributes:
        means: [K, ...], the trailing shape is that of one sample.
        stds: [K], at least 0.
        weights: [K], at least 0; they are normalised to sum to 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        k = self.means.shape[0] if self.means.ndim > 1 else 0
        if k < 1 or self.stds.shape != (k,) or self.weights.shape != (k,):
            shapes = [list(t.shape) for t in (self.means, self.stds, self.weights)]
            raise InputError(f"a mixture needs means [K, D], stds [K] and weights [K], not shapes {shapes}")
        if not bool((self.stds >= 0).all() and (self.weights >= 0).all() and self.weights.sum() > 0):
            raise InputError("the standard deviations and weights of a mixture must be at least 0, and one weight above 0")

    def _parts(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets mean_k - x [B, K, D], variances s_k^2 + sigma^2 [B or 1, K], log joint densities [B, K]."""
        if x.shape[1:] != self.means.shape[1:]:
            raise InputError(
                f"a state of shape {list(x.shape)} does not fit a mixture of shape [B, {list(self.means.shape[1:])}]"
            )
        offset = _like(self.means, x).flatten(1)[None] - x.flatten(1)[:, None]
        variance = _like(self.stds, x)[None] ** 2 + sigma.reshape(-1, 1) ** 2
        if not bool((variance > 0).all()):
            raise InputError("a mixture with a point mass has no density at noise level 0: give a noise level above 0")
        log_weights = torch.log(_like(self.weights, x) / _like(self.weights, x).sum())
        spread = -0.5 * offset.shape[2] * torch.log(2 * math.pi * variance)
        return offset, variance, log_weights + spread - 0.5 * (offset**2).sum(2) / variance

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        """Data float64 [n, ...]: sample i is a function of (seed, first + i)."""
        index = torch.arange(first, first + n)
        u = streams.uniform(seed, index, 1, streams.Stream.WORLD, _STEP_COMPONENT)[:, 0]
        cdf = torch.cumsum(self.weights.to("cpu", torch.float64), 0)
        k = torch.searchsorted(cdf / cdf[-1], u, right=True)
        z = streams.normal(seed, index, tuple(self.means.shape[1:]), streams.Stream.WORLD, _STEP_NORMAL).to(torch.float64)
        return _like(self.means, z)[k] + _like(self.stds, z)[k].reshape(-1, *[1] * (z.ndim - 1)) * z

    def denoiser(self, x: Tensor, sigma: Level) -> Tensor:
        """E[y | x]: each component's answer, weighted with its posterior probability."""
        x = x.to(torch.float64)
        level = _level(sigma, x)
        offset, variance, joint = self._parts(x, level)
        # x + (mean - x) sigma^2 / (s^2 + sigma^2) is the denoiser of one component.
        weight = torch.softmax(joint, dim=1) * level.reshape(-1, 1) ** 2 / variance
        return x + (weight[:, :, None] * offset).sum(1).reshape(x.shape)

    def _score(self, x: Tensor, level: Tensor) -> Tensor:
        offset, variance, joint = self._parts(x, level)
        return ((torch.softmax(joint, dim=1) / variance)[:, :, None] * offset).sum(1).reshape(x.shape)

    def score(self, x: Tensor, sigma: Level) -> Tensor:
        """Gradient of the log density at noise level sigma."""
        return self._score(x.to(torch.float64), _level(sigma, x))

    def velocity(self, x: Tensor, sigma: Level) -> Tensor:
        """Slope of the probability-flow ODE, (x - D) / sigma; its limit 0 at sigma = 0."""
        return -_level(sigma, x) * self.score(x, sigma)

    def log_density(self, x: Tensor, sigma: Level) -> Tensor:
        """Log density of the state at noise level sigma: [B]."""
        return torch.logsumexp(self._parts(x.to(torch.float64), _level(sigma, x))[2], dim=1)

    def solution(self, x: Tensor, sigma: Level, to: Level, steps: int | None = None) -> Tensor:
        """Where the probability-flow ODE takes x from noise level sigma to ``to`` (up or down), by integration.

        Extrapolation of order 12 (Gragg, Bulirsch and Stoer) in the variable w with sigma = s sinh(w), s the least
        standard deviation, in which one Gaussian's trajectory has a bounded slope down to sigma = 0. From 80 to 0.002
        with two or three components about 2 apart, against the exact map of one dimension (equal quantiles), the largest
        error is 1e-11 for standard deviations from 0.01 up and for atoms, and 1e-12 at twice the steps.
        A trajectory that starts within rounding of the boundary between two basins is as ill-conditioned as its question.

        Args:
            x: States [B, ...].
            sigma: Their noise levels.
            to: The noise levels to reach; above 0 where a component is an atom.
            steps: Extrapolation steps, 43 slopes each; by default 8 for each unit of w on the longest way.

        Returns:
            float64 [B, ...], differentiable in x.

        Raises:
            InputError: ``steps`` is below 1, or the end is noise level 0 and a component is an atom.
        """
        if steps is not None and steps < 1:
            raise InputError(f"steps is {steps}, but an integration needs at least 1")
        x = x.to(torch.float64)
        start, end = _level(sigma, x), _level(to, x)
        scale = float(self.stds.min()) or min(float(start.min()), float(end.min()))
        if scale <= 0:
            raise InputError("the trajectory of a mixture with a point mass cannot be followed to noise level 0: end above 0")
        w, end_w = torch.asinh(start / scale), torch.asinh(end / scale)
        count = steps or max(1, math.ceil(8 * float((end_w - w).abs().max())))
        width = (end_w - w) / count

        def slope(at: Tensor, state: Tensor) -> Tensor:
            level = scale * torch.sinh(at)
            return -level * self._score(state, level) * (scale * torch.cosh(at))

        for _ in range(count):
            x, w = _extrapolated_step(slope, x, w, width), w + width
        return x

    def consistency(self, x: Tensor, sigma: Level, sigma_end: float = 0.002) -> Tensor:
        """The consistency function: the end at ``sigma_end`` of the trajectory through (x, sigma), as :meth:`solution`."""
        return self.solution(x, sigma, sigma_end)


def _extrapolated_step(
    slope: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    w: Tensor,
    width: Tensor,
    counts: tuple[int, ...] = (2, 4, 6, 8, 10, 12),
) -> Tensor:
    """One step of dx/dw = slope(w, x): modified midpoint rules with these many substeps, extrapolated to infinitely many."""
    first = slope(w, x)
    row: list[Tensor] = []
    for i, count in enumerate(counts):
        h = width / count
        before, now = x, x + h * first
        for j in range(1, count):
            before, now = now, before + 2 * h * slope(w + j * h, now)
        # The error is a series in h^2 (Gragg), so each column of Neville's table removes one power.
        column = [0.5 * (before + now + h * slope(w + width, now))]
        for j in range(i):
            column.append(column[j] + (column[j] - row[j]) / ((count / counts[i - 1 - j]) ** 2 - 1))
        row = column
    return row[-1]


def ct_fixed_point(grid: Tensor, s: float) -> Tensor:
    """What consistency training with squared error converges to on N(m, s^2) with a finite grid: x to m + a (x - m).

    The expected target is one Euler step, E[y + t_i z | x] = m + (s^2 + t_i t_{i+1}) / (s^2 + t_{i+1}^2) (x - m), so
    a_{i+1} = a_i (s^2 + t_i t_{i+1}) / (s^2 + t_{i+1}^2) from a_1 = 1. It tends to the exact consistency function
    sqrt((s^2 + t_1^2) / (s^2 + t^2)) only as the intervals shrink.

    Args:
        grid: Noise levels [n], ascending.
        s: Standard deviation of the data, above 0.

    Returns:
        The multiplier a at each level, float64 [n].
    """
    t = grid.to(torch.float64)
    factors = (s**2 + t[:-1] * t[1:]) / (s**2 + t[1:] ** 2)
    return torch.cat([torch.ones_like(t[:1]), torch.cumprod(factors, 0)])


def gaussian_average_velocity(z: Tensor, r: Level, t: Level, std: Level = 0.5, mean: Level = 0.0) -> Tensor:
    """MeanFlow's average velocity between flow times r and t for N(mean, std^2) data, exactly.

    The state is z_t = (1 - t) y + t e with unit noise e; u = 1/(t - r) times the integral of the marginal velocity along
    the trajectory through (z, t) (Geng et al., "Mean flows for one-step generative modeling", 2025). With
    A(t) = (1 - t)^2 std^2 + t^2, the trajectory is mean (1 - r) + sqrt(A(r) / A(t)) (z - mean (1 - t)). The difference
    quotient is rearranged so that r = t is no special case: there it is the instantaneous velocity.

    Args:
        z: States [B, ...] at time t.
        r: Flow time in [0, t], a number or [B].
        t: Flow time in (0, 1], a number or [B].
        std: Standard deviation of the data, above 0.
        mean: Mean of the data.

    Returns:
        float64 [B, ...].
    """
    z = z.to(torch.float64)
    early, late = _level(r, z), _level(t, z)
    variance, centre = _like(std, z) ** 2, _like(mean, z)

    def spread(time: Tensor) -> Tensor:
        return (1 - time) ** 2 * variance + time**2

    rate = ((1 + variance) * (late + early) - 2 * variance) / (spread(late) + torch.sqrt(spread(late) * spread(early)))
    return rate * (z - (1 - late) * centre) - centre


class TrigFlow(NamedTuple):
    """What TrigFlow's exact networks answer at a state x_t; all of the shape of the state.

    Attributes:
        teacher: F of the diffusion teacher: the trajectory's slope is dx/dt = sigma_data F.
        f: The exact consistency function, the end of the trajectory at t = 0.
        student: F of the exact consistency model, (cos t x - f) / (sin t sigma_data).
        student_rate: Its derivative dF/dt along the trajectory (what one Jacobian-vector product gives).
    """

    teacher: Tensor
    f: Tensor
    student: Tensor
    student_rate: Tensor


def gaussian_trigflow(x: Tensor, t: Level, std: Level = 0.5, sigma_data: float = 0.5, mean: Level = 0.0) -> TrigFlow:
    """TrigFlow's exact answers for N(mean, std^2) data.

    The state is x_t = cos t y + sin t z with noise z of standard deviation sigma_data (Lu and Song, "Simplifying,
    stabilizing and scaling continuous-time consistency models", 2024). With V = cos^2 t std^2 + sin^2 t sigma_data^2,
    f = mean + std / sqrt(V) (x - cos t mean).

    Args:
        x: States [B, ...] at time t.
        t: TrigFlow times in (0, pi/2], a number or [B].
        std: Standard deviation of the data, above 0.
        sigma_data: Standard deviation of the noise.
        mean: Mean of the data.

    Returns:
        The answers, float64.
    """
    x = x.to(torch.float64)
    time = _level(t, x)
    spread, centre = _like(std, x), _like(mean, x)
    cos, sin = torch.cos(time), torch.sin(time)
    root = torch.sqrt(cos**2 * spread**2 + sin**2 * sigma_data**2)
    offset = x - cos * centre
    slope = sin * cos * (sigma_data**2 - spread**2) / root**2 * offset - sin * centre
    f = centre + spread / root * offset
    # (cos t x - f) / sin t without the difference of nearly equal numbers at small t.
    gain = sin * (cos**2 * sigma_data**2 - (1 + cos**2) * spread**2) / (root * (cos * root + spread))
    student = (gain * offset - sin * centre) / sigma_data
    # f is constant along the trajectory, so only x and t move in the definition of the student.
    rate = (cos * slope - sin * x - sigma_data * cos * student) / (sigma_data * sin)
    return TrigFlow(slope / sigma_data, f, student, rate)
