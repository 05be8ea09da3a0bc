"""Records side by side: which differences are larger than their intervals, and why some records must not be compared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from atonce.core.errors import InputError
from atonce.core.records import Metric, Record, conditions, measured_differently, metric_differs

COUNTS = 1.05
"""The ratio up to which the numbers of items behind a metric (the samples of one class) may differ."""
_QUIET = {"commit", "device", "recipe", "calls"}  # told in JSON, not shown to people where they differ


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two values of one metric.

    Attributes:
        metric: Its name.
        one: Name of one record.
        other: Name of the other.
        value: The other's value minus the one's.
        half: Half width of the difference's 95 % interval, or None where a side has none.
        better: Name of the better record, or None where the metric has no better end or the values are equal.
    """

    metric: str
    one: str
    other: str
    value: float
    half: float | None
    better: str | None

    @property
    def exceeds(self) -> bool | None:
        """Whether 0 lies outside the difference's interval; None where that is not known."""
        return None if self.half is None else abs(self.value) > self.half


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Records that may be compared.

    Attributes:
        names: What the records are called.
        records: The records.
        shared: Metrics that all of them have.
        left_out: Metrics that are not compared, with the reason.
        differing: Conditions that are not the same everywhere: words of each record by condition.
        differences: Of each shared metric and pair.
    """

    names: tuple[str, ...]
    records: tuple[Record, ...]
    shared: tuple[str, ...]
    left_out: dict[str, str]
    differing: dict[str, tuple[str, ...]]
    differences: tuple[Difference, ...]

    def best(self, metric: str) -> str | None:
        """The record with the best value of a metric, or None where no end is the better one."""
        higher = self.records[0].metrics[metric].higher_is_better
        if higher is None:
            return None
        values = [record.metrics[metric].value for record in self.records]
        return self.names[values.index(max(values) if higher else min(values))]

    def table(self) -> str:
        """The comparison for people: a line for each metric and condition that differs, then what stands out of the noise."""
        rows = [["", *self.names]]
        for metric in self.shared:
            cells = []
            for name, record in zip(self.names, self.records, strict=True):
                cells.append(_cell(record.metrics[metric]) + (" *" if self.best(metric) == name else ""))
            rows.append([metric, *cells])
        rows += [[name, *words] for name, words in self.differing.items() if name not in _QUIET]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines += ["", "* best; in parentheses the 95 % interval. A difference counts where 0 lies outside its own interval:"]
        lines += [_sentence(difference) for difference in self.differences]
        lines += [f"{name}: not compared, {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {
            "records": [
                {
                    "name": name,
                    "conditions": conditions(record),
                    "metrics": {metric: record.metrics[metric].as_dict() for metric in self.shared},
                }
                for name, record in zip(self.names, self.records, strict=True)
            ],
            "best": {metric: self.best(metric) for metric in self.shared},
            "differing": {name: list(words) for name, words in self.differing.items()},
            "differences": [{**dataclasses.asdict(each), "exceeds": each.exceeds} for each in self.differences],
            "left_out": self.left_out,
        }


def compare(records: Sequence[Record], names: Sequence[str] | None = None) -> Comparison:
    """Put records side by side.

    The interval of a difference takes the two values as independent: its half width is the root of the sum of squares of the
    half widths that face each other. For samples from shared noise (one seed) that is on the wide side. An interval without
    width (older records have them for shares of 0 and 1) only says that all items were alike: it counts as none.

    A metric that the records have with other settings, or that rests on other data, held-out images or another teacher, is left
    out with the reason; so is one that not all of them have.

    Args:
        records: Two or more.
        names: What they are called; by default their models, numbered where these are the same.

    Returns:
        The comparison.

    Raises:
        InputError: There are fewer than two, or two must not be compared; the message names them and the reason.
    """
    if len(records) < 2:
        raise InputError(f"a comparison needs at least 2 records, got {len(records)}")
    if names is not None and len(names) != len(records):
        raise InputError(f"{len(names)} names are given for {len(records)} records: give one for each")
    called = _distinct(names or [(record.model or "record").split(", sha256")[0] for record in records])
    for (one, a), (other, b) in itertools.combinations(zip(called, records), 2):
        if reason := measured_differently(a, b):
            raise InputError(f"{one} and {other} cannot be compared: {reason}")
    everything = dict.fromkeys(name for record in records for name in record.metrics)
    left_out = {name: reason for name in everything if (reason := _not_comparable(name, records))}
    shared = [name for name in everything if name not in left_out]
    if not shared:
        raise InputError(
            f"{', '.join(called)} have no metric to compare: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}"
        )
    told = [conditions(record) for record in records]
    differing = {name: tuple(words[name] for words in told) for name in told[0] if len({words[name] for words in told}) > 1}
    differences = [
        _difference(metric, one, other, a.metrics[metric], b.metrics[metric])
        for metric in shared
        for (one, a), (other, b) in itertools.combinations(zip(called, records), 2)
    ]
    return Comparison(called, tuple(records), tuple(shared), left_out, differing, tuple(differences))


def _not_comparable(name: str, records: Sequence[Record]) -> str | None:
    """Why one metric of records that may be compared is left out, or None."""
    found = [record.metrics[name] for record in records if name in record.metrics]
    if len(found) < len(records):
        return f"it is in {len(found)} of {len(records)} records"
    counts = [metric.count for metric in found if metric.count is not None]
    if counts and max(counts) > COUNTS * min(counts):
        return f"it rests on {' and '.join(map(str, counts))} items, and fewer items change such a number"
    reasons = (metric_differs(name, a, b) for a, b in itertools.combinations(records, 2))
    return next(filter(None, reasons), None)


def _difference(metric: str, one: str, other: str, a: Metric, b: Metric) -> Difference:
    value = b.value - a.value
    half = None
    if _wide(a) and _wide(b):
        # The sides that face each other: above the lower value, below the higher one.
        low, high = (a, b) if value >= 0 else (b, a)
        assert low.interval is not None
        assert high.interval is not None
        half = math.hypot(low.interval[1] - low.value, high.value - high.interval[0])
    better = None
    if a.higher_is_better is not None and value != 0:
        better = other if (value > 0) == a.higher_is_better else one
    return Difference(metric, one, other, value, half, better)


def _wide(metric: Metric) -> bool:
    return metric.interval is not None and metric.interval[0] < metric.interval[1]


def _sentence(difference: Difference) -> str:
    pair = f"{difference.metric}: {difference.one} and {difference.other}"
    if difference.half is None:
        return f"{pair} differ by {abs(difference.value):.4g}; without intervals nobody can say whether that is chance"
    size = f"{abs(difference.value):.4g} ± {difference.half:.2g}"
    if not difference.exceeds:
        return f"{pair} do not differ beyond chance ({size})"
    return f"{pair} differ by {size}" + (f": {difference.better} is better" if difference.better else "")


def _cell(metric: Metric) -> str:
    interval = "" if metric.interval is None else f" ({metric.interval[0]:.4g} to {metric.interval[1]:.4g})"
    return f"{metric.value:.4g}{interval}"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which none occurs twice: equal ones get a number behind them."""
    counts = {name: list(names).count(name) for name in names}
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if counts[name] == 1 else f"{name}#{seen[name]}")
    return tuple(out)
