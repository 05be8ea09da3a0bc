"""Who goes into the next call, and what a newcomer is told: numbers by hand, without threads."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.serving.lanes import BULK_SHARE, Lanes
from atonce.serving.session import Session
from atonce.serving.work import Piece, Work


def lanes_of(limit: int, promise: float = 2.0) -> Lanes:
    lanes = Lanes(promise)
    lanes.limit = lanes.bulk_limit = limit
    return lanes


class Waiting(Work):
    """Only its place in the queue matters here."""

    need = take = result = None  # type: ignore[assignment]


def work(n: int, calls: int = 1, *, twice: bool = False, weights: str | None = None, lane: str = "interactive") -> Work:
    return Waiting(n, calls, None, None, twice, weights, lane=lane)  # type: ignore[arg-type]


def filled(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def add(lanes: Lanes, *works: Work, now: float = 0.0) -> None:
    for each in works:
        each.accepted = now
        lanes.add(each, now)


def call(lanes: Lanes, now: float = 0.0) -> dict[Work, int]:
    """Make one call: rows of each request in it. Rows that need another call go back."""
    pieces = lanes.take(now, filled)
    for piece in pieces:
        if piece.step + 1 < piece.work.calls:
            lanes.again(Piece(piece.work, piece.start, piece.stop, piece.step + 1))
    return dict(Counter({piece.work: 0 for piece in pieces}) + Counter(w for p in pieces for w in [p.work] * p.count))


def test_first_come_first_served_and_requests_are_cut() -> None:
    lanes = lanes_of(8)
    a, b, c = work(3), work(7), work(2)
    add(lanes, a, b, c)
    assert call(lanes) == {a: 3, b: 5}
    assert call(lanes) == {b: 2, c: 2}
    assert lanes.take(0, filled) == []
    assert len(lanes) == 0


def test_what_has_begun_goes_first_but_leaves_half_to_newcomers() -> None:
    lanes = lanes_of(8)
    long, small = work(8, 100), [work(1) for _ in range(6)]
    add(lanes, long)
    assert call(lanes) == {long: 8}
    add(lanes, small[0])
    assert call(lanes) == {long: 7, small[0]: 1}, "a small request waits for no more than the call in flight"
    add(lanes, *small[1:])
    assert call(lanes) == {long: 4} | dict.fromkeys(small[1:5], 1)
    assert call(lanes) == {long: 7, small[5]: 1}


def test_many_long_requests_do_not_hold_a_small_one_up_either() -> None:
    lanes = lanes_of(8)
    add(lanes, *[work(8, 50) for _ in range(10)])
    for _ in range(15):
        call(lanes)
    small = work(2)
    add(lanes, small)
    while call(lanes).get(small) is None and lanes.new.cost > 8:
        pass
    waited = 0
    late = work(2)
    add(lanes, late)
    while late not in call(lanes):
        waited += 1
    assert waited <= 2


def test_long_requests_take_turns() -> None:
    lanes = lanes_of(4)
    a, b = work(4, 30), work(4, 30)
    add(lanes, a, b)
    made = [call(lanes) for _ in range(20)]
    rows = {w: sum(each.get(w, 0) for each in made) for w in (a, b)}
    assert rows[a] == pytest.approx(rows[b], abs=8)


def test_what_is_larger_than_a_call_does_not_hold_up() -> None:
    lanes = lanes_of(8)
    large, small = work(64), work(1)
    add(lanes, large, small)
    assert call(lanes) == {large: 8}
    assert call(lanes) == {large: 7, small: 1}
    while len(lanes):
        call(lanes)
    assert lanes.engaged == {large: 64}, "until the engine says that it is over"
    lanes.release(large)
    assert lanes.engaged == {}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_tiny_calls_alternate(limit: int) -> None:
    lanes = lanes_of(limit)
    long, small = work(3, 40), [work(1) for _ in range(8)]
    add(lanes, long)
    call(lanes)
    add(lanes, *small)
    made = [call(lanes) for _ in range(20)]
    assert all(any(each in m for m in made) for each in small)
    assert sum(m.get(long, 0) for m in made) >= 10


def test_rows_that_are_two_of_the_network() -> None:
    lanes = lanes_of(8)
    twice, once = work(6, twice=True), work(3)
    add(lanes, twice, once)
    assert len(lanes) == 15
    assert call(lanes) == {twice: 4}
    assert call(lanes) == {twice: 2, once: 3}
    tight = lanes_of(1)
    lone = work(2, twice=True)
    add(tight, lone)
    assert call(tight) == {lone: 1}, "a call has to be made for it all the same"
    assert call(tight) == {lone: 1}


def test_sets_of_weights_have_calls_of_their_own_and_take_turns() -> None:
    lanes = lanes_of(8)
    a, b = work(2, 3), work(2, 3, weights="0.9")
    add(lanes, a, now=0)
    add(lanes, b, now=1)
    seen = [list(call(lanes)) for _ in range(6)]
    assert all(len(each) == 1 for each in seen)
    assert Counter(w for each in seen for w in each) == {a: 3, b: 3}


def test_bulk_fills_what_would_be_padding_and_else_waits() -> None:
    lanes = lanes_of(8)
    bulk, three = work(20, lane="bulk"), work(3)
    add(lanes, bulk, three)
    assert call(lanes, 0.1) == {three: 3, bulk: 1}
    add(lanes, work(8), work(8), now=0.2)
    assert bulk not in call(lanes, 0.2)
    assert bulk not in call(lanes, 0.3)
    assert call(lanes, 0.4) == {bulk: 8}


def test_bulk_never_starves() -> None:
    lanes = lanes_of(16)
    bulk = work(12, lane="bulk")
    add(lanes, bulk)
    fed, now = [], 0.0
    for _ in range(200):
        add(lanes, *[work(8) for _ in range(max(0, 4 - lanes.new.cost // 8))], now=now)
        now += 0.1
        if bulk in (rows := call(lanes, now)):
            fed.append((now, rows[bulk]))
    assert sum(rows for _, rows in fed) == 12
    assert all(rows == 16 // BULK_SHARE for _, rows in fed)
    assert fed[0][0] == pytest.approx(2.1, abs=0.11), "once it has waited for longer than the promise"


def test_forgetting_takes_all_pieces_out() -> None:
    lanes = lanes_of(4)
    a, b = work(10, 2), work(3)
    add(lanes, a, b)
    call(lanes)
    lanes.forget(lambda other: other is a)
    lanes.release(a)
    assert call(lanes) == {b: 3}
    add(lanes, c := work(10))
    lanes.forget(lambda other: other is c)  # before any of it has begun
    assert (len(lanes), lanes.engaged, lanes.new.several, lanes.begun.cost) == (0, {}, 0, 0)


# ---- the expected wait


def test_wait_by_hand() -> None:
    lanes = lanes_of(10)
    assert lanes.wait(1.0, 0.0) == 0.0
    assert lanes.wait(1.0, 0.3) == pytest.approx(0.3), "the call in flight"
    add(lanes, *[work(5) for _ in range(5)])  # 25 rows
    assert lanes.wait(1.0, 0.3) == pytest.approx(2.3)
    assert lanes.wait(1.0, 0.0, rows=5) == pytest.approx(2.0), "29 rows end in the third call"
    assert lanes.wait(1.0, 0.0, rows=6) == pytest.approx(3.0), "its last row is in the fourth"
    assert lanes.wait(0.5, 0.0) == pytest.approx(1.0)


def test_wait_where_others_have_begun() -> None:
    lanes = lanes_of(10)
    long = work(10, 50)
    add(lanes, long)
    assert lanes.wait(1.0, 0.0, rows=1) == pytest.approx(2.0), "ten rows that will have begun leave half of a call"
    call(lanes)
    assert lanes.wait(1.0, 0.0, rows=5) == 0.0, "half of the next call is for newcomers"
    assert lanes.wait(1.0, 0.0, rows=6) == pytest.approx(1.0)
    assert lanes.wait(1.0, 0.0, rows=10, several=True) == pytest.approx(1.0), "its further calls share with ten other rows"
    lanes.release(long)
    assert lanes.wait(1.0, 0.0, rows=10, several=True) == 0.0


def test_sessions_are_engaged_until_they_end() -> None:
    lanes = lanes_of(8)
    session = Session()
    first = work(4)
    first.session = session
    add(lanes, first)
    call(lanes)
    assert lanes.engaged == {session: 4}
    session.begun = True
    second = work(6)
    second.session = session
    add(lanes, second)
    assert lanes.begun.cost == 6, "its further calls are not newcomers"
    assert lanes.engaged == {session: 6}


@given(
    st.integers(1, 9),
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 4), st.booleans(), st.sampled_from([None, "a"]), st.booleans()),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_every_row_gets_every_call_once_and_in_order(limit: int, wanted: list, rng) -> None:
    lanes = lanes_of(limit)
    works = [work(n, calls, twice=w, weights=e, lane="bulk" if b else "interactive") for n, calls, w, e, b in wanted]
    done = {each: [0] * each.n for each in works}
    left, now = list(works), 0.0
    while left or len(lanes):
        while left and rng.random() < 0.5:
            add(lanes, left.pop(), now=now)
        now += rng.random()
        pieces = lanes.take(now, lambda rows: min(filled(rows), limit))
        assert sum(piece.cost for piece in pieces) <= max(limit, 2), "one row of two where a call has room for one"
        assert len({piece.work.weights for piece in pieces}) <= 1
        assert bool(pieces) == bool(pieces or len(lanes))
        for piece in pieces:
            for row in range(piece.start, piece.stop):
                assert done[piece.work][row] == piece.step
                done[piece.work][row] += 1
            if piece.step + 1 < piece.work.calls:
                lanes.again(Piece(piece.work, piece.start, piece.stop, piece.step + 1))
    assert all(rows == [each.calls] * each.n for each, rows in done.items())
    assert (lanes.new.cost, lanes.begun.cost, lanes.bulk.cost, lanes.bulk_new.cost, lanes.new.several) == (0, 0, 0, 0, 0)
