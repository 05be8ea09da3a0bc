"""What a check of data found, in words and as JSON, and what could be left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from atonce.core.errors import InputError
from atonce.data.near import SIDE, first_of_each

Reason = Literal["corrupt", "exact", "near", "conflicts", "leak"]
REASONS: tuple[Reason, ...] = get_args(Reason)

_UNEVEN = 10.0  # times as many pictures in the largest class as in the smallest
_SHOWN = 5


@dataclass(frozen=True)
class Alike:
    """Pictures of one set that repeat each other.

    Attributes:
        exact: Groups of equal pixels.
        near: Pairs that look alike, and how far apart they are.
        more: Whether there are more pairs than were listed.
        conflicts: Groups of equal pixels whose labels differ.
    """

    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, str, float], ...]
    more: bool
    conflicts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Leak:
    """Pictures that are among the test data too.

    Attributes:
        source: Where the test data come from; ``None`` where they were not looked for.
        why: Why not.
        count: Pictures of the test data.
        exact: A picture, and the one of the test data that has equal pixels.
        near: A picture, one of the test data that looks like it, and how far apart they are.
        more: Whether there are more such pairs than were listed.
        bad: Pictures of the test data that cannot be read.
    """

    source: str | None
    why: str = ""
    count: int = 0
    exact: tuple[tuple[str, str], ...] = ()
    near: tuple[tuple[str, str, float], ...] = ()
    more: bool = False
    bad: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Each picture that is among the test data, once."""
        return tuple(dict.fromkeys([pair[0] for pair in self.exact] + [pair[0] for pair in self.near]))


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        key: A word for programs; for what can be left out, the reason.
        level: ``"fix"`` for what harms a training or its numbers, ``"look"`` for what a person should judge, ``"fine"``.
        count: How many pictures it concerns.
        text: The finding.
        remedy: What to do; empty where nothing needs to be done.
    """

    key: str
    level: Literal["fix", "look", "fine"]
    count: int
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Checked:
    """What :func:`~atonce.data.check.check_data` found.

    Attributes:
        name: Name of the data.
        source: Where they come from.
        split: The split that was checked.
        count: Pictures found, readable or not.
        bad: Those that cannot be read, and why.
        others: Files that are no pictures by their names, and are left alone.
        exact: Groups of equal pixels.
        near: Pairs that look alike but are not equal; of each group of equal ones the first stands for all.
        near_more: Whether there are more pairs than were listed.
        near_limit: The largest distance of the rule.
        conflicts: Groups of equal pixels with different labels.
        leak: What is among the test data too.
        classes: Names of the classes; empty without labels.
        class_counts: Readable pictures of each.
        sizes: Width and height as stored (upright), and how many pictures have it; the most common first.
        kinds: Format and mode, and how many pictures have it.
        shape: (C, H, W) that mean and sigma_data were measured at.
        mean: In [-1, 1] units.
        sigma_data: Standard deviation over all values, in [-1, 1] units.
    """

    name: str
    source: str
    split: str
    count: int
    bad: tuple[tuple[str, str], ...]
    others: int
    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, str, float], ...]
    near_more: bool
    near_limit: float
    conflicts: tuple[tuple[str, ...], ...]
    leak: Leak
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    kinds: tuple[tuple[str, int], ...]
    shape: tuple[int, int, int]
    mean: float
    sigma_data: float

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Checked:
        """A report from its plain values; the inverse of :meth:`as_dict`.

        Args:
            value: The values, as JSON gives them back.

        Returns:
            The report.

        Raises:
            InputError: They are not those of a report.
        """
        try:
            given = {name: _tuples(value[name]) for name in cls.__dataclass_fields__ if name != "leak"}
            return cls(**given, leak=Leak(**{name: _tuples(each) for name, each in value["leak"].items()}))
        except (KeyError, TypeError, AttributeError) as problem:
            raise InputError(f"this is no report of a check of data: {problem!r}") from problem

    @property
    def readable(self) -> int:
        """Pictures that can be read."""
        return self.count - len(self.bad)

    @property
    def repeats(self) -> int:
        """Pictures that repeat an earlier one exactly."""
        return sum(len(group) - 1 for group in self.exact)

    def rule(self) -> str:
        """What near-duplicates are, in a sentence."""
        return (
            f"two pictures are near-duplicates where their grey {SIDE} x {SIDE} block means, brought to mean 0 and standard "
            f"deviation 1, differ by at most {self.near_limit:g} (root mean square)"
        )

    def leave_out(self, reasons: Iterable[str]) -> dict[str, str]:
        """What is to be left out for some reasons.

        Args:
            reasons: ``"corrupt"``: what cannot be read. ``"exact"``: what repeats an earlier picture. ``"near"``: going in
                order, what is near to a picture that stays. ``"conflicts"``: every picture of a group of equal ones whose
                labels differ. ``"leak"``: what is equal or near to a picture of the test data.

        Returns:
            The first reason for each name.

        Raises:
            InputError: A reason is unknown.
        """
        wanted = list(reasons)
        if unknown := [reason for reason in wanted if reason not in REASONS]:
            raise InputError(f"{unknown[0]!r} is no reason to leave pictures out: known are {', '.join(REASONS)}")
        found: dict[str, str] = {}
        for reason in (each for each in REASONS if each in wanted):
            for name in self._names(reason):
                found.setdefault(name, reason)
        return found

    def _names(self, reason: str) -> list[str]:
        match reason:
            case "corrupt":
                return [name for name, _ in self.bad]
            case "exact":
                return [name for group in self.exact for name in group[1:]]
            case "conflicts":
                return [name for group in self.conflicts for name in group]
            case "leak":
                return list(self.leak.names)
        names = sorted({name for pair in self.near for name in pair[:2]}, key=_place)
        order = {name: row for row, name in enumerate(names)}
        rows = torch.tensor([sorted((order[a], order[b])) for a, b, _ in self.near], dtype=torch.int64).reshape(-1, 2)
        return [names[row] for row in first_of_each(rows, len(names))]

    def findings(self) -> list[Finding]:
        """All findings, in the order of a report."""
        n = self.readable
        found = [
            self._corrupt(),
            self._exact(),
            self._near(),
            self._conflicts(),
            self._leak(),
            self._balance(),
            self._sizes(),
            self._kinds(),
        ]
        channels, height, width = self.shape
        measured = f"measured as {width} x {height}, {'grey' if channels == 1 else 'RGB'}"
        text = f"sigma_data {self.sigma_data:.4f}, mean {self.mean:+.4f}, {measured}"
        found.append(Finding("sigma_data", "fine", n, text, "recipes take it by sigma_data=measured"))
        if self.others:
            text = f"{self.others:,} files are no pictures by their names and are left alone"
            found.append(Finding("others", "fine", self.others, text))
        return found

    def _corrupt(self) -> Finding:
        bad = len(self.bad)
        text = f"{bad:,} of {self.count:,} pictures cannot be read"
        return _finding("corrupt", "fix", bad, text, "every picture can be read", "leave them out")

    def _exact(self) -> Finding:
        text = f"{_pictures(self.repeats, 'repeat')} an earlier one exactly, in {_many(len(self.exact), 'group')}"
        return _finding("exact", "fix", self.repeats, text, "no picture is there twice", "leave the repeats out")

    def _conflicts(self) -> Finding:
        count = sum(map(len, self.conflicts))
        text = f"{count:,} equal pictures have different labels, in {_many(len(self.conflicts), 'group')}"
        return _finding(
            "conflicts", "fix", count, text, "equal pictures have equal labels", "leave them out, or correct the labels"
        )

    def _sizes(self) -> Finding:
        size, most = self.sizes[0]
        text = f"{len(self.sizes):,} sizes, most often {size} ({most:,} pictures)"
        remedy = f"give one size when packing or training, for example {self.shape[1]}"
        return _finding("sizes", "look", self.readable - most, text, f"all are {size}", remedy)

    def _near(self) -> Finding:
        if self.near_limit == 0:
            return Finding("near", "fine", 0, "near-duplicates were not looked for")
        more, one = "more than " if self.near_more else "", len(self.near) == 1
        pairs = f"{more}{_many(len(self.near), 'pair')} look{'s' if one else ''} alike (limit {self.near_limit:g})"
        text = f"{pairs}; without {_many(len(self._names('near')), 'picture')} none would be left"
        return _finding(
            "near",
            "look",
            len(self.near),
            text,
            "no two pictures look alike",
            "look at the pairs, then leave the later ones out",
        )

    def _leak(self) -> Finding:
        leak = self.leak
        if leak.source is None:
            return Finding("leak", "fine", 0, f"leaks into test data: {leak.why}")
        names = len(leak.names)
        same = len({name for name, _ in leak.exact})
        are = _pictures(names, "is" if names == 1 else "are")
        text = f"{are} among the {leak.count:,} test pictures too ({same:,} exactly, {names - same:,} near)"
        return _finding(
            "leak",
            "fix" if same else "look",
            names,
            text,
            f"none is among the {leak.count:,} test pictures",
            "leave them out of training",
        )

    def _balance(self) -> Finding:
        if not self.classes:
            return Finding("balance", "fine", 0, "there are no labels")
        low, high = min(self.class_counts), max(self.class_counts)
        few = self.classes[self.class_counts.index(low)]
        many = self.classes[self.class_counts.index(high)]
        between = f"from {low:,} ({few}) to {high:,} ({many})" if low < high else f"{low:,} pictures each"
        if low == 0 or high / low >= _UNEVEN:
            return Finding(
                "balance",
                "look",
                low,
                f"{len(self.classes)} classes are uneven: {between}",
                "expect little of the rare classes, or add pictures",
            )
        return Finding("balance", "fine", low, f"{len(self.classes)} classes, {between}")

    def _kinds(self) -> Finding:
        grey = sum(count for kind, count in self.kinds if "grey" in kind or "black" in kind)
        listed = ", ".join(f"{kind} ({count:,})" for kind, count in self.kinds[:4]) + " ..." * (len(self.kinds) > 4)
        if 0 < grey < self.readable:
            return Finding(
                "kinds",
                "look",
                min(grey, self.readable - grey),
                f"grey and colour together: {listed}",
                "all become RGB, unless channels=1 is given",
            )
        return Finding("kinds", "fine", self.readable, listed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"rule": self.rule(), "findings": [asdict(finding) for finding in self.findings()]}

    def describe(self) -> list[str]:
        """The report as lines of text."""
        lines = [f"{self.name}: {self.source}"]
        signs = {"fix": "fix ", "look": "look", "fine": " ok "}
        for finding in self.findings():
            lines.append(f"[{signs[finding.level]}] {finding.text}" + (f" -> {finding.remedy}" if finding.remedy else ""))
            lines += [f"         {line}" for line in self._examples(finding.key)]
        return [*lines, f"rule: {self.rule()}"] if self.near_limit else lines

    def _examples(self, key: str) -> list[str]:
        match key:
            case "corrupt":
                found = [f"{name}: {problem}" for name, problem in self.bad]
            case "exact" | "conflicts":
                found = [" = ".join(group[:4]) + " ..." * (len(group) > 4) for group in getattr(self, key)]
            case "near":
                found = [f"{a} ~ {b} ({distance:.3f})" for a, b, distance in self.near]
            case "leak":
                found = [f"{a} = {b} of the test data" for a, b in self.leak.exact]
                found += [f"{a} ~ {b} of the test data ({distance:.3f})" for a, b, distance in self.leak.near]
            case "balance":
                found = [f"{name}: {count:,}" for name, count in zip(self.classes, self.class_counts, strict=True)]
            case _:
                return []
        return found[:_SHOWN] + ([f"... and {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else [])


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _pictures(count: int, verb: str) -> str:
    return f"{_many(count, 'picture')} {verb}{'s' if count == 1 and verb == 'repeat' else ''}"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _finding(key: str, level: Literal["fix", "look"], count: int, text: str, fine: str, remedy: str) -> Finding:
    return Finding(key, level, count, text, remedy) if count else Finding(key, "fine", 0, fine)


def _place(name: str) -> tuple[int, str]:
    """The order of names in their source: numbered ones by number, others by name."""
    return (int(name[1:]), "") if name[:1] == "#" and name[1:].isdigit() else (0, name)
