"""What is wrong with a data set, found in one pass: damage, duplicates, leaks into test data, balance, sizes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from atonce.core.errors import DataError
from atonce.data.checked import Alike, Checked, Leak
from atonce.data.collection import Collection, Loaded, open_collection
from atonce.data.near import LIMIT, near_pairs, signature
from atonce.data.pictures import Shaping, shape_picture

if TYPE_CHECKING:
    import os

    from atonce.data.dataset import ImageData

    Spec = ImageData | str | os.PathLike[str]

Tell = Callable[[str, int, int], None]


def check_data(
    spec: Spec,
    *,
    split: str = "train",
    against: Spec | None = None,
    against_split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    near: float = LIMIT,
    pixels: int | None = None,
    look_for_leaks: bool = True,
    tell: Tell | None = None,
) -> Checked:
    """Look at every picture of a data set; nothing is changed, and no more than a few pictures are held at a time.

    Args:
        spec: What :func:`~atonce.data.sources.open_data` takes.
        split: ``"train"``, ``"test"`` or ``"all"``.
        against: Other data that must not be among these, the test data above all; default: the test split of ``spec``, where it
            has one and ``split`` is ``"train"``.
        against_split: The split of ``against``; default ``"test"`` of the same source, ``"all"`` of another.
        size: Measure the pictures as squares of this side. Default: as they are; where they differ in size, or are not square,
            the most common shorter side.
        channels: Measure them as grey (1) or RGB (3). Default: as they are.
        near: The limit of near-duplicates (:mod:`atonce.data.near`); 0 looks for none.
        pixels: Picture files of more pixels count as such that cannot be read. Default: Pillow's limit.
        look_for_leaks: Whether to compare with test data.
        tell: Told what is being done, pictures done and pictures in all; what it raises ends the check.

    Returns:
        What was found.

    Raises:
        DataError: The source cannot be opened, or no picture in it can be read.
    """
    Shaping(size, channels)
    with open_collection(spec, split, pixels) as collection:
        scan = _scan(collection, tell, "reading")
        if not scan.kept:
            name, problem = scan.bad[0]
            raise DataError(
                f"none of the {len(collection.names)} pictures of {collection.source} can be read: {name}: {problem}"
            )
        measured = _measure(collection, scan, size, channels, tell)
        alike = _alike(scan, near, tell)
        leak = Leak(None, "not looked for")
        if look_for_leaks:
            leak = _leak(spec, scan, split, against, against_split, near, pixels, tell)
        names = collection.class_names()
        counts = (
            torch.bincount(collection.labels[scan.kept], minlength=len(names)).tolist() if collection.labels is not None else []
        )
        return Checked(
            name=collection.name,
            source=collection.source,
            split=split,
            count=len(collection.names),
            bad=tuple(scan.bad),
            others=len(collection.others),
            exact=alike.exact,
            near=alike.near,
            near_more=alike.more,
            near_limit=near,
            conflicts=alike.conflicts,
            leak=leak,
            classes=names,
            class_counts=tuple(counts),
            sizes=_ordered(scan.sizes),
            kinds=_ordered(scan.kinds),
            shape=measured.shape,
            mean=measured.mean,
            sigma_data=measured.std,
        )


@dataclass(eq=False)
class _Scan:
    """What one pass found of each picture that can be read."""

    collection: Collection
    kept: list[int]
    bad: list[tuple[str, str]]
    digests: list[bytes]
    signatures: Tensor
    sizes: Counter[str]
    kinds: Counter[str]
    sides: Counter[tuple[int, int]]
    sums: Sums

    @property
    def names(self) -> list[str]:
        return [self.collection.names[place] for place in self.kept]


class Sums:
    """Exact sums of pixel values, whatever the size of the pictures: what mean and sigma_data are made of."""

    def __init__(self) -> None:
        self.count = self.first = self.second = 0
        self.channels = 1

    def add(self, picture: Loaded) -> None:
        """Take one picture in."""
        values = np.asarray(picture.picture)
        if values.ndim == 3 and self.channels == 1:
            self.channels = 3  # every grey picture becomes three equal channels
            self.count, self.first, self.second = 3 * self.count, 3 * self.first, 3 * self.second
        times = 3 if values.ndim == 2 and self.channels == 3 else 1
        wide = values.astype(np.int64)
        self.count += times * values.size
        self.first += times * int(wide.sum())
        self.second += times * int((wide * wide).sum())

    @property
    def mean(self) -> float:
        """In [-1, 1] units."""
        return self.first / self.count / 127.5 - 1.0

    @property
    def std(self) -> float:
        """In [-1, 1] units."""
        return math.sqrt((self.count * self.second - self.first**2) / self.count**2) / 127.5


def _scan(collection: Collection, tell: Tell | None, stage: str) -> _Scan:
    n = len(collection.names)
    signatures = np.zeros((n, 256), np.float32)
    scan = _Scan(collection, [], [], [], torch.zeros(0), Counter(), Counter(), Counter(), Sums())
    for place, found in collection.stream():
        if isinstance(found, DataError):
            scan.bad.append((collection.names[place], _reason(found, collection.names[place])))
        else:
            picture = found.picture
            signatures[len(scan.kept)] = signature(picture)
            scan.kept.append(place)
            scan.digests.append(_digest(found))
            scan.sizes[f"{picture.width} x {picture.height}"] += 1
            scan.sides[picture.size] += 1
            scan.kinds[found.kind] += 1
            scan.sums.add(found)
        if tell is not None and (place % 64 == 63 or place == n - 1):
            tell(stage, place + 1, n)
    scan.signatures = torch.from_numpy(signatures[: len(scan.kept)])
    return scan


def _digest(found: Loaded) -> bytes:
    """Equal for pictures of equal pixels, also where one is RGB with three equal channels and the other grey."""
    array = np.asarray(found.picture)
    if array.ndim == 3 and bool((array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all()):
        array = np.ascontiguousarray(array[..., 0])
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=16).digest()


def _reason(problem: DataError, name: str) -> str:
    return str(problem).removeprefix(name).removeprefix(" ").removeprefix("is ")


@dataclass(frozen=True)
class _Measured:
    shape: tuple[int, int, int]
    mean: float
    std: float


def _measure(collection: Collection, scan: _Scan, size: int | None, channels: int | None, tell: Tell | None) -> _Measured:
    """Mean and sigma_data of what a training would see; a second pass only where pictures must be resized or converted."""
    found = scan.sums.channels
    (width, height), _ = scan.sides.most_common(1)[0]
    if size is None and len(scan.sides) > 1:
        shorter: Counter[int] = Counter()
        for (w, h), count in scan.sides.items():
            shorter[min(w, h)] += count
        most = max(shorter.values())
        size = min(min(side for side, count in shorter.items() if count == most), 4096)
    same = size is None or set(scan.sides) == {(size, size)}
    if same and channels in (None, found):
        return _Measured((found, height, width), scan.sums.mean, scan.sums.std)
    sums = Sums()
    shaping = Shaping(size, channels)
    for number, (place, picture) in enumerate(collection.stream(scan.kept)):
        if isinstance(picture, Loaded):
            sums.add(Loaded(shape_picture(picture.picture, shaping, collection.names[place]), picture.kind))
        if tell is not None and (number % 64 == 63 or number == len(scan.kept) - 1):
            tell("measuring", number + 1, len(scan.kept))
    return _Measured((channels or sums.channels, size or height, size or width), sums.mean, sums.std)


def _alike(scan: _Scan, limit: float, tell: Tell | None) -> Alike:
    names = scan.names
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(scan.digests):
        groups[digest].append(row)
    repeated = [rows for rows in groups.values() if len(rows) > 1]
    labels = scan.collection.labels
    conflicts = []
    if labels is not None:
        of_row = labels[scan.kept].tolist()
        conflicts = [rows for rows in repeated if len({of_row[row] for row in rows}) > 1]
    unique = torch.tensor([rows[0] for rows in groups.values()])
    near: list[tuple[str, str, float]] = []
    more = False
    if limit > 0:
        pairs = near_pairs(scan.signatures[unique], limit, tell=_stage(tell, "comparing", len(unique)))
        more = pairs.more
        near = [
            (names[unique[i]], names[unique[j]], d)
            for (i, j), d in zip(pairs.rows.tolist(), pairs.distances.tolist(), strict=True)
        ]
    return Alike(_named(repeated, names), tuple(near), more, _named(conflicts, names))


def _leak(
    spec: Spec,
    scan: _Scan,
    split: str,
    against: Spec | None,
    against_split: str | None,
    limit: float,
    pixels: int | None,
    tell: Tell | None,
) -> Leak:
    own = against is None
    if own and split != "train":
        return Leak(
            None, f"not looked for, since these are the pictures of the split {split!r}: name other data to compare with"
        )
    other, part = (spec, "test") if against is None else (against, "all")
    try:
        with open_collection(other, against_split or part, pixels) as collection:
            theirs = _scan(collection, tell, "reading test data")
            source = collection.source
    except DataError as problem:
        if not own:
            raise
        none = any(text in str(problem) for text in ("test split", "the split 'test'"))
        why = "not looked for, since this is one set: name test data to compare with" if none else f"not looked for: {problem}"
        return Leak(None, why)
    if not theirs.kept:
        raise DataError(f"none of the pictures of {source} can be read, so nothing can be compared with them")
    mine, names, other_names = scan.digests, scan.names, theirs.names
    first: dict[bytes, int] = {}
    for row, digest in enumerate(theirs.digests):
        first.setdefault(digest, row)
    exact = [(names[row], other_names[first[digest]]) for row, digest in enumerate(mine) if digest in first]
    near: list[tuple[str, str, float]] = []
    more = False
    if limit > 0:
        pairs = near_pairs(scan.signatures, limit, theirs.signatures, tell=_stage(tell, "comparing with test data", len(mine)))
        more = pairs.more
        near = [
            (names[i], other_names[j], d)
            for (i, j), d in zip(pairs.rows.tolist(), pairs.distances.tolist(), strict=True)
            if mine[i] != theirs.digests[j]
        ]
    return Leak(source, "", len(theirs.kept), tuple(exact), tuple(near), more, len(theirs.bad))


def _stage(tell: Tell | None, stage: str, total: int) -> Callable[[int, int], None] | None:
    if tell is None:
        return None
    return lambda done, rows: tell(stage, done, max(rows, 1))


def _named(groups: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names[row] for row in rows) for rows in groups)


def _ordered(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
