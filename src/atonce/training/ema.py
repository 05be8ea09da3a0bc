"""Exponential and power-function moving averages of the weights: what describes one, its decay at a step, and the average."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from atonce.core.averages import SIGMA_REL_MAX as SIGMA_REL_MAX
from atonce.core.averages import Rate as Rate
from atonce.core.averages import name_of as name_of
from atonce.core.averages import parse_rate as parse_rate
from atonce.core.errors import InputError
from atonce.training.flat import FlatParameters


@functools.lru_cache(maxsize=64)
def gamma_of(sigma_rel: float) -> float:
    """Exponent of the power-function profile with a given relative width.

    The profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] has the mean t (gamma + 1) / (gamma + 2) and the
    standard deviation t sigma_rel with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); cleared of its denominator
    that is a cubic in gamma, solved here for its largest root (Karras et al. 2024, section 3.1 and appendix C). For gamma >= 0,
    where later weights count at least as much as earlier ones, sigma_rel falls from 12^-0.5 = 0.2887 (gamma = 0, the uniform
    average) to 0, so there the root is the only one. Wider profiles exist for gamma < 0, up to 0.3003 at gamma = -0.382, but
    they weigh the first weights most.

    Args:
        sigma_rel: From 1e-6 to 12^-0.5.

    Returns:
        gamma, at least 0.
    """
    square = Rate("power", sigma_rel).value ** 2
    # Newton's method in u = gamma + 2 from the right of the root, where the cubic rises and is convex: it falls until rounding.
    u = 1 / sigma_rel + 2
    while True:
        following = u - (square * u * u * (u + 1) - (u - 1)) / (square * u * (3 * u + 2) - 1)
        if not following < u:
            return max(u - 2, 0.0)
        u = following


def sigma_rel_of(gamma: float) -> float:
    """Relative width of the power-function profile with exponent ``gamma`` >= 0 (the inverse of :func:`gamma_of`)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def decay_at(rate: Rate, *, batch: int, images_seen: int, rampup: float = 0.0) -> float:
    """Decay beta of a moving average at one step: average <- beta average + (1 - beta) weights.

    A half-life of h images gives 0.5^(batch / h) (Karras et al. 2022). The power-function profile gives, at step
    t = images_seen / batch, (1 - 1/t)^(gamma + 1) (Karras et al. 2024, section 3.1): 0 at the first step, so that the initial
    weights have no share. The product of these decays is known: of the average after T steps, the weights after step s have
    the share (s/T)^(gamma + 1) - ((s - 1)/T)^(gamma + 1), which is exactly the profile's integral over that step.

    Args:
        rate: The rate.
        batch: Images per step.
        images_seen: Images seen including this batch.
        rampup: The half-life is at most this share of the images seen, so that the first weights, which are noise, do not stay
            in a short run's average (Karras et al. 2022: 0.05); 0: no cap. The power-function profile has none.

    Returns:
        The decay, in [0, 1).

    Raises:
        InputError: An argument is out of range.
    """
    if batch < 1 or images_seen < batch:
        raise InputError(f"batch is {batch} and images_seen {images_seen}, must be at least 1 and at least a batch")
    if not 0 <= rampup <= 1:
        raise InputError(f"rampup is {rampup}, must be a share of the images seen, from 0 (no cap) to 1")
    match rate.kind:
        case "power":
            return float((1.0 - batch / images_seen) ** (gamma_of(rate.value) + 1))
        case "half-life":
            decay = float(0.5 ** (batch / rate.value))
        case "decay":
            decay = float(rate.value)
    if not rampup:
        return decay
    return min(decay, float(0.5 ** (batch / (rampup * images_seen))))


class Average:
    """One moving average of a network's parameters, on their device.

    Args:
        flat: The parameters; the average starts from their values.
    """

    def __init__(self, flat: FlatParameters) -> None:
        self._flat = flat
        self.values = flat.values.detach().clone()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move on: decay * average + (1 - decay) * parameters, in one pass that never waits for the device.

        Args:
            decay: In [0, 1).
        """
        self.values.lerp_(self._flat.values, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name; the tensors are views of the live one."""
        return self._flat.named(self.values)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the values of :meth:`state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
