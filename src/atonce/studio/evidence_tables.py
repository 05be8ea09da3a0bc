"""Tables of runs from their cells: lines with a mean over seeds, the sweep over N with its power law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atonce.studio.evidence_records import Cell
from atonce.studio.evidence_statistics import Interval, falling, mean_interval, power_law

SWEEP = "n-"  # cells of the sweep over N are called by the number of intervals
WHOLE = ("ict", "curriculum-fixed")  # the line that others are compared with; the line whose N is the largest throughout


@dataclass(frozen=True)
class Group:
    """Cells that may be compared: one table, one data set, one extractor and number of samples.

    Attributes:
        table: The table.
        data: The data set.
        extractor: What turned images into features.
        samples: Images of each measurement.
        cells: The cells.
    """

    table: str
    data: str
    extractor: str
    samples: int
    cells: tuple[Cell, ...]

    @property
    def names(self) -> list[str]:
        """Names of the lines, in the order in which they were found; the one with all ingredients first."""
        found = list(dict.fromkeys(cell.name for cell in self.cells))
        return sorted(found, key=lambda name: name != WHOLE[0])

    def ways(self, name: str) -> list[str]:
        """Ways in which a line was sampled."""
        return list(dict.fromkeys(way for cell in self.cells if cell.name == name for way in cell.measured))

    def seen(self, name: str) -> bool:
        """Whether the extractor took part in training a run of a line: then its numbers rank nothing."""
        return any(cell.seen for cell in self.cells if cell.name == name)

    def what(self, name: str) -> str:
        """What a line is."""
        return next(cell.what for cell in self.cells if cell.name == name)

    def seeds(self, name: str) -> int:
        """Runs of a line."""
        return sum(cell.name == name for cell in self.cells)

    def value(self, name: str, way: str, metric: str = "frechet") -> tuple[float, Interval | None] | None:
        """Mean over seeds and interval of a line; ``None`` where it was not measured."""
        rows = [cell.measured[way] for cell in self.cells if cell.name == name and way in cell.measured]
        values = [float(row[metric]) for row in rows if isinstance(row.get(metric), (int, float))]
        if not values:
            return None
        alone = rows[0].get("interval") if metric == "frechet" else None
        return mean_interval(values, (float(alone[0]), float(alone[1])) if alone else None)

    def calls(self, name: str, way: str) -> int | None:
        """Network calls of a way to sample a line."""
        found = (cell.measured[way].get("calls") for cell in self.cells if cell.name == name and way in cell.measured)
        return next((int(calls) for calls in found if calls is not None), None)


@dataclass(frozen=True)
class Sweep:
    """Quality against N.

    Attributes:
        points: Intervals N - 1, the mean distance and its interval.
        law: a and b of a (N-1)^-b and the rms of what is left of the logarithm; ``None`` with fewer than three points.
        fitted: The points that the law is fitted to: those up to the lowest.
    """

    points: tuple[tuple[int, float, Interval | None], ...]
    law: tuple[float, float, float] | None
    fitted: tuple[tuple[float, float], ...]


def groups(cells: Sequence[Cell], table: str) -> list[Group]:
    """The cells of a table, in groups that may be compared.

    Args:
        cells: All cells.
        table: Name of the table.

    Returns:
        Groups in the order in which their cells were found.
    """
    found: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        if cell.table == table:
            found.setdefault((cell.data, cell.digest, cell.samples), []).append(cell)
    return [Group(table, data, some[0].extractor, samples, tuple(some)) for (data, _, samples), some in found.items()]


def sweep(group: Group, way: str = "1 step") -> Sweep | None:
    """The sweep over N of a group.

    Args:
        group: Cells of one table.
        way: How they were sampled.

    Returns:
        The sweep; ``None`` where there is none.
    """
    points: list[tuple[int, float, Interval | None]] = []
    for name in group.names:
        n = _intervals(group, name)
        value = group.value(name, way) if n is not None and not group.seen(name) else None
        if n is not None and value is not None:
            points.append((n, *value))
    points.sort(key=lambda point: point[0])
    if not points:
        return None
    fitted = falling([(float(n), mean) for n, mean, _ in points])
    law = (
        power_law([n for n, _ in fitted], [y for _, y in fitted])
        if len(fitted) >= 3 and min(y for _, y in fitted) > 0
        else None
    )
    return Sweep(tuple(points), law, tuple(fitted))


def _intervals(group: Group, name: str) -> int | None:
    """N - 1 of a line with one N throughout; ``None`` for other lines."""
    if name != WHOLE[1] and not name.startswith(SWEEP):
        return None
    recipe = next(cell.recipe for cell in group.cells if cell.name == name)
    s1 = recipe.get("s1")
    if recipe.get("curriculum", "fixed") == "fixed" and isinstance(s1, int):
        return s1
    number = name.removeprefix(SWEEP)
    return int(number) if number.isdigit() else None
