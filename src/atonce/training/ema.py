"""Exponential and power-function moving averages of the weights: what describes one, its decay at a step, and the average."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.training.flat import FlatParameters

Kind = Literal["decay", "half-life", "power"]

SIGMA_REL_MAX = 12**-0.5  # of the uniform average, gamma = 0: see gamma_of
_SIGMA_REL_MIN = 1e-6
_HALF_LIFE_MAX = float(1 << 50)
_ACCEPTED = (
    "give a decay per step in [0, 1) such as 0.9999, 'half-life-IMAGES' such as 'half-life-500000', or 'power-SIGMA_REL' with "
    f"sigma_rel above 0 and at most {SIGMA_REL_MAX:.4f} such as 'power-0.05'"
)


@dataclass(frozen=True)
class Rate:
    """How fast a moving average of the weights forgets.

    Attributes:
        kind: ``"decay"`` per step; ``"half-life"`` in images; ``"power"``: the width of a power-function profile, whose memory
            grows with the run (Karras et al. 2024).
        value: The decay in [0, 1), the half-life in images, or sigma_rel: the standard deviation of the profile as a share of
            the run.
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            InputError: The kind is not known or the value is out of its range.
        """
        if self.kind not in get_args(Kind):
            raise InputError(f"the kind of an average is {self.kind!r}, must be one of {', '.join(get_args(Kind))}")
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"the value of an average of kind {self.kind} is {value!r}, must be a number")
        match self.kind:
            case "decay":
                good, wanted = 0 <= value < 1, "at least 0 and below 1, for example 0.9999"
            case "half-life":
                good, wanted = 1 <= value <= _HALF_LIFE_MAX, "a number of images from 1 to 2**50, for example 500000"
            case "power":
                good = _SIGMA_REL_MIN <= value <= SIGMA_REL_MAX
                wanted = f"a sigma_rel from {_SIGMA_REL_MIN:g} to {SIGMA_REL_MAX:.6f} (the uniform average), for example 0.05"
        if not good:
            raise InputError(f"the value of an average of kind {self.kind} is {value}, must be {wanted}")


def name_of(rate: Rate) -> str:
    """The name under which an average is saved and sampled: ``0.9999``, ``half-life-500000`` or ``power-0.05``.

    Args:
        rate: The rate.

    Returns:
        The name. Those of half-lives and powers hold all digits, those of decays six unless that would be 1.
    """
    if rate.kind == "decay":
        short = f"{rate.value:g}"
        return repr(rate.value) if short == "1" else short
    return f"{rate.kind}-{float(rate.value)!r}".removesuffix(".0")


def parse_rate(value: float | str) -> Rate:
    """The rate that a number or a name stands for.

    Args:
        value: A decay per step, or a name as :func:`name_of` gives it.

    Returns:
        The rate.

    Raises:
        InputError: It is no such number or name, or out of range; the message says what is accepted.
    """
    kind: Kind = "decay"
    text = str(value).strip()
    if text.startswith("half-life-"):
        kind, text = "half-life", text.removeprefix("half-life-")
    elif text.startswith("power-"):
        kind, text = "power", text.removeprefix("power-")
    try:
        return Rate(kind, float(text))
    except ValueError:  # also InputError: out of range
        raise InputError(f"the average {value!r} is not known: {_ACCEPTED}") from None


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
