"""Ways that are measured: how often the network is called, what the numbers are, where they come from."""

from __future__ import annotations

import pytest
import torch

import atonce
from atonce.core.errors import InputError
from atonce.planning import ways
from atonce.planning.ways import many_step, measured_way


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_SINGLES", 3)
    monkeypatch.setattr(ways, "_BATCHES", 3)


def test_a_step_is_a_call_and_the_baseline_is_35() -> None:
    model = atonce.load("digits")
    one, two, many = measured_way(model, "one", batch=4), measured_way(model, "two", steps=2, batch=4), None
    many = measured_way(many_step(model), "many", steps=18, batch=4)
    assert (one.calls, two.calls, many.calls) == (1, 2, 35)
    assert one.source == "measured"
    assert "median of 3 batches of 4 and of 3 single images" in one.note
    assert "18 Heun steps" in many.note
    assert many.seconds > one.seconds > 0
    assert many.latency is not None
    assert one.latency is not None
    assert many.latency > one.latency


def test_numbers_are_medians_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is made up: the first batch takes 100 s, the others 8, 2 and 4; single images 1, 3 and 2."""
    lasts = iter([100.0, 8.0, 2.0, 4.0, 50.0, 1.0, 3.0, 2.0])
    now = [0.0]
    starts = [True]

    def clock() -> float:
        if not starts[0]:
            now[0] += next(lasts)
        starts[0] = not starts[0]
        return now[0]

    monkeypatch.setattr(ways.time, "perf_counter", clock)
    way = measured_way(atonce.load("digits"), "one", batch=8)
    assert way.seconds == 4.0 / 8
    assert way.latency == 2.0


def test_the_baseline_is_the_same_network_and_leaves_the_model_alone() -> None:
    model = atonce.load("fashion-mnist")
    many = many_step(model)
    assert many.kind == "denoiser"
    assert model.kind == "consistency"
    assert many.network is model.network
    assert torch.isfinite(many.sample(1, 2)).all()


@pytest.mark.parametrize(
    ("wrong", "said"), [({"steps": 0}, "steps is 0"), ({"batch": -1}, "batch is -1"), ({"steps": 1.5}, "steps is 1.5")]
)
def test_absurd_numbers_are_named(wrong, said: str) -> None:
    with pytest.raises(InputError, match=said):
        measured_way(atonce.load("digits"), "x", **wrong)
