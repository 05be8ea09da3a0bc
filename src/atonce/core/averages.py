"""Names of moving averages of the weights: how training is asked for one, and how its weights are asked for afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from atonce.core.errors import InputError

Kind = Literal["decay", "half-life", "power"]

SIGMA_REL_MAX = 12**-0.5  # of the uniform average: see atonce.training.ema.gamma_of
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


def known_as(asked: Any, names: Sequence[str]) -> str | None:
    """The one of some names that is meant, in whatever way the average is written: ``power-0.10`` is ``power-0.1``.

    Args:
        asked: A name, or the decay of an average as a number.
        names: The names there are.

    Returns:
        The name; ``None`` where none is meant.
    """
    if isinstance(asked, str) and asked in names:
        return asked
    if isinstance(asked, bool) or not isinstance(asked, str | int | float):
        return None
    try:
        name = name_of(parse_rate(asked))
    except InputError:
        return None
    return name if name in names else None
