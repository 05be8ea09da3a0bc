"""Ways from data to a one-step model, as runs one after the other, and which of them is advised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atonce.planning.candidates import DISTILLING
from atonce.planning.estimate import Estimate
from atonce.planning.evidence import Known, Line, best_line, speaking_for
from atonce.planning.predict import Prediction

_FAIR = 0.25  # part of a known budget that is near enough
FROM_DATA = (("ict",), ("ct",), ("ect",), ("diffusion", "cd"))
WITH_TEACHER = (("cd",), ("progressive",), ("ect",), ("ict",))


@dataclass(frozen=True)
class Route:
    """Runs one after the other that end in a one-step model.

    Attributes:
        runs: What each takes.
        time: Seconds of all.
        money: Of all; ``None`` without a price.
        energy: kWh of all; ``None`` without watts.
        late: Seconds by which it passes the limit; 0 where it does not, or there is none.
        lacking: Bytes of memory by which it does not fit; 0 where it does.
        known: The least known budgets for images of this size, one for each run that has one.
        supported: Whether each run has a known one that needed no more images than it gets.
        line: The line of our table that speaks for it.
    """

    runs: tuple[Prediction, ...]
    time: Estimate
    money: Estimate | None
    energy: Estimate | None
    late: float
    lacking: float
    known: tuple[Known, ...]
    supported: bool
    line: Line | None

    @property
    def name(self) -> str:
        """Its methods."""
        return " + ".join(run.method for run in self.runs)

    @property
    def title(self) -> str:
        """Its methods and networks, where these are the plan's choice."""
        networks = " and ".join(dict.fromkeys(run.network for run in self.runs if run.network != "auto"))
        return f"{self.name} ({networks})" if networks else self.name

    @property
    def fits(self) -> bool:
        """Whether it keeps within time and memory."""
        return self.late == 0 and self.lacking == 0

    @property
    def images(self) -> int:
        """Images seen in all runs."""
        return sum(run.images for run in self.runs)

    @property
    def share(self) -> float:
        """The part of the least known budget that the scarcest run gets; 0 where nothing is known."""
        return min((run.images / known.images for run, known in zip(self.runs, self.known)), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; runs by name, as a plan holds them besides."""
        return {
            "name": self.name,
            "title": self.title,
            "runs": [
                {"method": run.method, "network": run.network, "batch": run.batch, "images": run.images} for run in self.runs
            ],
            "time": self.time.to_json(),
            "money": None if self.money is None else self.money.to_json(),
            "energy": None if self.energy is None else self.energy.to_json(),
            "fits": self.fits,
            "late": self.late,
            "lacking": self.lacking,
            "supported": self.supported,
            "known": [known.to_json() for known in self.known],
            "line": None if self.line is None else dataclasses.asdict(self.line),
        }


def route_of(runs: Sequence[Prediction], size: int, limit: float | None, room: int | None) -> Route:
    """A route and what speaks for it.

    Args:
        runs: Its runs in order.
        size: Height and width of the images.
        limit: Seconds that there are.
        room: Free bytes of memory.

    Returns:
        The route.
    """
    time, money, energy = runs[0].time, runs[0].money, runs[0].energy
    for run in runs[1:]:
        time = time.plus(run.time)
        money = None if money is None or run.money is None else money.plus(run.money)
        energy = None if energy is None or run.energy is None else energy.plus(run.energy)
    known = []
    for run in runs:
        start = "teacher" if run.taught or run.method in DISTILLING else "data"
        known.append(next(iter(speaking_for(run.method, start, size)), None))  # type: ignore[arg-type]
    found = tuple(each for each in known if each is not None)
    enough = all(each is not None and run.images >= each.images for run, each in zip(runs, known, strict=True))
    need = max(run.pressing.value for run in runs)
    last = runs[-1]
    line = best_line((last.method,), size)
    return Route(
        runs=tuple(runs),
        time=time,
        money=money,
        energy=energy,
        late=0.0 if limit is None else max(0.0, time.value - limit),
        lacking=0.0 if room is None else max(0.0, need - room),
        known=found if len(found) == len(runs) else (),
        supported=enough,
        line=line if line is not None and line.teacher == (last.taught or last.method in DISTILLING) else None,
    )


def order(routes: Sequence[Route]) -> list[Route]:
    """The routes, the advised one first.

    What fits comes before what does not; then what gets a fair part of a known run's images; then what is not surely worse
    in our table (Fréchet distances whose intervals do not meet) than a way with as fair a part; then what gets all images of
    a known run; then the shorter way.

    Args:
        routes: One or more.

    Returns:
        All of them.
    """
    return sorted(sorted(routes, key=_least_time), key=lambda route: _rank(route, routes))


def _least_time(route: Route) -> tuple[int, float]:
    return len(route.runs), route.time.value


def _rank(route: Route, all_routes: Sequence[Route]) -> tuple[bool, bool, int, bool, float]:
    fair = route.share >= _FAIR
    peers = [each for each in all_routes if each.fits == route.fits and each.share >= _FAIR * min(1.0, route.share)]
    beaten = sum(_surely_better(peer, route) for peer in peers)
    silent = route.line is None and any(peer.line is not None for peer in peers)  # others have been measured by us, this not
    return not route.fits, not fair, beaten + silent, not route.supported, 0.0 if fair else -route.share


def _surely_better(one: Route, other: Route) -> bool:
    """Whether the table has less distance for one, with intervals that do not meet, on the same data."""
    a, b = one.line, other.line
    if a is None or b is None or a.one is None or b.one is None or a.data != b.data:
        return False
    return a.one[0] + a.one[1] < b.one[0] - b.one[1]
