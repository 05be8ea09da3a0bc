"""One call for all, the promise, fairness and the bulk lane; with a network whose speed the test decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest
import torch

from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.rows import ask_for

Faked = Callable[..., tuple[Engine, Any]]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_everything_that_waits_shares_one_call(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, sizes=(1, 2, 4, 8, 16), held=True)
    first = engine.submit(ask_for(model, 1))
    fake.wait()
    asks = [
        ask_for(model, 2, seed=1, steps=1),
        ask_for(model, 3, seed=2, labels=[0, 1, 2], sigmas=[3.0, 0.7]),
        ask_for(model, 1, seeds=[9], sigmas=[0.5]),
        ask_for(model, 2, seed=4, steps=3),
    ]
    futures = [engine.submit(ask) for ask in asks]
    fake.leave.release()
    fake.wait()
    rows = fake.seen[1]
    assert fake.sizes_seen == [1, 8], "eight rows of four requests in one call"
    times = [model._times(each.steps, None, "auto") for each in (asks[0], asks[3])]
    expected = [times[0][0]] * 2 + [3.0] * 3 + [0.5] + [times[1][0]] * 2
    assert rows.sigma.tolist() == pytest.approx(expected), "whatever their seeds, labels and noise levels"
    assert rows.label is not None
    assert rows.label[2:5].tolist() == [0, 1, 2]
    fake.leave.release()
    fake.wait()
    assert fake.sizes_seen == [1, 8, 8], "three and two rows at their second steps, filled up"
    assert fake.seen[2].sigma[:5].tolist() == pytest.approx([0.7] * 3 + [times[1][1]] * 2)
    assert not bool(fake.seen[2].x[5:].any())
    fake.free()
    assert not wait([first, *futures], timeout=60).not_done
    assert len(fake.sizes_seen) == 4
    status = engine.status()
    assert (status.calls, status.images, status.waiting, status.failures) == (4, 9, 0, 0)


def test_overload_is_refused_at_once_and_the_accepted_are_within_the_promise(faked: Faked, tiny: Any, Log: Any) -> None:
    model, log = tiny(), Log()
    engine, fake = faked(model, per_row=0.1, sizes=(1, 2, 4, 8), held=True, queue_seconds=2.25, observer=log)
    accepted, refused = [engine.submit(ask_for(model, 4))], []
    fake.wait()  # 0.4 s are in flight, a full call takes 0.8 s: two further calls may begin within 0.9 * 2.25 s
    for seed in range(20):
        try:
            accepted.append(engine.submit(ask_for(model, 3, seed=seed)))
        except ServiceError as problem:
            refused.append(problem)
    assert len(accepted) == 1 + 8, "24 rows: the last of them is in the call that begins after 0.4 + 2 * 0.8 = 2.0 s"
    assert {(problem.status, problem.code) for problem in refused} == {(503, "overloaded")}
    assert all(0.7 < (problem.retry_after or 0) < 1.0 for problem in refused), "one call more"
    assert "about 2.8 seconds, more than 90% of the 2.25 that are" in refused[0].message
    small = engine.submit(ask_for(model, 1)) if engine.status().wait <= 2.02 else None
    assert small is None, "not even one row"
    fake.free()
    assert not wait(accepted, timeout=60).not_done
    waits = [seconds for *_, seconds in log.of("waited")]
    assert len(waits) == 9
    assert max(waits) <= 2.25
    assert max(waits) > 1.5, "and the promise is made use of"
    assert log.of("refused") == [("tiny", "overloaded")] * 12
    assert engine.submit(ask_for(model, 8)).result(60).shape == (8, 1, 8, 8), "afterwards all is well"


def test_the_promise_follows_the_machine(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, per_row=0.1, queue_seconds=2.0)
    assert engine.status().rate == pytest.approx(10.0)
    fake.slower = 5.0
    for _ in range(25):
        engine.submit(ask_for(model, 8)).result(60)
    assert engine.status().rate == pytest.approx(2.0, rel=0.05)
    fake.held = True
    taken = [engine.submit(ask_for(model, 1))]
    until(lambda: engine.status().waiting == 0)
    taken.append(engine.submit(ask_for(model, 8)))
    with pytest.raises(ServiceError, match="would wait for about 4") as caught:
        engine.submit(ask_for(model, 1))  # 0.5 s in flight, and a full call of 4 s
    assert caught.value.message.endswith("seconds, more than 90% of the 2 that are promised: try again later")
    fake.slower = 1.0
    fake.free()
    wait(taken, timeout=60)
    for _ in range(40):
        engine.submit(ask_for(model, 2), lane="bulk").result(60)
    assert engine.status().rate == pytest.approx(10.0, rel=0.1)


def test_one_slow_call_does_not_ruin_the_estimate(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, per_row=0.1)
    fake.slower = 1000.0
    engine.submit(ask_for(model, 8)).result(60)
    assert engine.status().rate > 10 / 1.7


def test_a_small_request_waits_for_a_call_or_two_behind_large_ones(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, sizes=(1, 2, 4, 8), held=True, queue_seconds=1e6)
    large = [engine.submit(ask_for(model, 64, steps=20)) for _ in range(3)]
    fake.step(9)
    fake.wait()
    began: list[int] = []
    engine._observer.waited = lambda *_: began.append(len(fake.sizes_seen))  # type: ignore[method-assign]
    small = engine.submit(ask_for(model, 1, steps=2, seed=5))
    done, before, calls = threading.Event(), len(fake.sizes_seen), 0
    small.add_done_callback(lambda _: done.set())
    fake.leave.release()
    while not done.wait(0.02):
        fake.step()
        calls += 1
    assert began[0] - before <= 1, "it is in the next call"
    assert calls <= 3 * 64 // 8 + 2, "its second step takes its turn among what has begun"
    for future in large:
        future.cancel()
    fake.free()


def test_bulk_goes_when_nothing_else_waits(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, sizes=(1, 2, 4, 8), held=True, queue_seconds=1e6)
    bulk = engine.submit(ask_for(model, 20), lane="bulk")
    fake.wait()
    assert fake.sizes_seen == [1], "of the sizes that are equally fast per row the smallest: so that others need not wait long"
    one = engine.submit(ask_for(model, 3, seed=1))
    fake.leave.release()
    one_done = threading.Event()
    one.add_done_callback(lambda _: one_done.set())
    fake.wait()
    fake.leave.release()
    assert one_done.wait(60), "the next call was its own"
    assert fake.sizes_seen[:2] == [1, 4]
    fake.free()
    assert bulk.result(60).shape[0] == 20


def test_bulk_is_not_refused_for_time_but_for_numbers(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True, queue_rows=50, per_row=1.0)
    futures = [engine.submit(ask_for(model, 25), lane="bulk")]
    futures.append(engine.submit(ask_for(model, 24), lane="bulk"))
    with pytest.raises(ServiceError, match="images wait here already, at most 50 may"):
        engine.submit(ask_for(model, 25), lane="bulk")
    with pytest.raises(ServiceError) as found:
        engine.submit(ask_for(model, 51), lane="bulk")
    assert (found.value.status, found.value.param) == (413, "n")
    for future in futures:
        future.cancel()
    fake.free()


def test_queue_rows_bound_the_queue_whatever_the_time(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True, queue_rows=20, queue_seconds=1e6)
    engine.submit(ask_for(model, 1))
    fake.wait()
    futures = [engine.submit(ask_for(model, 10)) for _ in range(2)]
    with pytest.raises(ServiceError) as found:
        engine.submit(ask_for(model, 1))
    assert (found.value.status, found.value.code) == (503, "overloaded")
    assert 0 < (found.value.retry_after or 0) < 1
    fake.free()
    wait(futures, timeout=60)


def test_what_has_begun_is_limited_by_the_promise_too(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, per_row=0.1, held=True, queue_seconds=2.0)  # a full call of 8 rows takes 0.8 s
    taken = [engine.submit(ask_for(model, 8, steps=50))]
    fake.wait()
    taken += [engine.submit(ask_for(model, 1, steps=50)) for _ in range(2)]
    with pytest.raises(ServiceError, match="would wait"):
        for _ in range(10):
            taken.append(engine.submit(ask_for(model, 8, steps=50, seed=1)))
    assert len(taken) < 7
    for future in taken:
        future.cancel()
    fake.free()


def test_submit_answers_at_once_while_the_network_is_busy(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True, queue_seconds=0.001)
    engine.submit(ask_for(model, 8))
    fake.wait()
    with pytest.raises(ServiceError):  # would hang here, were it to wait for the network
        engine.submit(ask_for(model, 8))
    fake.free()


def test_those_who_ask_again_at_once_share_a_call(faked: Faked, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a call go out one by one, and so do the next requests come in."""
    monkeypatch.setattr("atonce.serving.engine.LONGEST", 60.0)
    model = tiny()
    engine, fake = faked(model, held=True, per_row=1e6, queue_seconds=1e9)
    engine.submit(ask_for(model, 1))
    fake.wait()
    both = [engine.submit(ask_for(model, 1, seed=seed)) for seed in (1, 2)]
    fake.leave.release()
    fake.step()
    wait(both, timeout=60)
    first = engine.submit(ask_for(model, 1))
    time.sleep(0.05)
    second = engine.submit(ask_for(model, 1))
    fake.free()
    wait([first, second], timeout=60)
    assert fake.sizes_seen == [1, 2, 2]
    alone = engine.submit(ask_for(model, 2)).result(60)
    assert alone.shape[0] == 2
    assert engine.submit(ask_for(model, 1)).result(30).shape[0] == 1, "who is alone does not wait"


def test_observer_hears_of_everything(faked: Faked, tiny: Any, Log: Any) -> None:
    model, log = tiny(), Log()
    engine, _ = faked(model, observer=log, version="7")
    engine.submit(ask_for(model, 3)).result(60)
    engine.submit(ask_for(model, 2), lane="bulk", kind="watch").result(60)
    assert [(each[:4]) for each in log.of("batch")] == [("tiny", "7", 3, 4), ("tiny", "7", 1, 1), ("tiny", "7", 1, 1)]
    assert log.of("made") == [("tiny", "7", "generate", 3), ("tiny", "7", "watch", 2)]
    assert [each[2] for each in log.of("waited")] == ["interactive", "bulk"]
    assert log.of("queued")[-1] == ("tiny", "7", 0)


def test_progress_is_told(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, _ = faked(model)
    told: list[int] = []
    engine.submit(ask_for(model, 20, steps=2), progress=told.append).result(60)
    assert told == sorted(told)
    assert told[-1] == 20
    assert len(told) > 2

    def broken(_: int) -> None:
        raise RuntimeError("a caller's fault")

    assert engine.submit(ask_for(model, 3), progress=broken).result(60).shape[0] == 3


def test_noise_is_that_of_the_streams(faked: Faked, tiny: Any) -> None:
    """The rows of a call hold sigma z with the library's z, bit for bit, whatever shares the call."""
    from atonce.core.streams import Stream, normal

    model = tiny(labels=0)
    engine, fake = faked(model, held=True)
    engine.submit(ask_for(model, 1))
    fake.wait()
    engine.submit(ask_for(model, 2, seed=5, first=3))
    engine.submit(ask_for(model, 2, seeds=[11, -4], sigmas=[2.5]))
    fake.leave.release()
    fake.wait()
    x = fake.seen[1].x
    assert torch.equal(x[:2], 80.0 * normal(5, torch.tensor([3, 4]), model.shape, Stream.SAMPLE, 0))
    assert torch.equal(x[2:4], 2.5 * normal(torch.tensor([11, -4]), torch.tensor([0, 0]), model.shape, Stream.SAMPLE, 0))
    fake.free()
