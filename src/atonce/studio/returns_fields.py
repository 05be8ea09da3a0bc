"""The numbers of the Return tab: what each is called on the page, how far its slider goes, and what it begins with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from atonce.planning.returns import Terms

TERMS = Terms()


@dataclass(frozen=True)
class Field:
    """A number that can be changed.

    Attributes:
        key: Its name in the form; that of a field of :class:`~atonce.planning.returns.Terms`, or of a way's with its role.
        label: What it is called on the page.
        unit: Its unit; ``{}`` stands for the currency.
        low: Left end of the slider.
        high: Right end of the slider. A number may be typed beyond it.
        step: Of a straight slider; 0 for one whose steps are ratios.
        value: What it begins with; ``None`` where it may be left empty.
        note: Where that comes from.
        option: Of ``atonce plan return``.
    """

    key: str
    label: str
    unit: str
    low: float
    high: float
    step: float
    value: float | None
    note: str
    option: str

    @property
    def code(self) -> str:
        """What messages of the planning room call it."""
        what, _, role = self.key.partition("@")
        return f"{what} of {role}" if role else what


def _way(role: str, name: str, calls: float, seconds: float, latency: float, why: str) -> tuple[Field, ...]:
    return (
        Field(f"calls@{role}", f"Network calls, {name}", "for an image", 1, 1000, 0, calls, why, f"--calls-{role}"),
        Field(
            f"seconds@{role}",
            f"Device time, {name}",
            "s for an image, in full batches",
            1e-5,
            100,
            0,
            seconds,
            "assumed: 10 ms a call; measure it above, or type your own",
            f"--seconds-{role}",
        ),
        Field(
            f"latency@{role}",
            f"Latency, {name}",
            "s for one image alone; may be empty",
            1e-4,
            100,
            0,
            latency,
            "assumed: 20 ms a call alone; measure it above, or type your own",
            f"--latency-{role}",
        ),
    )


BEFORE = _way(
    "before",
    "before",
    35.0,
    0.35,
    0.7,
    "18 Heun steps, EDM's sampler for CIFAR-10 (arXiv 2206.00364)",
)
AFTER = _way("after", "after", 1.0, 0.01, 0.02, "one step of a consistency model (arXiv 2303.01469)")

LOAD = (
    Field("images_per_day", "Images a day", "images", 100, 1e9, 0, TERMS.images_per_day, "assumed", "--images-per-day"),
    Field("utilisation", "Share of paid time in use", "of 1", 0.01, 1, 0.01, TERMS.utilisation, "assumed", "--utilisation"),
)
MONEY = (
    Field(
        "price_per_hour",
        "Price of a device hour",
        "{}",
        0,
        20,
        0.05,
        TERMS.price_per_hour,
        "assumed: about what a large GPU is rented for",
        "--price-per-hour",
    ),
    Field(
        "once",
        "Training and other cost, once",
        "{}",
        0,
        1e6,
        0,
        TERMS.once,
        "assumed: nothing; put your training here",
        "--once",
    ),
)
POWER = (
    Field(
        "watts",
        "Power of the device under load",
        "W",
        0,
        1500,
        5,
        TERMS.watts,
        "assumed: what NVIDIA states as the most an H200 SXM draws",
        "--watts",
    ),
    Field(
        "overhead",
        "Energy of the building over the device's (PUE)",
        "times",
        1,
        3,
        0.01,
        TERMS.overhead,
        "assumed",
        "--overhead",
    ),
    Field("price_per_kwh", "Price of energy", "{} a kWh", 0, 1, 0.005, TERMS.price_per_kwh, "assumed", "--price-per-kwh"),
)

GROUPS: tuple[tuple[str, tuple[Field, ...]], ...] = (
    ("How much", LOAD),
    ("Before: many steps", BEFORE),
    ("After: one step", AFTER),
    ("Money", MONEY),
    ("Energy", POWER),
)
FIELDS = {field.key: field for _, fields in GROUPS for field in fields}
CURRENCIES = ("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR")
TERM_KEYS = tuple(each.name for each in dataclasses.fields(Terms) if each.name in FIELDS)
