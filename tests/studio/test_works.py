"""Long work in the background: progress with time left, stopping, one piece for each person."""

from __future__ import annotations

import threading
import time

import pytest

from atonce.core.errors import InputError
from atonce.studio.works import StoppedError, Work, Works


def wait(work: Work) -> Work:
    until = time.monotonic() + 20
    while work.running and time.monotonic() < until:
        time.sleep(0.01)
    assert not work.running
    return work


def test_time_left_follows_the_rate_of_the_stage():
    now = [100.0]
    work = Work("The check", clock=lambda: now[0])
    assert (work.left, work.line()) == (None, "starting")
    work.tell("reading", 0, 100)
    now[0] += 10
    work.tell("reading", 25, 100)
    assert work.left == pytest.approx(30)
    assert work.line() == "reading 25%, about 30.0 s left"
    assert 'aria-valuenow="25"' in work.html()
    work.tell("comparing", 0, 10)
    now[0] += 200
    work.tell("comparing", 1, 10)
    assert work.line() == "comparing 10%, about 0:30:00 left"
    work.end("done")
    now[0] += 50
    assert work.line() == "took 0:03:30"


def test_titles_are_escaped():
    work = Work('<b>"x"')
    assert "<b>" not in work.html()


def test_results_and_errors_arrive():
    works = Works()
    done = wait(works.start("a", "The check", lambda work: 42))
    assert (done.result, done.error) == (42, None)

    def fail(work):
        raise InputError("no")

    assert str(wait(works.start("a", "The check", fail)).error) == "no"
    works.forget("a", works.get("a"))
    assert works.get("a") is None


def test_work_can_be_stopped_and_another_begun():
    works, begun = Works(), threading.Event()

    def long(work):
        for k in range(10_000):
            work.tell("reading", k, 10_000)
            begun.set()
            time.sleep(0.005)

    work = works.start("a", "The check", long)
    assert begun.wait(10)
    with pytest.raises(InputError, match="The check is still under way"):
        works.start("a", "Another", long)
    assert works.stop("a")
    assert isinstance(wait(work).error, StoppedError)
    assert work.line() == "stopped"
    assert not works.stop("a")
    assert wait(works.start("a", "Another", lambda told: 1)).result == 1


def test_only_so_many_of_all_people_run_at_once():
    works, gate = Works(at_once=2), threading.Event()
    for name in "ab":
        works.start(name, "Work", lambda work: gate.wait(20))
    with pytest.raises(InputError, match="2 such works of other people are under way, at most 2"):
        works.start("c", "Work", lambda work: None)
    gate.set()
    for name in "ab":
        wait(works.get(name))
    assert wait(works.start("c", "Work", lambda work: "mine")).result == "mine"
