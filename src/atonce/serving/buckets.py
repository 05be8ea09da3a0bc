"""Sizes of network calls at which a row's bits depend on nothing but the row: not on size, place or neighbours.

Matrix products and convolutions are summed in another order where the batch has another size, so the same row comes out with
other last bits. Which sizes agree depends on the network, the library and the machine; it is measured, at several noise levels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel

LEVELS = 8  # rows, each at another noise level, that every size is held to at least
SLOWER = 0.8  # a family of sizes may be this much slower than the fastest if it has more sizes


@dataclass(frozen=True)
class Rows:
    """What goes into a network call: images [B, C, H, W] and what belongs to each.

    Attributes:
        x: Noisy images [B, C, H, W].
        sigma: Noise levels float32 [B].
        label: Classes int64 [B], for networks with classes.
        scale: Scales of guidance float32 [B], for networks that are told it.
        to: Noise levels of the results float32 [B], for flow maps; ``None`` for the end.
    """

    x: Tensor
    sigma: Tensor
    label: Tensor | None = None
    scale: Tensor | None = None
    to: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def at(self, index: slice | Tensor) -> Rows:
        """Some of them."""
        parts = (None if value is None else value[index] for value in (self.label, self.scale, self.to))
        return Rows(self.x[index], self.sigma[index], *parts)

    def padded(self, size: int) -> Rows:
        """With rows of zeros up to ``size``."""
        more = size - len(self)
        if more <= 0:
            return self
        return Rows(
            torch.cat([self.x, self.x.new_zeros((more, *self.x.shape[1:]))]),
            torch.cat([self.sigma, self.sigma.new_ones(more)]),
            None if self.label is None else torch.cat([self.label, self.label.new_zeros(more)]),
            None if self.scale is None else torch.cat([self.scale, self.scale.new_ones(more)]),
            None if self.to is None else torch.cat([self.to, self.to.new_zeros(more)]),
        )


Call = Callable[[Rows], Tensor]


@dataclass(frozen=True)
class Buckets:
    """Sizes of calls that agree to the bit, and what each takes.

    Attributes:
        sizes: Ascending.
        seconds: Time of a call of each size.
        families: All sizes that were measured, those that agree together; sizes whose rows depend on their places are left out.
        output: What the rows of :func:`probe` gave, for comparison with another way to compute them.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    families: tuple[tuple[int, ...], ...]
    output: Tensor

    @property
    def largest(self) -> int:
        """Rows of a full call."""
        return self.sizes[-1]

    @property
    def rate(self) -> float:
        """Rows a second of full calls."""
        return self.largest / max(self.seconds[-1], 1e-9)

    @property
    def exact(self) -> bool:
        """Whether the sizes do agree; ``False`` where none was found whose rows do not depend on their places."""
        return any(self.largest in family for family in self.families)

    def padded(self, rows: int) -> int:
        """The size to which so many rows are filled up."""
        return next((size for size in self.sizes if size >= rows), self.largest)

    def time(self, size: int) -> float:
        """Seconds of a call of one of the sizes."""
        return self.seconds[self.sizes.index(size)]

    def efficient(self, share: float = 0.95) -> int:
        """The smallest size that makes at least this share of the best rate."""
        rates = [size / max(seconds, 1e-9) for size, seconds in zip(self.sizes, self.seconds, strict=True)]
        return next(size for size, rate in zip(self.sizes, rates, strict=True) if rate >= share * max(rates))

    def within(self, seconds: float, gain: float = 1.05) -> Buckets:
        """Without the sizes that take longer, unless they make that many times more rows a second.

        A long call makes everyone wait who comes while it runs, so it has to be worth it.

        Args:
            seconds: What a call may take.
            gain: What makes up for more.

        Returns:
            The sizes that are left; always one at least.
        """
        kept = 1
        for count in range(2, len(self.sizes) + 1):
            best = max(size / max(time, 1e-9) for size, time in zip(self.sizes[:kept], self.seconds[:kept], strict=True))
            rate = self.sizes[count - 1] / max(self.seconds[count - 1], 1e-9)
            if self.seconds[count - 1] <= seconds or rate > gain * best:
                kept = count
        return replace(self, sizes=self.sizes[:kept], seconds=self.seconds[:kept])

    def run(self, call: Call, rows: Rows) -> Tensor:
        """One call for any number of rows, filled up; several where they are more than a full call.

        Args:
            call: The network.
            rows: Its input.

        Returns:
            [B, C, H, W].
        """
        if len(rows) <= self.largest:
            return call(rows.padded(self.padded(len(rows))))[: len(rows)]
        return torch.cat(
            [self.run(call, rows.at(slice(start, start + self.largest))) for start in range(0, len(rows), self.largest)]
        )


def candidates(largest: int) -> tuple[int, ...]:
    """Powers of two up to a size, and the size itself."""
    return (*(1 << k for k in range(largest.bit_length()) if 1 << k < largest), largest)


def probe(model: ConsistencyModel, count: int) -> Rows:
    """Rows to measure with: noise at levels over the whole range of the model, in mixed order, classes in turn.

    Args:
        model: The model.
        count: How many.

    Returns:
        The rows, the same each time.
    """
    config, index = model.config, torch.arange(count)
    low, high = math.log(max(model.sigma_min, 2 * model.sigma_end)), math.log(model.sigma_max)
    place = (index * 5 % LEVELS + index.div(LEVELS, rounding_mode="floor") / max(count / LEVELS, 1)) / LEVELS
    sigma = torch.exp(low + (high - low) * (1 - place))  # the first at sigma_max, where samples start
    image = normal(1, index, model.shape, Stream.SAMPLE, 0) * model.sigma_data
    x = image + sigma[:, None, None, None] * normal(0, index, model.shape, Stream.SAMPLE, 0)
    classes, scale = config.network.labels, None
    if config.network.guidance and config.guidance is not None:
        least, most = config.guidance.scales
        scale = (least + (most - least) * (index % 4) / 3.0).to(model.device)
    label = (index % classes).to(model.device) if classes else None
    return Rows(x.to(model.device), sigma.to(model.device), label, scale)


def measure(
    call: Call, rows: Rows, sizes: Sequence[int], longest: float = math.inf, clock: Callable[[], float] = time.monotonic
) -> Buckets:
    """Try sizes, from the smallest up, and keep those that agree.

    Every size computes the same first rows; once in order, once in reverse with rows of zeros for a third of them. Sizes that
    agree with themselves form families that agree with each other. Of the families that are about as fast as the fastest, the
    one with most sizes is kept: calls of few rows are padded least, and calls of many are made at once.

    Args:
        call: The network.
        rows: As many rows as the largest size (:func:`probe`).
        sizes: Sizes to try.
        longest: Seconds that a call may take; beyond it no larger size is tried.
        clock: Gives the time in seconds.

    Returns:
        The sizes. Where no size agrees with itself, the largest is the only one.
    """
    outputs: dict[int, Tensor] = {}
    seconds: dict[int, float] = {}
    steady: list[int] = []
    for size in sorted(sizes):
        count = min(max(size, LEVELS), len(rows))
        parts = [torch.arange(start, min(start + size, count)) for start in range(0, count, size)]
        found = torch.cat([call(rows.at(part).padded(size))[: len(part)] for part in parts])
        synchronise(found)
        again, times = torch.empty_like(found), []
        for part in parts:
            kept = part[: max(len(part) - max(size // 3, 1), 1)]
            began = clock()
            out = _turned(call, rows.at(kept), size)
            times.append(clock() - began)
            again[part] = found[part]
            again[kept] = out
        outputs[size], seconds[size] = found, min(times)
        if torch.equal(found, again):
            steady.append(size)
        if seconds[size] > longest:
            break
    fitting = [size for size in outputs if seconds[size] <= longest] or [min(outputs)]
    families = _families([size for size in steady if size in fitting], outputs)
    best = _best(families, seconds) or (max(fitting),)
    return Buckets(best, tuple(seconds[size] for size in best), tuple(families), outputs[best[-1]])


def _turned(call: Call, rows: Rows, size: int) -> Tensor:
    """The rows once more: in reverse order, at the end of a call that begins with rows of zeros."""
    order = torch.arange(size - 1, -1, -1)
    out = call(rows.padded(size).at(order))
    synchronise(out)
    return out.flip(0)[: len(rows)]


def synchronise(out: Tensor) -> None:
    """Wait for a result."""
    if out.is_cuda:
        torch.cuda.synchronize(out.device)


def _families(steady: Sequence[int], outputs: dict[int, Tensor]) -> list[tuple[int, ...]]:
    families: list[list[int]] = []
    for size in steady:
        for family in families:
            common = min(len(outputs[size]), len(outputs[family[-1]]))
            if torch.equal(outputs[size][:common], outputs[family[-1]][:common]):
                family.append(size)
                break
        else:
            families.append([size])
    return [tuple(family) for family in families]


def _best(families: Sequence[tuple[int, ...]], seconds: dict[int, float]) -> tuple[int, ...] | None:
    rates = {family: max(size / max(seconds[size], 1e-9) for size in family) for family in families}
    good = [family for family in families if rates[family] >= SLOWER * max(rates.values())]
    return max(good, key=lambda family: (len(family), family[-1])) if good else None
