"""What one-step generation brings: cost, energy, latency and break-even against a many-step baseline.

Plain arithmetic on numbers whose sources stay visible. A device is paid for by the hour and is busy for a share of that time
(``utilisation``); energy is what the device draws while it computes, times the overhead of the building (``overhead``, PUE).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from atonce.core.errors import InputError
from atonce.planning.assumptions import Assumption, Source, positive

DAY = 86400.0
JOULES = 3.6e6  # of a kWh


@dataclass(frozen=True)
class Way:
    """A way to make images.

    Attributes:
        name: What it is called.
        calls: Network calls for an image.
        seconds: Device seconds for an image when the device works in full batches.
        latency: Seconds from a request for one image to the image; ``None`` where it is not known.
        source: Where the seconds come from.
        note: How they were measured, or who published them.
        quality: A Fréchet distance or the like, for the eye only; ``None`` where there is none.
    """

    name: str
    calls: float
    seconds: float
    latency: float | None = None
    source: Source = "given"
    note: str = ""
    quality: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is not a number in its range.
        """
        positive(self.calls, f"calls of {self.name}", 1e6)
        positive(self.seconds, f"seconds of {self.name}", 1e6, "seconds for an image")
        if self.latency is not None:
            positive(self.latency, f"latency of {self.name}", 1e6, "seconds")


@dataclass(frozen=True)
class Terms:
    """What is paid for what.

    Attributes:
        images_per_day: Images made in a day.
        price_per_hour: Price of a device hour.
        watts: Power of the device under load.
        price_per_kwh: Price of energy; it counts only where ``power_included`` is false.
        power_included: Whether the device's price includes its power, as with rented machines.
        utilisation: Share of the paid time in which the device works.
        overhead: Energy of the building over that of the device (PUE).
        once: What the change costs once: training, evaluation, work.
        currency: How money is written.
    """

    images_per_day: float = 100_000
    price_per_hour: float = 2.5
    watts: float = 700.0
    price_per_kwh: float = 0.25
    power_included: bool = True
    utilisation: float = 0.5
    overhead: float = 1.3
    once: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: One is not a number in its range.
        """
        positive(self.images_per_day, "images_per_day", 1e13, "images")
        positive(self.price_per_hour, "price_per_hour", 1e6, zero=True)
        positive(self.watts, "watts", 1e6, "W", zero=True)
        positive(self.price_per_kwh, "price_per_kwh", 1e3, zero=True)
        positive(self.utilisation, "utilisation", 1.0)
        positive(self.overhead, "overhead", 10.0, least=1.0, zero=True)
        positive(self.once, "once", 1e12, zero=True)


@dataclass(frozen=True)
class Cost:
    """What a way costs.

    Attributes:
        way: The way.
        per_1000: Money for 1,000 images.
        kwh_per_1000: Energy for 1,000 images.
        per_day: Money a day.
        kwh_per_day: Energy a day.
        devices: Devices that are busy for the daily images, before rounding up.
        images_per_second: Of one device that works all the time.
    """

    way: Way
    per_1000: float
    kwh_per_1000: float
    per_day: float
    kwh_per_day: float
    devices: float
    images_per_second: float


@dataclass(frozen=True)
class Return:
    """The comparison.

    Attributes:
        terms: What was assumed about money and power.
        before: The baseline.
        after: What replaces it.
        saved_per_day: Money; negative where the change costs more.
        saved_kwh_per_day: Energy.
        cheaper: How many times cheaper an image is.
        faster: How many times sooner a single image is there; ``None`` where a latency is not known.
        break_even_days: Days until what was paid once is saved; ``None`` where it never is.
        break_even_images: Images made until then.
        assumptions: Every number it rests on.
    """

    terms: Terms
    before: Cost
    after: Cost
    saved_per_day: float
    saved_kwh_per_day: float
    cheaper: float
    faster: float | None
    break_even_days: float | None
    break_even_images: float | None
    assumptions: tuple[Assumption, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return dataclasses.asdict(self)


def cost_of(way: Way, terms: Terms) -> Cost:
    """What a way costs under some terms.

    Args:
        way: The way.
        terms: What is paid for what.

    Returns:
        Money and energy.
    """
    paid_hours = 1000 * way.seconds / terms.utilisation / 3600
    energy = 1000 * way.seconds * terms.watts * terms.overhead / JOULES
    per_1000 = paid_hours * terms.price_per_hour + (0.0 if terms.power_included else energy * terms.price_per_kwh)
    thousands = terms.images_per_day / 1000
    return Cost(
        way=way,
        per_1000=per_1000,
        kwh_per_1000=energy,
        per_day=per_1000 * thousands,
        kwh_per_day=energy * thousands,
        devices=terms.images_per_day * way.seconds / terms.utilisation / DAY,
        images_per_second=1 / way.seconds,
    )


def compare(before: Way, after: Way, terms: Terms | None = None, sources: dict[str, Source] | None = None) -> Return:
    """What it brings to make images another way.

    Args:
        before: The baseline.
        after: What replaces it.
        terms: What is paid for what; ``None`` for the defaults.
        sources: Where the fields of ``terms`` come from, by name; those that are not named are defaults.

    Returns:
        Costs, savings and break-even.

    Raises:
        InputError: ``sources`` names a field that ``terms`` has not.
    """
    terms = Terms() if terms is None else terms
    known = {field.name for field in dataclasses.fields(Terms)}
    if unknown := sorted(set(sources or {}) - known):
        raise InputError(f"sources has {', '.join(unknown)}; the terms are {', '.join(sorted(known))}")
    first, second = cost_of(before, terms), cost_of(after, terms)
    saved = first.per_day - second.per_day
    days = None if saved <= 0 else terms.once / saved
    return Return(
        terms=terms,
        before=first,
        after=second,
        saved_per_day=saved,
        saved_kwh_per_day=first.kwh_per_day - second.kwh_per_day,
        cheaper=first.per_1000 / second.per_1000 if second.per_1000 else before.seconds / after.seconds,
        faster=before.latency / after.latency if before.latency and after.latency else None,
        break_even_days=days,
        break_even_images=None if days is None else days * terms.images_per_day,
        assumptions=(*_terms(terms, sources or {}), *_way(before, "before"), *_way(after, "after")),
    )


_UNITS = {
    "images_per_day": ("images", "how many are made in a day"),
    "price_per_hour": ("{} an hour", "price of one device"),
    "watts": ("W", "power of one device under load"),
    "price_per_kwh": ("{} a kWh", "price of energy"),
    "utilisation": ("", "share of the paid time in which a device works"),
    "overhead": ("", "energy of the building over that of the device (PUE)"),
    "once": ("{}", "what the change costs once"),
}


def _terms(terms: Terms, sources: dict[str, Source]) -> list[Assumption]:
    found = []
    for name, (unit, note) in _UNITS.items():
        if name == "price_per_kwh" and terms.power_included:
            note += "; not used: the price of the device includes it"
        value = float(getattr(terms, name))
        found.append(Assumption(name, value, unit.format(terms.currency), sources.get(name, "default"), note))
    return found


def _way(way: Way, role: str) -> list[Assumption]:
    found = [
        Assumption(f"{role}: network calls", way.calls, "for an image", way.source, way.note),
        Assumption(f"{role}: device time", way.seconds, "s for an image", way.source, way.note),
    ]
    if way.latency is not None:
        found.append(Assumption(f"{role}: latency", way.latency, "s for one image alone", way.source, way.note))
    return found
