"""Which sizes of calls are kept: those at which nothing but the row decides its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.serving.backends import call_of, eager
from atonce.serving.buckets import Buckets, Rows, candidates, measure, probe


class Ticking:
    """A clock that moves on by what the last call cost."""

    def __init__(self, cost: Callable[[int], float] = lambda size: 0.001 * size) -> None:
        self.now, self.cost = 0.0, cost

    def __call__(self) -> float:
        return self.now

    def after(self, call: Callable[[Rows], Tensor]) -> Callable[[Rows], Tensor]:
        def timed(rows: Rows) -> Tensor:
            self.now += self.cost(len(rows))
            return call(rows)

        return timed


def steady(rows: Rows) -> Tensor:
    return rows.x * rows.sigma[:, None, None, None].sin()


def by_size(*families: tuple[int, ...]) -> Callable[[Rows], Tensor]:
    """Last bits that depend on the size of the call."""

    def call(rows: Rows) -> Tensor:
        family = next(i for i, each in enumerate(families) if len(rows) in each)
        return steady(rows) * (1 + 1e-6 * family)

    return call


def by_place(*sizes: int) -> Callable[[Rows], Tensor]:
    """Last bits that depend on the place in calls of some sizes."""

    def call(rows: Rows) -> Tensor:
        off = 1e-6 * torch.arange(len(rows))[:, None, None, None] if len(rows) in sizes else 0.0
        return steady(rows) * (1 + off)

    return call


def by_neighbours(rows: Rows) -> Tensor:
    return steady(rows) + 1e-6 * rows.x.mean()


def measured(call: Callable[[Rows], Tensor], model: Any, largest: int = 16, **options: Any) -> Buckets:
    clock = options.pop("clock", Ticking())
    return measure(clock.after(call), probe(model, max(largest, 8)), candidates(largest), clock=clock, **options)


def test_candidates() -> None:
    assert candidates(1) == (1,)
    assert candidates(8) == (1, 2, 4, 8)
    assert candidates(13) == (1, 2, 4, 8, 13)


def test_all_sizes_that_agree_are_kept(tiny: Any) -> None:
    found = measured(steady, tiny())
    assert found.sizes == (1, 2, 4, 8, 16)
    assert found.seconds == pytest.approx([0.001 * size for size in found.sizes])
    assert found.families == ((1, 2, 4, 8, 16),)
    assert found.exact
    assert (found.padded(1), found.padded(3), found.padded(16), found.padded(99)) == (1, 4, 16, 16)
    assert found.rate == pytest.approx(1000)


def test_of_several_families_the_one_with_most_sizes(tiny: Any) -> None:
    found = measured(by_size((1,), (2, 4, 8, 16)), tiny())
    assert found.sizes == (2, 4, 8, 16)
    assert set(found.families) == {(1,), (2, 4, 8, 16)}
    assert measured(by_size((1, 2, 4), (8, 16)), tiny()).sizes == (1, 2, 4)


def test_but_not_where_it_is_much_slower(tiny: Any) -> None:
    clock = Ticking(lambda size: 0.01)  # as on a GPU: a call takes what it takes
    assert measured(by_size((1, 2, 4), (8, 16)), tiny(), clock=clock).sizes == (8, 16)


def test_sizes_whose_rows_depend_on_their_place_are_left_out(tiny: Any) -> None:
    found = measured(by_place(4, 16), tiny())
    assert found.sizes == (1, 2, 8)
    assert found.exact


def test_where_neighbours_matter_everywhere_it_is_said(tiny: Any) -> None:
    assert measured(by_neighbours, tiny()).sizes == (1,), "one row has no neighbours"
    assert measured(by_place(2, 4, 8, 16), tiny()).sizes == (1,), "and no place"
    assert not measure(by_neighbours, probe(tiny(), 8), (2, 4, 8)).exact


def test_sizes_that_take_too_long_are_left_out(tiny: Any) -> None:
    seen = []

    def call(rows: Rows) -> Tensor:
        seen.append(len(rows))
        return steady(rows)

    found = measured(call, tiny(), 64, longest=0.005)
    assert found.sizes == (1, 2, 4)
    assert max(seen) == 8, "nothing larger is even tried"
    assert measured(steady, tiny(), longest=1e-9).sizes == (1,), "something is always left"


def test_running_fills_up_and_cuts(tiny: Any) -> None:
    sizes: list[int] = []

    def call(rows: Rows) -> Tensor:
        sizes.append(len(rows))
        return steady(rows)

    found = measured(steady, tiny(), 8)
    rows = probe(tiny(), 21)
    out = found.run(call, rows)
    assert torch.equal(out, steady(rows))
    assert sizes == [8, 8, 8]
    assert torch.equal(found.run(call, rows.at(slice(0, 3))), steady(rows)[:3])
    assert sizes[3:] == [4]


def test_the_efficient_size() -> None:
    def of(*seconds: float) -> Buckets:
        return Buckets((1, 2, 4, 8), seconds, (), torch.zeros(1))

    assert of(1, 2, 4, 8).efficient() == 1
    assert of(1, 1.2, 2.0, 3.9).efficient() == 4
    assert of(1, 1, 1, 1).efficient() == 8


def test_long_calls_have_to_be_worth_it() -> None:
    def left(*seconds: float) -> tuple[int, ...]:
        return Buckets((1, 2, 4, 8), seconds, (), torch.zeros(1)).within(0.5).sizes

    assert left(0.1, 0.2, 0.4, 0.8) == (1, 2, 4)
    assert left(0.1, 0.2, 0.4, 0.7) == (1, 2, 4, 8), "more rows a second by a seventh"
    assert left(0.1, 0.2, 0.3, 0.4) == (1, 2, 4, 8)
    assert left(1.0, 2.0, 4.0, 8.0) == (1,)
    assert left(1.0, 1.1, 2.2, 4.4) == (1, 2)
    assert left(0.4, 0.6, 1.2, 1.3) == (1, 2, 4, 8), "one that is not worth it may lead to one that is"


def test_probes_see_the_whole_range(tiny: Any) -> None:
    model = tiny()
    rows = probe(model, 16)
    levels = rows.sigma[:8].sort().values
    assert rows.sigma[0] == pytest.approx(model.sigma_max)
    assert levels[0] < 10 * model.sigma_min
    assert bool((levels[1:] / levels[:-1] > 2).all())
    assert rows.label is not None
    assert set(rows.label.tolist()) == {0, 1, 2}
    assert probe(tiny(labels=0), 4).label is None
    assert torch.equal(probe(model, 16).x, rows.x)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_plain_pytorch_has_one_family_but_for_single_rows(name: str) -> None:
    """What the arrangement of the network is for: small calls for small requests, with the same bits as large ones."""
    model = atonce.load(name)
    found = measure(call_of(model, eager(model)), probe(model, 16), candidates(16))
    assert found.exact
    assert {2, 4, 8, 16} <= set(found.families[-1])
