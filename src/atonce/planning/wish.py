"""What somebody wants of a training: limits, and what is settled already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.networks.presets import NAMES
from atonce.planning.assumptions import positive

MODEST = 2_000_000  # images where nobody says how many and nothing limits them: what ``atonce train`` takes
BATCH = 128  # images a step where nobody says how many


@dataclass(frozen=True)
class Wish:
    """Limits and settings of a plan; what is ``None`` is not limited or not settled.

    Attributes:
        images: Budget in images seen; ``None``: what fits, or two million.
        batch: Images a step.
        network: A network by name; ``"auto"`` lets the plan choose a smaller one where the usual one does not fit.
        conditional: Train with the data's labels.
        deadline: Seconds in which all must be done.
        budget: Money that may be spent.
        price: Money for an hour of the device.
        watts: Power of the device under load.
        currency: How money is written.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: As for training.
        seconds: About how long the probes may take together, without their start.
    """

    images: int | None = None
    batch: int | None = None
    network: str = "auto"
    conditional: bool = False
    deadline: float | None = None
    budget: float | None = None
    price: float | None = None
    watts: float | None = None
    currency: str = "USD"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seconds: float = 20.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: One is out of its range, or does not go with another.
        """
        if self.images is not None:
            whole(self.images, "images", 1, 10**12)
        if self.batch is not None:
            whole(self.batch, "batch", 1, 1 << 20)
        if self.images is not None and self.images < (self.batch or 1):
            raise InputError(f"images is {self.images}, must be at least one batch ({self.batch})")
        if self.network not in NAMES:
            raise InputError(f"network is {self.network!r}, must be one of {', '.join(NAMES)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}, must be auto, fp32 or bf16")
        if self.deadline is not None:
            positive(self.deadline, "deadline", 3650 * 86400, "seconds")
        if self.budget is not None:
            positive(self.budget, "budget", 1e12, self.currency)
        if self.price is not None:
            positive(self.price, "price", 1e6, f"{self.currency} an hour", zero=True)
        if self.watts is not None:
            positive(self.watts, "watts", 1e6, "W")
        positive(self.seconds, "seconds of the probes", 3600)
        if self.budget is not None and self.price is None:
            raise InputError(f"budget is {self.budget:g}, which says nothing without the price of a device hour: give --price")

    @property
    def limit(self) -> float | None:
        """Seconds that deadline and budget leave together; ``None`` where neither limits."""
        limits = [] if self.deadline is None else [self.deadline]
        if self.budget is not None and self.price:
            limits.append(self.budget / self.price * 3600)
        return min(limits) if limits else None

    @property
    def short(self) -> bool:
        """Whether this is a run of small scale, for which the settings of our table are better than those of the papers."""
        if self.images is not None:
            return self.images <= 5_000_000
        return self.limit is None or self.limit <= 86400
