"""The bounded pool: as many at once as there are threads, first come first served, and a no instead of a long queue."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from atonce.serving.errors import ServiceError
from atonce.serving.pools import Pool


def test_results_and_errors_come_back():
    async def main() -> None:
        pool = Pool(1, 1.0, "t")
        assert await pool.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await pool.run(divmod, 7, 0)
        assert await pool.run(threading.current_thread) is not threading.main_thread()
        pool.close()

    asyncio.run(main())


def test_no_more_run_at_once_than_there_are_threads():
    async def main() -> None:
        pool, lock, running, most, order = Pool(2, 30.0, "t", waiting=100), threading.Lock(), 0, 0, []

        def work(i: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                order.append(i)
            time.sleep(0.01)
            with lock:
                running -= 1

        await asyncio.gather(*(pool.run(work, i) for i in range(20)))
        assert most == 2
        assert sorted(order) == list(range(20))
        assert all(abs(place - i) <= 1 for place, i in enumerate(order))
        pool.close()

    asyncio.run(main())


def test_who_waits_too_long_or_behind_too_many_is_refused():
    async def main() -> None:
        pool, gate = Pool(1, 0.2, "t", waiting=1), threading.Event()
        busy = asyncio.create_task(pool.run(gate.wait, 20))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(pool.run(gate.wait, 20))
        await asyncio.sleep(0.02)
        with pytest.raises(ServiceError, match="1 requests wait") as caught:
            await pool.run(gate.wait, 20)
        assert caught.value.status == 503
        assert caught.value.retry_after == 0.2
        with pytest.raises(ServiceError, match="stayed busy"):
            await waiting
        gate.set()
        assert await busy
        assert await pool.run(lambda: 5) == 5
        pool.close()

    asyncio.run(main())


def test_a_cancelled_caller_frees_its_place_only_when_its_work_has_ended():
    async def main() -> None:
        pool, gate = Pool(1, 0.2, "t"), threading.Event()
        left = asyncio.create_task(pool.run(gate.wait, 20))
        await asyncio.sleep(0.02)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(ServiceError, match="stayed busy"):
            await pool.run(lambda: 1)
        waiter = asyncio.create_task(pool.run(lambda: 2))
        await asyncio.sleep(0.02)
        waiter.cancel()  # while it waits for its turn
        gate.set()
        assert await pool.run(lambda: 3) == 3
        assert await asyncio.gather(*(pool.run(lambda: 4) for _ in range(5))) == [4] * 5
        pool.close()

    asyncio.run(main())


def test_who_is_slow_waits_for_all_others_and_never_has_all_threads():
    async def main() -> None:
        now = 0.0
        pool, gates, order = Pool(2, 30.0, "t", waiting=100, share=0.5, clock=lambda: now), [], []

        async def work(of: str) -> None:
            gate = threading.Event()
            gates.append(gate)

            def wait() -> None:
                order.append(of)
                gate.wait(20)

            await pool.run(wait, of=of)

        async def settle(count: int) -> None:
            until = time.monotonic() + 20
            while len(order) < count:
                assert time.monotonic() < until, order
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(work("slow")) for _ in range(4)]
        await settle(1)
        await asyncio.sleep(0.05)
        assert order == ["slow"], "a thread is left for others"
        tasks += [asyncio.create_task(work(of)) for of in ("quick", "other", "quick")]
        await settle(2)
        assert order == ["slow", "quick"]
        now = 14.0
        gates[0].set()  # slow has had 14 seconds: it comes after both others
        await settle(3)
        assert order[2] == "other"
        now = 14.5
        gates[5].set()
        await settle(4)
        now = 15.0
        gates[4].set()
        await settle(5)
        assert sorted(order[3:5]) == ["quick", "slow"]
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)
        assert sorted(order) == ["other", "quick", "quick"] + ["slow"] * 4
        pool.close()

    asyncio.run(main())


def test_one_caller_cannot_fill_the_queue():
    async def main() -> None:
        pool, gate = Pool(2, 30.0, "t", waiting=4, share=0.5), threading.Event()
        tasks = [asyncio.create_task(pool.run(gate.wait, 20, of="many")) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(ServiceError, match="2 of your requests wait for one of 2 threads") as caught:
            await pool.run(gate.wait, 20, of="many")
        assert caught.value.status == 503
        assert await asyncio.wait_for(pool.run(lambda: 7, of="other"), 20) == 7
        gate.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        pool.close()

    asyncio.run(main())


def test_what_was_used_is_forgotten_in_time_and_of_no_more_callers_than_can_be_kept():
    async def main() -> None:
        now = 0.0
        pool = Pool(1, 30.0, "t", clock=lambda: now)
        for i in range(5000):
            pool._begin(str(i))
            pool._free(str(i), now - i / 1000)
        assert len(pool._used) <= 4096
        assert pool._recent("4999", now) == pytest.approx(4.999)
        assert pool._recent("0", now) == 0.0
        now = 60.0
        assert pool._recent("4999", now) == pytest.approx(4.999 / 4)
        pool.close()

    asyncio.run(main())
