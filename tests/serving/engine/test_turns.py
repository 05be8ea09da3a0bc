"""Turns on a device: one at a time, in the order of asking."""

from __future__ import annotations

import threading
import time

import pytest

from atonce.serving.turns import Turns


def test_one_at_a_time_in_order() -> None:
    turns, order, inside = Turns(), [], []

    def go(number: int) -> None:
        with turns:
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            inside.remove(number)

    threads = []
    with turns:
        for number in range(6):
            threads.append(threading.Thread(target=go, args=(number,)))
            threads[-1].start()
            end = time.monotonic() + 60
            while len(turns._queue) <= number:
                assert time.monotonic() < end
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert order == list(range(6))


def test_given_back_after_an_error() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="x"), turns:
        raise ValueError("x")
    with turns:
        pass
    assert not turns._taken
