"""Pictures that look alike: a small grey signature of each, and all pairs that lie closer than a limit.

The rule: a picture becomes grey, 16 x 16 block means, brought to mean 0 and standard deviation 1; two pictures are
near-duplicates where the root mean squared difference of these is at most the limit. 0.1, the default, is a correlation of
0.995. On 200 pictures each of digits, Fashion-MNIST, CIFAR-10 and 64-pixel emoji, brightness, contrast, light noise and JPEG of
quality 75 stay below it in 9 of 10 cases (99 of 100 at 64 pixels, where also a smaller copy does); a shift by a pixel, a turn
and a mirror image do not. In coarse data different pictures can be as near: look at the pairs before leaving any out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from atonce.core.errors import InputError

SIDE = 16
LIMIT = 0.1
FLAT = 2.0  # grey levels; what varies less has no signature
MOST_PAIRS = 100_000

_LEADING = 32  # directions in which pairs are sorted out before they are compared in full
_SAMPLE = 4096
_ROWS, _COLUMNS = 1024, 8192


def signature(picture: Image.Image) -> NDArray[np.float32]:
    """What is compared of a picture.

    Args:
        picture: Of mode ``L`` or ``RGB``.

    Returns:
        float32 [256] of length 1 and mean 0 (the rule's values over 16); all zeros for a picture that is flat.
    """
    small = np.asarray(picture.convert("L").convert("F").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    if length < FLAT * SIDE:
        return np.zeros(SIDE * SIDE, np.float32)
    flat: NDArray[np.float32] = (small / length).astype(np.float32).ravel()
    return flat


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of rows that are near.

    Attributes:
        rows: int64 [m, 2].
        distances: float64 [m], in the units of the rule.
        more: Whether there are more than were listed.
    """

    rows: Tensor
    distances: Tensor
    more: bool


def near_pairs(
    first: Tensor, limit: float = LIMIT, second: Tensor | None = None, tell: Callable[[int, int], None] | None = None
) -> Pairs:
    """All pairs of signatures at most ``limit`` apart: within one set, or between two.

    Nothing is missed: the projection onto the leading directions can only be shorter than the difference itself, so what is
    further apart there is left out rightly.

    Args:
        first: Signatures float32 [N, 256]; rows of zeros are near to nothing.
        limit: Largest distance, from 0 to 1.
        second: Signatures of another set.
        tell: Told rows done and rows in all; what it raises ends the search.

    Returns:
        Pairs (i, j) with i < j within one set; (row of first, row of second) between two. Nearest first.

    Raises:
        InputError: The limit is out of range.
    """
    if not isinstance(limit, (int, float)) or not 0 <= limit <= 1:
        raise InputError(f"the limit of near-duplicates is {limit!r}, must be from 0 (the same) to 1 (0.1 is usual)")
    a = _Side(first)
    b = a if second is None else _Side(second)
    axes = _axes(a.rows if second is None else torch.cat([a.rows[:_SAMPLE], b.rows[:_SAMPLE]]))
    a.turn(axes)
    if b is not a:
        b.turn(axes)
    slack = limit + 1e-4  # float32 products of rows of length 1
    found: list[Tensor] = []
    distances: list[Tensor] = []
    count, more = 0, False
    for start in range(0, len(a.rows), _ROWS):
        rows = a.turned[start : start + _ROWS]
        low = start if b is a else int(torch.searchsorted(b.key, rows[0, 0] - slack))
        high = int(torch.searchsorted(b.key, rows[-1, 0] + slack, right=True))
        for begin in range(low, high, _COLUMNS):
            columns = b.turned[begin : min(begin + _COLUMNS, high)]
            near = _squares(rows[:, :_LEADING], columns[:, :_LEADING]) <= slack**2 + 1e-5  # rounding of sums of squares below 1
            i, j = near.nonzero(as_tuple=True)
            if b is a:
                i, j = i[later := (j + begin > i + start)], j[later]
            for part in torch.arange(len(i)).split(1 << 16):
                apart = (rows[i[part]].double() - columns[j[part]].double()).norm(dim=1)
                close = apart <= limit + 1e-6
                found.append(torch.stack([a.order[i[part][close] + start], b.order[j[part][close] + begin]], 1))
                distances.append(apart[close])
                count += int(close.sum())
        if tell is not None:
            tell(min(start + _ROWS, len(a.rows)), len(a.rows))
        if count > MOST_PAIRS:
            more = start + _ROWS < len(a.rows) or count > MOST_PAIRS
            break
    pairs = torch.cat(found) if found else torch.zeros((0, 2), dtype=torch.int64)
    apart = torch.cat(distances) if distances else torch.zeros(0, dtype=torch.float64)
    if b is a:
        pairs = pairs.sort(dim=1).values
    order = np.lexsort((pairs[:, 1].numpy(), pairs[:, 0].numpy(), apart.numpy()))[:MOST_PAIRS]
    chosen = torch.from_numpy(np.ascontiguousarray(order))
    return Pairs(pairs[chosen], apart[chosen], more)


def _squares(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances [n, m] of rows [n, d] and columns [m, d], to about 1e-6 where they are at most 1 long."""
    return rows.square().sum(1)[:, None] + columns.square().sum(1)[None] - 2.0 * (rows @ columns.T)


class _Side:
    """The rows of a set that are not flat, sorted by their first coordinate once they are turned."""

    def __init__(self, rows: Tensor) -> None:
        self.order = rows.any(dim=1).nonzero()[:, 0]
        self.rows = rows[self.order]
        self.turned = self.rows
        self.key = self.rows[:, 0] if len(self.rows) else torch.zeros(0)

    def turn(self, axes: Tensor) -> None:
        turned = self.rows @ axes
        sorted_ = turned[:, 0].argsort(stable=True)
        self.order, self.turned = self.order[sorted_], turned[sorted_]
        self.key = self.turned[:, 0].contiguous()


def _axes(rows: Tensor) -> Tensor:
    """An orthonormal basis whose first directions tell the rows apart best."""
    sample = rows[:: max(1, len(rows) // _SAMPLE)].double()
    if len(sample) == 0:
        return torch.eye(rows.shape[1])
    sample = sample - sample.mean(0)
    _, vectors = torch.linalg.eigh(sample.T @ sample)
    return vectors.flip(1).float()


def first_of_each(pairs: Tensor, n: int) -> list[int]:
    """What to leave out so that no pair is left: going in order, each row that is near to a row that stays.

    Args:
        pairs: int64 [m, 2] of rows i < j.
        n: Number of rows.

    Returns:
        Rows to leave out, ascending.
    """
    earlier: dict[int, list[int]] = {}
    for i, j in pairs.tolist():
        earlier.setdefault(j, []).append(i)
    gone: set[int] = set()
    for row in sorted(earlier):
        if row < n and any(other not in gone for other in earlier[row]):
            gone.add(row)
    return sorted(gone)
