"""How long calls take, as the promise reckons."""

from __future__ import annotations

import pytest
import torch

from atonce.serving.buckets import Buckets
from atonce.serving.pace import Pace


def started() -> Pace:
    pace = Pace()
    assert (pace.full, pace.rate, pace.left(0.0), pace.busy) == (0.0, 0.0, 0.0, False)
    pace.start(Buckets((1, 2, 4), (0.1, 0.15, 0.2), ((1, 2, 4),), torch.zeros(1)))
    return pace


def test_before_any_call() -> None:
    pace = started()
    assert pace.full == pytest.approx(0.2)
    assert pace.rate == pytest.approx(20.0)


def test_a_call_in_flight() -> None:
    pace = started()
    pace.begin(10.0, 3)
    assert pace.busy
    assert pace.left(10.05) == pytest.approx(0.15)
    assert pace.left(11.0) == 0.0, "one that takes longer may end at any moment"
    pace.end(11.0, counts=False)
    assert not pace.busy
    assert pace.full == pytest.approx(0.2), "one that failed says nothing"


def test_calls_of_any_size_tell_how_slow_the_machine_is() -> None:
    pace, now = started(), 0.0
    for _ in range(60):
        pace.idle()
        pace.begin(now, 1)
        now += 0.3
        pace.end(now)
        now += 5.0
    assert pace.factor == pytest.approx(3.0, rel=1e-3)
    assert pace.full == pytest.approx(0.6, rel=1e-2), "a regular machine needs no care"


def test_what_comes_between_two_calls_is_part_of_their_time() -> None:
    pace, now = started(), 0.0
    for _ in range(60):
        pace.begin(now, 4)
        now += 0.2
        pace.end(now)
        now += 0.1  # answers are given, the next rows are gathered
    assert pace.factor == pytest.approx(1.5, rel=1e-3)
    pace.idle()
    pace.begin(now + 100, 4)
    pace.end(now + 100.3)
    assert pace.factor == pytest.approx(1.5, rel=1e-3), "but not the time in which there was nothing to do"


def test_an_irregular_machine_makes_the_promise_careful() -> None:
    pace, now = started(), 0.0
    for i in range(200):
        pace.idle()
        pace.begin(now, 4)
        now += 0.1 if i % 2 else 0.3
        pace.end(now)
    assert pace.rate == pytest.approx(20.0, rel=0.15)
    assert 0.26 < pace.full < 0.36


def test_one_call_moves_it_by_so_much_only() -> None:
    pace = started()
    pace.begin(0.0, 4)
    pace.end(1000.0)
    assert pace.factor == pytest.approx(1.6)
