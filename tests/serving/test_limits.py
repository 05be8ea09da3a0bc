"""Limits: exact in one process and over two, told in headers, and closed where they cannot be counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.serving.access import limit_headers
from atonce.serving.errors import ServiceError
from atonce.serving.limits import LimitReachedError, Limits, Standing, Wanted
from atonce.serving.rates import MemoryWindows, parse_limit
from atonce.serving.settings import ServeSettings


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def limits_at(clock: Clock) -> Limits:
    """Limits in memory whose time stands still."""
    limits = Limits(ServeSettings())
    limits._storage.clock = clock
    limits._now = clock
    return limits


async def outcome(limits: Limits, who: str, limit: str, cost: int = 1) -> ServiceError | None:
    try:
        await limits.hit(who, limit, cost)
    except ServiceError as error:
        return error
    return None


# ---- words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("600/minute", [(600, 60)]),
        ("100000/day", [(100_000, 86_400)]),
        ("5 per 10 seconds", [(5, 10)]),
        ("10/second; 100/hour", [(10, 1), (100, 3600)]),
    ],
)
def test_limits_in_words(text: str, found: list[tuple[int, int]]) -> None:
    assert [(item.amount, item.get_expiry()) for item in parse_limit(text)] == found


@pytest.mark.parametrize("text", ["", "often", "10", "10/fortnight", "-1/minute", "0/minute", "2000000/day", "1e9/day"])
def test_words_that_are_no_limit(text: str) -> None:
    with pytest.raises(InputError, match="the rate is"):
        parse_limit(text, "the rate")


def test_settings_are_checked_at_the_start() -> None:
    for settings in (ServeSettings(rate="often"), ServeSettings(image_rate="often")):
        with pytest.raises(InputError, match="rate is 'often'"):
            Limits(settings)
    Limits(ServeSettings(rate="", image_rate=""))  # no limit


# ---- windows in memory


def test_a_window_gives_its_amount_and_not_one_more() -> None:
    clock = Clock()
    limits = limits_at(clock)

    async def run() -> None:
        for _ in range(3):
            assert await outcome(limits, "a", "3/minute") is None
        refusal = await outcome(limits, "a", "3/minute")
        assert (refusal.status, refusal.code, refusal.retry_after) == (429, "rate_limited", 60)
        assert await outcome(limits, "b", "3/minute") is None  # somebody else
        clock.now += 60.001
        for _ in range(3):
            assert await outcome(limits, "a", "3/minute") is None
        assert (await outcome(limits, "a", "3/minute")).status == 429

    asyncio.run(run())


def test_the_window_moves_it_does_not_jump() -> None:
    """A fixed window lets twice its amount through around its end; this one does not."""
    clock = Clock(1059.0)  # a second before a minute ends
    limits = limits_at(clock)

    async def run() -> None:
        for _ in range(5):
            assert await outcome(limits, "a", "5/minute") is None
        clock.now = 1061.0
        refusal = await outcome(limits, "a", "5/minute")
        assert refusal.retry_after == 58

    asyncio.run(run())


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 7)), max_size=60), st.integers(1, 12))
def test_no_window_ever_holds_more_than_the_amount_and_no_room_is_wasted(asked: list[tuple[float, int]], amount: int) -> None:
    clock = Clock()
    limits = limits_at(clock)
    granted: list[tuple[float, int]] = []

    async def run() -> None:
        for wait, cost in asked:
            clock.now += wait
            used = sum(c for t, c in granted if t >= clock.now - 60)
            refusal = await outcome(limits, "a", f"{amount}/minute", cost)
            if cost > amount:
                assert (refusal.status, refusal.code) == (400, "beyond_limit")
            elif used + cost <= amount:
                assert refusal is None
                granted.append((clock.now, cost))
            else:
                assert refusal.status == 429
                # Exactly when it says it would work, and not a second earlier.
                later = clock.now + refusal.retry_after + 1e-6
                assert sum(c for t, c in granted if t >= later - 60) + cost <= amount
                if refusal.retry_after > 1:
                    assert sum(c for t, c in granted if t >= later - 1.00001 - 60) + cost > amount

    asyncio.run(run())


def test_images_cost_what_they_are() -> None:
    clock = Clock()
    limits = limits_at(clock)

    async def run() -> None:
        assert await outcome(limits, "a", "100/hour", 60) is None
        clock.now += 10
        assert await outcome(limits, "a", "100/hour", 40) is None
        assert (await outcome(limits, "a", "100/hour", 1)).retry_after == 3590
        assert (await outcome(limits, "a", "100/hour", 61)).retry_after == 3600  # has to wait for the second too
        beyond = await outcome(limits, "a", "100/hour", 101)
        assert (beyond.status, beyond.code, beyond.retry_after) == (400, "beyond_limit", None)
        assert await outcome(limits, "a", "100/hour", 0) is None

    asyncio.run(run())


def test_of_several_limits_all_or_none_is_used_up() -> None:
    limits = limits_at(Clock())
    wanted = [Wanted("images", "100/hour", 10), Wanted("images", "15/day", 10, "quota")]

    async def run() -> None:
        first = await limits.take("a", wanted)
        assert [(s.limit, s.remaining) for s in first] == [(100, 90), (15, 5)]
        with pytest.raises(LimitReachedError, match="15 images in 86400 s") as caught:
            await limits.take("a", wanted)
        assert caught.value.standing.remaining == 5
        assert (await limits.take("a", [Wanted("images", "100/hour", 1)]))[0].remaining == 89  # the refused 10 do not count

    asyncio.run(run())


def test_headers_tell_of_the_tightest_limit() -> None:
    assert limit_headers([]) == {}
    standings = [Standing("requests", 600, 60, 599, 12.2), Standing("images", 100, 3600, 10, 3000.0)]
    assert limit_headers(standings) == {
        "RateLimit-Limit": "100",
        "RateLimit-Remaining": "10",
        "RateLimit-Reset": "3000",
        "RateLimit-Policy": '"requests";q=600;w=60, "images";q=100;w=3600',
    }
    assert limit_headers(standings[:1])["RateLimit-Reset"] == "13"


def test_memory_forgets_callers_whose_windows_are_empty() -> None:
    clock = Clock()
    windows = MemoryWindows(clock)

    async def run() -> None:
        for wave in range(20):
            for k in range(1000):
                assert await windows.acquire_entry(f"{wave}-{k}", 5, 60)
            clock.now += 61
        assert len(windows) < 3000
        assert await windows.acquire_entry("x", 5, 60, 5)
        for k in range(5000):
            await windows.acquire_entry(f"y{k}", 5, 60)
        assert not await windows.acquire_entry("x", 5, 60)  # a window in use is kept

    asyncio.run(run())


# ---- Redis


@contextlib.contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "redis-server did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
                line.sendall(b"PING\r\n")
                if line.recv(100).startswith(b"+PONG"):
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    port = free_port()
    with redis_server(tmp_path, port):
        yield port


REPLICA = """
import asyncio, json, sys
from atonce.serving.errors import ServiceError
from atonce.serving.limits import Limits
from atonce.serving.settings import ServeSettings

address, limit, count, costs = sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(c) for c in sys.argv[4].split(",")]

async def run():
    limits = Limits(ServeSettings(redis=address))
    assert await limits.working()
    print("ready", flush=True)
    sys.stdin.readline()

    async def one(k):
        try:
            await limits.hit("key:abc", limit, costs[k % len(costs)])
        except ServiceError as error:
            assert error.status == 429, error
            return 0
        return costs[k % len(costs)]

    print(json.dumps(await asyncio.gather(*(one(k) for k in range(count)))))
    await limits.close()

asyncio.run(run())
"""


@pytest.mark.parametrize(("costs", "least"), [("1", 100), ("3,5,7", 98)])
def test_two_replicas_give_exactly_the_amount(redis_port: int, costs: str, least: int) -> None:
    """Two processes, 300 requests at once. With mixed costs the rest is smaller than the smallest that was refused."""
    command = [sys.executable, "-c", REPLICA, f"redis://127.0.0.1:{redis_port}/0", "100/hour", "150", costs]
    replicas = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for replica in replicas:
            assert replica.stdout.readline() == "ready\n"
        for replica in replicas:
            replica.stdin.write("go\n")
            replica.stdin.flush()
        granted = [json.loads(replica.communicate(timeout=120)[0]) for replica in replicas]
    finally:
        for replica in replicas:
            replica.kill()
            replica.wait()
    assert least <= sum(map(sum, granted)) <= 100


def test_redis_tells_the_same_as_memory(redis_port: int) -> None:
    async def run(settings: ServeSettings) -> list[tuple]:
        limits = Limits(settings)
        said: list[tuple] = []
        for cost in (4, 5, 1, 3, 11):
            try:
                standings = await limits.take("a", [Wanted("images", "10/hour", cost)])
                said.append(tuple((s.unit, s.limit, s.window, s.remaining, round(s.reset / 30)) for s in standings))
            except ServiceError as error:
                said.append((error.status, error.code, None if error.retry_after is None else round(error.retry_after / 30)))
        await limits.close()
        return said

    in_memory = asyncio.run(run(ServeSettings()))
    assert in_memory == asyncio.run(run(ServeSettings(redis=f"redis://127.0.0.1:{redis_port}")))
    assert in_memory[0] == (("images", 10, 3600, 6, 120),)
    assert in_memory[-2:] == [(429, "rate_limited", 120), (400, "beyond_limit", None)]


def test_without_redis_nothing_counted_goes_through_and_with_it_everything_goes_on(tmp_path: Path, caplog) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    port = free_port()

    async def run() -> None:
        limits = Limits(ServeSettings(redis=f"redis://:secret@127.0.0.1:{port}"))
        for _ in range(2):
            refusal = await outcome(limits, "a", "10/minute")
            assert (refusal.status, refusal.code, refusal.retry_after) == (503, "limits_unavailable", 2.0)
        assert not await limits.working()
        assert "secret" not in caplog.text
        assert "redis" not in refusal.message.lower()
        assert len(caplog.records) == 1  # the second was refused without asking again
        with redis_server(tmp_path, port):
            limits = Limits(ServeSettings(redis=f"redis://127.0.0.1:{port}"))
            assert await outcome(limits, "a", "10/minute") is None
        refusal = await outcome(limits, "a", "10/minute")
        assert refusal.status == 503
        with redis_server(tmp_path, port):
            limits._away_until = 0.0  # instead of waiting for it
            assert await outcome(limits, "a", "10/minute") is None  # by itself, without a restart
        await limits.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "address", ["localhost:6379", "http://localhost", "redis://", "redis://host:99999999", "file:///etc/passwd"]
)
def test_an_address_that_is_no_redis(address: str) -> None:
    with pytest.raises(InputError, match="address of Redis"):
        Limits(ServeSettings(redis=address))


def test_a_window_counts_and_forgets() -> None:
    now = [100.0]
    windows = MemoryWindows(lambda: now[0])

    async def look() -> tuple[int, float]:
        return await windows.get("a"), await windows.get_expiry("a")

    async def add(amount: int) -> int:
        return await windows.incr("a", 10, amount)

    assert asyncio.run(look()) == (0, 100.0)
    assert asyncio.run(add(2)) == 2
    now[0] = 104.0
    assert asyncio.run(add(3)) == 5
    assert asyncio.run(look()) == (5, 110.0)
    now[0] = 111.0
    assert asyncio.run(look()) == (3, 114.0)
    now[0] = 120.0
    assert asyncio.run(look()) == (0, 120.0)
