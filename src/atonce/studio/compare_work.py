"""What the tab Compare does: the same seeds made in several ways, with the time, the calls and the cost of each."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atonce.core.errors import InputError
from atonce.core.files import storage_errors, write_json
from atonce.planning.returns import Cost, Terms, cost_of
from atonce.planning.returns import Way as PaidWay
from atonce.serving.encode import as_base64, encode
from atonce.serving.generate import DENOISER_STEPS
from atonce.studio.context import Person, Studio
from atonce.studio.generate_work import SEEDS, Wish, made_of, title_of

COUNTS = (4, 8, 16)
"""How many seeds are compared."""
MOST_WAYS = 12
STEPS = (1, 2, 4)
BATCHES, SINGLES = 3, 3
ENOUGH = 2.0  # seconds of one way after which nothing of it is timed again


@dataclass(frozen=True)
class Way:
    """A way to make images.

    Attributes:
        model: Name of a served model.
        steps: Intervals.
        heun: Whether the model is a denoiser, integrated by Heun's method.
    """

    model: str
    steps: int
    heun: bool = False

    @property
    def key(self) -> str:
        """A short name for forms."""
        return f"{self.model}|{self.steps}"

    @property
    def name(self) -> str:
        """In words."""
        if self.heun:
            return f"{self.model}: teacher, {self.steps} Heun steps"
        return f"{self.model}: {'one step' if self.steps == 1 else f'{self.steps} steps'}"


@dataclass(frozen=True)
class Shown:
    """One image of a comparison.

    Attributes:
        seed: Its seed.
        title: In words.
        src: A data address.
        width: Pixels.
    """

    seed: int
    title: str
    src: str
    width: int


@dataclass(frozen=True)
class Outcome:
    """What came of a way.

    Attributes:
        way: The way.
        calls: Network calls for each image.
        seconds: For an image when all were made together: the median.
        latency: For one image alone: the median.
        rounds: How often all were made.
        images: The images, one for each seed.
    """

    way: Way
    calls: int
    seconds: float
    latency: float
    rounds: int
    images: tuple[Shown, ...]


def ways_of(studio: Studio) -> list[Way]:
    """All ways that can be compared: one, two and four steps of each model, and Heun's method where a denoiser is served.

    Args:
        studio: The studio.

    Returns:
        Ways, in the order of the models.
    """
    found: list[Way] = []
    hosts = studio.service.hosts
    for name in hosts.names():
        model = hosts.host(name).engine("").model
        heun = model.kind == "denoiser"
        found += [Way(name, steps, heun) for steps in ((DENOISER_STEPS, DENOISER_STEPS // 2) if heun else STEPS)]
    return found


def usual(ways: Sequence[Way]) -> list[str]:
    """What is chosen before anybody chooses: the first model's ways, and every teacher's first.

    Args:
        ways: From :func:`ways_of`.

    Returns:
        Keys.
    """
    first = [way for way in ways if way.model == ways[0].model] if ways else []
    teachers = [way for way in ways if way.heun and way.steps == DENOISER_STEPS and way not in first]
    return [way.key for way in [*first, *teachers]]


def chosen(ways: Sequence[Way], keys: Sequence[str], count: Any) -> list[Way]:
    """The ways that somebody has chosen.

    Args:
        ways: From :func:`ways_of`.
        keys: Of the form.
        count: How many seeds.

    Returns:
        Ways, in their order.

    Raises:
        InputError: There are none or too many, one is not there any more, or the number of seeds is not among those offered.
    """
    known = {way.key for way in ways}
    if gone := [key for key in keys if key not in known]:
        raise InputError(f"{gone[0][:80]!r} is not served any more: load the page again")
    if not keys:
        raise InputError("nothing is chosen: choose at least one way, two to compare")
    if len(keys) > MOST_WAYS:
        raise InputError(f"{len(keys)} ways are chosen, at most {MOST_WAYS} are compared at once: choose fewer")
    if count not in COUNTS:
        raise InputError(f"{count} seeds are asked for: choose {', '.join(map(str, COUNTS))}")
    return [way for way in ways if way.key in keys]


async def outcome_of(studio: Studio, who: Person, way: Way, seeds: tuple[int, ...], label: str | None) -> Outcome:
    """Make the images of a way, and time it: some rounds of all, and some images alone; medians count.

    The time is that of the service with whatever else it does just now, without the waiting in its queue.

    Args:
        studio: The studio.
        who: Whose limits count the images, also those that are made again for the time.
        way: The way.
        seeds: Seeds.
        label: A class for all, where the model has it; ``None`` for drawn ones.

    Returns:
        What came of it.

    Raises:
        ServiceError: A limit is reached, or the engine refuses.
    """
    model = studio.service.hosts.host(way.model).engine(who.id).model
    wish = Wish(way.model, label=label if label in (model.labels or ()) else None, steps=way.steps)
    begun = time.monotonic()
    together: list[float] = []
    alone: list[float] = []
    first = None
    while len(together) < BATCHES and (not together or time.monotonic() - begun < ENOUGH):
        made, _ = await made_of(studio, who, wish, seeds)
        first = first or made
        together.append(made.network / len(seeds))
    while len(alone) < SINGLES and (not alone or time.monotonic() - begun < ENOUGH):
        one, _ = await made_of(studio, who, wish, seeds[:1])
        alone.append(one.network)
    assert first is not None
    images = []
    for i, seed in enumerate(seeds):
        record = first.about(i) | {"calls": first.calls}
        if record["label"] is not None and first.names is not None:
            record["class"] = first.names[record["label"]]
        src = f"data:image/png;base64,{as_base64(encode(first.images[i], 'png', record))}"
        images.append(Shown(seed, title_of(record), src, int(first.images.shape[-1])))
    return Outcome(way, first.calls, statistics.median(together), statistics.median(alone), len(together), tuple(images))


async def compare(
    studio: Studio, who: Person, ways: Sequence[Way], seed: int, count: int, label: str | None
) -> AsyncGenerator[Outcome]:
    """Go through ways one after another.

    Args:
        studio: The studio.
        who: Who asks.
        ways: The ways.
        seed: The first seed.
        count: Seeds.
        label: A class for all models that have it.

    Yields:
        What came of each.
    """
    seeds = tuple((seed + i) % SEEDS for i in range(count))
    for way in ways:
        yield await outcome_of(studio, who, way, seeds, label)


def costs_of(outcomes: Sequence[Outcome], price: float | None, busy: float | None, currency: str = "USD") -> list[Cost]:
    """What 1,000 images cost in each way.

    Args:
        outcomes: What was measured.
        price: Of a device hour.
        busy: Share of the paid time in which the device works, percent.
        currency: How money is written.

    Returns:
        A cost for each.

    Raises:
        InputError: A number is missing or out of range.
    """
    if price is None or busy is None:
        raise InputError("the price and the busy share must be numbers: type both")
    if not 0 < busy <= 100:
        raise InputError(f"the busy share is {busy:g} %, must be above 0 and at most 100")
    terms = Terms(price_per_hour=price, utilisation=busy / 100, currency=currency)
    return [
        cost_of(PaidWay(each.way.name, each.calls, each.seconds, each.latency, source="measured"), terms) for each in outcomes
    ]


def save(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Remember a comparison for its person.

    Args:
        folder: Of the person.
        outcomes: What was measured.

    Raises:
        StorageError: It cannot be written.
    """
    path = folder / "compare.json"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, [asdict(each) for each in outcomes])


def load(folder: Path) -> list[Outcome]:
    """The last comparison of a person.

    Args:
        folder: Of the person.

    Returns:
        What was measured; nothing where there is none that can be read.
    """
    try:
        found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        return [
            Outcome(**(each | {"way": Way(**each["way"]), "images": tuple(Shown(**image) for image in each["images"])}))
            for each in found
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def without_images(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The numbers alone, for a file."""
    return [asdict(replace(each, images=())) | {"seeds": [image.seed for image in each.images]} for each in outcomes]
