"""Every request ends once: cancelled, expired, failed, drained or done; and nothing of it stays."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import atonce
from atonce.model import ConsistencyModel
from atonce.serving.buckets import Rows
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.rows import Ask, ask_for
from atonce.serving.settings import ServeSettings

Faked = Callable[..., tuple[Engine, Any]]


def failed(future: Any) -> ServiceError:
    with pytest.raises(ServiceError) as found:
        future.result(60)
    return found.value


def empty(engine: Engine) -> bool:
    lanes, ledger = engine._lanes, engine._ledger
    lines = (lanes.new, lanes.begun, lanes.bulk, lanes.bulk_new)
    return not (len(lanes) or lanes.engaged or ledger.works or ledger.sessions or any(line.several or line for line in lines))


def test_cancelling_takes_the_rows_out(faked: Faked, tiny: Any, Log: Any) -> None:
    model, log = tiny(), Log()
    engine, fake = faked(model, held=True, observer=log)
    first = engine.submit(ask_for(model, 8, steps=3))
    fake.wait()
    waiting, other = engine.submit(ask_for(model, 30)), engine.submit(ask_for(model, 2, seed=3))
    assert engine.status().waiting == 32
    assert waiting.cancel()
    assert engine.status().waiting == 2
    assert first.cancel(), "also one whose rows are in the call in flight"
    fake.free()
    assert other.result(60).shape[0] == 2
    assert len(fake.sizes_seen) == 2
    assert log.of("refused") == [("tiny", "cancelled")] * 2
    with pytest.raises(CancelledError):
        first.result(60)
    assert empty(engine)


def test_a_deadline_that_passes_before_the_first_call(faked: Faked, tiny: Any, Log: Any) -> None:
    model, log = tiny(), Log()
    engine, fake = faked(model, held=True, per_row=0.1, observer=log)
    now = fake.clock.now
    first = engine.submit(ask_for(model, 8, steps=3), deadline=now + 0.1)
    fake.wait()
    late = engine.submit(ask_for(model, 2), deadline=now + 0.5)
    fine = engine.submit(ask_for(model, 1), deadline=now + 5.0)
    with pytest.raises(ServiceError, match="before it began"):
        engine.submit(ask_for(model, 1), deadline=now)
    fake.free()
    problem = failed(late)
    assert (problem.status, problem.code) == (503, "overloaded")
    assert problem.retry_after
    assert fine.result(60).shape[0] == 1
    assert first.result(60).shape[0] == 8, "one that has begun is finished"
    assert log.of("refused") == [("tiny", "expired")] * 2


def test_a_failure_ends_its_batch_only(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True)
    first = engine.submit(ask_for(model, 1))
    fake.wait()
    lost = [engine.submit(ask_for(model, 3)), engine.submit(ask_for(model, 30, steps=2))]
    kept = engine.submit(ask_for(model, 2, seed=1))

    def explode(rows: Rows) -> Tensor | None:
        if len(fake.sizes_seen) == 2:
            raise RuntimeError("no memory, at /secret/path")
        return None

    fake.broken = explode
    fake.leave.release()
    fake.step()
    fake.free()
    assert first.result(60).shape[0] == 1
    for each in lost:
        problem = failed(each)
        assert (problem.status, problem.code) == (500, "failed")
        assert "secret" not in problem.message
    assert kept.result(60).shape[0] == 2
    status = engine.status()
    assert (status.failures, status.running, status.waiting) == (2, True, 0)
    assert empty(engine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_an_image(value: float, faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True)
    first = engine.submit(ask_for(model, 1))
    fake.wait()
    bad, good = engine.submit(ask_for(model, 3)), engine.submit(ask_for(model, 2, seed=1))

    def poisoned(rows: Rows) -> Tensor:
        out = rows.x * 0.01
        if len(rows) == 8:
            out[1, 0, 3, 3] = value
        return out

    fake.broken = poisoned
    fake.free()
    assert first.result(60).isfinite().all()
    assert failed(bad).status == 500
    assert good.result(60).isfinite().all(), "its neighbours in the same call are fine"
    assert engine.status().failures == 1


def test_a_model_that_gives_no_numbers_never_starts(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    made = Engine(model, ServeSettings(backend="eager", max_batch=4), name="tiny")
    with pytest.raises(ServiceError, match="not finite: it cannot serve"):
        made.start()
    assert not made.status().running
    with pytest.raises(ServiceError):
        made.submit(Ask(1, sigmas=(80.0,)))
    with pytest.raises(ServiceError, match="started before"):
        made.start()


def test_stopping_finishes_what_waits(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True)
    futures = [engine.submit(ask_for(model, 6, steps=3, seed=i)) for i in range(4)]
    fake.wait()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(engine.stop, 60)
        while engine._state == "running":
            pass
        with pytest.raises(ServiceError) as found:
            engine.submit(ask_for(model, 1))
        assert (found.value.status, found.value.code) == (503, "draining")
        with pytest.raises(ServiceError), engine.calls():
            pass
        assert not engine.status().running
        fake.free()
        stopping.result(60)
    assert all(future.result(0).shape[0] == 6 for future in futures)
    assert not engine._thread.is_alive()  # type: ignore[union-attr]
    assert empty(engine)


def test_stopping_ends_the_rest_when_the_time_is_over(faked: Faked, tiny: Any) -> None:
    model = tiny()
    engine, fake = faked(model, held=True)
    futures = [engine.submit(ask_for(model, 6, seed=i)) for i in range(4)]
    fake.wait()
    engine.stop(0.05)
    assert {failed(future).code for future in futures} == {"draining"}
    fake.free()
    engine._thread.join(60)  # type: ignore[union-attr]
    assert not engine._thread.is_alive()  # type: ignore[union-attr]
    assert empty(engine)
    engine.stop(0)  # once more does nothing


def test_an_edit_that_has_begun_may_end_while_the_engine_drains(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    made = engine(model)
    image, mask = model.sample(1)[0], torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5] = True
    with ThreadPoolExecutor(1) as pool:
        with made.calls() as batched:
            batched(image[None], 1.0, 0)
            stopping = pool.submit(made.stop, 60)
            while made._state == "running":
                pass
            found = atonce.edit.inpaint(batched, image, mask, steps=2, seed=1, labels=0)
        stopping.result(60)
    assert (found - atonce.edit.inpaint(model, image, mask, steps=2, seed=1, labels=0)).abs().max() < 1e-5


def test_many_threads_at_once(engine: Callable[..., Engine], tiny: Any) -> None:
    model = tiny()
    made = engine(model, max_batch=16)
    expected = [made.submit(ask_for(model, 1 + i % 3, seed=i, steps=1 + i % 2)).result(60) for i in range(6)]
    barrier = threading.Barrier(8)

    def client(number: int) -> int:
        barrier.wait(60)
        for k in range(30):
            i = (number + k) % 6
            future = made.submit(
                ask_for(model, 1 + i % 3, seed=i, steps=1 + i % 2), lane="bulk" if k % 7 == 0 else "interactive"
            )
            if k % 11 == 5:
                future.cancel()
            else:
                assert torch.equal(future.result(60), expected[i])
            if k % 10 == 3:
                with made.calls() as batched:
                    assert torch.isfinite(batched(expected[0], 0.5, 1)).all()
            assert made.status().running
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(client, range(8))) == list(range(8))
    assert empty(made)


class Tenth(nn.Module):
    """The smallest network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return x * self.weight * 0.1


def test_memory_stays_flat_over_ten_thousand_requests(engine: Callable[..., Engine], tiny: Any) -> None:
    model = ConsistencyModel(tiny(labels=0).config, Tenth())
    made = engine(model, max_batch=64)

    def some(count: int) -> None:
        for start in range(0, count, 50):
            futures = [made.submit(ask_for(model, 1, seed=start + i)) for i in range(50)]
            for future in futures[::10]:
                future.cancel()
            assert not wait(futures, 60).not_done
        gc.collect()

    tracemalloc.start()
    try:
        some(2000)
        before = tracemalloc.get_traced_memory()[0]
        some(8000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 60_000, "less than eight bytes for each request"
    assert empty(made)
    assert made.status().images >= 8_000, "all but those that were cancelled"
