"""What the Return tab measures, and that it does so through the engine that it was given."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import pytest

import atonce
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.planning.returns import Way
from atonce.planning.ways import many_step
from atonce.studio.returns_measure import form_values, measure, plan, stand_in
from atonce.studio.returns_work import read, reckon


@dataclass
class Status:
    """What an engine says of itself."""

    rate: float = 400.0
    backend: str = "eager"


@dataclass
class Engine:
    """Stands for an engine: gives its model for calls, and counts how often it did."""

    model: ConsistencyModel
    name: str = "digits"
    rate: float = 400.0
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def status(self) -> Status:
        """How it does."""
        return Status(self.rate)

    @contextlib.contextmanager
    def calls(self, **words: Any) -> Iterator[ConsistencyModel]:
        """The model, for an algorithm."""
        self.sessions.append(words)
        if words["stop"].is_set():
            raise CancelledError
        yield self.model


@pytest.fixture(scope="module")
def digits() -> ConsistencyModel:
    """The model of the gallery."""
    return atonce.load("digits")


def engine(model: ConsistencyModel, **words: Any) -> Any:
    """An engine, as far as measuring goes."""
    return Engine(model, **words)


def test_a_plan_keeps_calls_short(digits: ConsistencyModel) -> None:
    assert plan(engine(digits), 1).batch == 12  # 400 images a second, 0.03 s
    assert plan(engine(digits, rate=0.0), 1).batch == 8
    assert plan(engine(digits, rate=1e9), 1).batch == 64
    made = plan(engine(digits), 3.0)
    assert (made.name, made.calls, made.images) == ("digits, 3 steps", 3, 6 * 12 + 16)
    assert made.seconds == pytest.approx(3 * (72 + 32) / 400)


@pytest.mark.parametrize("steps", [0, -1, 201, 1.5, None, "two", True])
def test_absurd_steps_are_named(digits: ConsistencyModel, steps: object) -> None:
    with pytest.raises(InputError, match="steps is .*, must be"):
        plan(engine(digits), steps)


def test_the_stand_in_is_the_same_network_called_35_times(digits: ConsistencyModel) -> None:
    made = stand_in(plan(engine(digits), 1))
    assert made.calls == 35
    assert "the same network called 35 times" in made.note
    teacher = stand_in(plan(engine(many_step(digits), name="teacher"), 1))
    assert (teacher.steps, teacher.calls, teacher.note) == (18, 35, "")


def test_measured_ways_go_into_the_form_as_measured(digits: ConsistencyModel) -> None:
    ran = engine(digits, rate=50.0)
    said: list[str] = []
    way = measure(plan(ran, 1), threading.Event(), said.append)
    assert ran.sessions[0]["kind"] == "measure"
    assert way.source == "measured"
    assert way.calls == 1
    assert way.seconds > 0
    assert way.latency is not None
    assert "through the service (eager)" in way.note
    assert said == ["1 steps, 8 at once", "1 steps, one at a time"]
    values = form_values(Way("slow", 35, 0.5, 0.9, "measured", "here"), way)
    found = reckon(read({"values": values["values"], "names": values["names"]}))
    assert found.before.way.name == "slow"
    assert found.after.way.source == "measured"
    assert found.after.way.seconds == pytest.approx(way.seconds, rel=1e-3)
    assert found.after.way.note == way.note


def test_what_was_stopped_measures_nothing(digits: ConsistencyModel) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        measure(plan(engine(digits), 1), stop)


def test_an_unknown_latency_is_not_put_in() -> None:
    with pytest.raises(InputError, match="latency of x could not be measured"):
        form_values(Way("x", 1, 0.1), Way("y", 1, 0.1, 0.1))
