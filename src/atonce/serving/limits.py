"""Limits on requests and images of each caller: exact moving windows, in this process or in Redis for all replicas together.

Where a Redis is set and cannot be asked, requests that would be counted are refused with 503 and Retry-After. Letting them
through would turn its failure into a way around every limit and quota; health checks and metrics are not counted and go on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from limits import RateLimitItem
from limits.aio.storage import MovingWindowSupport, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from atonce.core.errors import InputError, MissingExtraError
from atonce.serving.errors import ServiceError
from atonce.serving.rates import MemoryWindows, parse_limit
from atonce.serving.settings import ServeSettings

REDIS_SECONDS = 5.0
"""Longest wait for Redis."""
QUESTIONS = 32
"""Asked of Redis at once, each on a connection of its own. Further ones wait for these, not for Redis, so that a crowd of
requests is no reason for a timeout."""
AWAY_SECONDS = 1.0
"""After a failure Redis is left alone for so long, so that requests are refused at once instead of after a wait each."""

_T = TypeVar("_T")
_log = logging.getLogger("atonce.serving.limits")


@dataclass(frozen=True)
class Wanted:
    """What a request would use up.

    Attributes:
        unit: ``requests`` or ``images``.
        limit: In words, for example ``600/minute``; ``None`` or empty for no limit.
        cost: Units.
        name: What separates windows of the same unit and limit, such as a quota beside a rate.
    """

    unit: str
    limit: str | None
    cost: int = 1
    name: str = "rate"


@dataclass(frozen=True)
class Standing:
    """How one limit of a caller stands.

    Attributes:
        unit: ``requests`` or ``images``.
        limit: Units in one window.
        window: Its length, seconds.
        remaining: Units left now.
        reset: Seconds until the next unit comes back; 0 where all are there.
    """

    unit: str
    limit: int
    window: int
    remaining: int
    reset: float


class LimitReachedError(ServiceError):
    """429, with the limit that was reached."""

    def __init__(self, standing: Standing, cost: int, wait: float) -> None:
        seconds = max(1, math.ceil(wait))
        unit = standing.unit if cost > 1 else standing.unit.removesuffix("s")
        message = (
            f"{cost} more {unit} would exceed the limit of {standing.limit} {standing.unit} in {standing.window} s"
            f" ({standing.remaining} left now): try again in {seconds} s"
        )
        super().__init__(429, "rate_limited", message, retry_after=seconds)
        self.standing = standing


class Limits:
    """Counts what callers use.

    Args:
        settings: ``redis`` says where; the rates are checked.

    Raises:
        InputError: A rate or the address of Redis cannot be used.
    """

    def __init__(self, settings: ServeSettings) -> None:
        for text, what in ((settings.rate, "the rate"), (settings.image_rate, "the image rate")):
            if text:
                parse_limit(text, what)
        self._away_until = 0.0
        self._at_once = asyncio.Semaphore(QUESTIONS)
        self._storage: MemoryWindows | RedisStorage
        if settings.redis is None:
            self._storage, self._now = MemoryWindows(), time.monotonic
        else:
            self._storage, self._now = _redis(settings.redis), time.time
        self._windows = MovingWindowRateLimiter(self._storage)
        own = self._storage.base_exceptions
        self._failures: tuple[type[Exception], ...] = (OSError, TimeoutError, *(own if isinstance(own, tuple) else (own,)))

    async def hit(self, who: str, limit: str | None, cost: int = 1, *, unit: str = "requests") -> list[Standing]:
        """Use up units of one limit; see :meth:`take`."""
        return await self.take(who, [Wanted(unit, limit, cost)])

    async def take(self, who: str, wanted: Sequence[Wanted]) -> list[Standing]:
        """Use up units of several limits, or of none where one has too few.

        Each limit is exact whatever happens at once in however many processes: no more than its amount is ever taken. Where
        two requests of one caller race for the last units of two limits, units of the one that is refused may count.

        Args:
            who: The caller.
            wanted: What is needed.

        Returns:
            How the limits stand afterwards.

        Raises:
            ServiceError: 429 with the time after which it would work; 400 for more than a limit can ever give; 503 where Redis
                cannot be asked.
        """
        items = [(want, item) for want in wanted if want.limit and want.cost > 0 for item in parse_limit(want.limit)]
        for want, item in items:
            if want.cost > item.amount:
                message = f"{want.cost} {want.unit} at once are more than the limit of {item.amount} in {item.get_expiry()} s"
                field = "n" if want.unit == "images" else None
                raise ServiceError(400, "beyond_limit", f"{message}: ask for fewer", param=field)
        if len(items) > 1:
            for want, item in items:
                test = functools.partial(self._windows.test, item, who, want.unit, want.name, cost=want.cost)
                if not await self._ask(test):
                    raise await self._reached(who, want, item)
        for want, item in items:
            hit = functools.partial(self._windows.hit, item, who, want.unit, want.name, cost=want.cost)
            if not await self._ask(hit):
                raise await self._reached(who, want, item)
        return [await self._standing(who, want, item) for want, item in items]

    async def working(self) -> bool:
        """Whether units can be counted now."""
        try:
            return bool(await self._ask(self._storage.check))
        except ServiceError:
            return False

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        if isinstance(self._storage, RedisStorage):
            await cast(Any, self._storage.bridge).get_connection().aclose()

    async def _reached(self, who: str, want: Wanted, item: RateLimitItem) -> LimitReachedError:
        standing = await self._standing(who, want, item)
        # The unit that has to leave the window before this cost fits: in the order of time, newest first, number amount - cost.
        start, _ = await self._window(who, want, item, item.amount - want.cost + 1)
        return LimitReachedError(standing, want.cost, start + item.get_expiry() - self._now())

    async def _standing(self, who: str, want: Wanted, item: RateLimitItem) -> Standing:
        start, used = await self._window(who, want, item, item.amount)
        reset = max(0.0, start + item.get_expiry() - self._now()) if used else 0.0
        return Standing(want.unit, item.amount, item.get_expiry(), max(0, item.amount - used), reset)

    async def _window(self, who: str, want: Wanted, item: RateLimitItem, newest: int) -> tuple[float, int]:
        storage: MovingWindowSupport = self._storage
        key = item.key_for(who, want.unit, want.name)
        return await self._ask(lambda: storage.get_moving_window(key, newest, item.get_expiry()))

    async def _ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the storage.

        Raises:
            ServiceError: 503 where it cannot be asked.
        """
        async with self._at_once:
            if time.monotonic() >= self._away_until:
                try:
                    return await question()
                except self._failures as error:
                    self._failed(error)
        message = "the limits cannot be counted at the moment: try again in a few seconds"
        raise ServiceError(503, "limits_unavailable", message, retry_after=2.0)

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._away_until:  # else another question has just failed too
            # The text of such an error can hold the address with its password.
            _log.error("Redis, which counts the limits, cannot be asked (%s): requests are refused", type(error).__name__)
        self._away_until = now + AWAY_SECONDS


def _redis(address: str) -> RedisStorage:
    """A storage in Redis; it connects when it is first asked.

    Raises:
        InputError: The address is none.
        MissingExtraError: The package for Redis is missing.
    """
    try:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise MissingExtraError("limits in Redis need more packages: pip install 'atonce[serve]'") from error
    scheme = address.split("://")[0]
    try:
        parts = urlsplit(address)
        usable = scheme in ("redis", "rediss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            "the address of Redis cannot be used: give one like redis://HOST:6379/0 or rediss://:PASSWORD@HOST:6379"
        )
    return RedisStorage(
        f"async+{address}",
        implementation="redispy",
        key_prefix="atonce",
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
    )
