"""The versions of one served name at work: which caller gets which, and how a version comes to its role and leaves it."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from atonce.core.errors import InputError
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError, draining, not_found
from atonce.serving.observe import Observer
from atonce.serving.older import Older
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.sources import Opened, Source, open_version
from atonce.serving.turns import Turns
from atonce.serving.verdicts import Verdicts

log = logging.getLogger("atonce.serving")

Role = Literal["stable", "canary", "previous"]

GRACE = 2.0  # seconds in which a version that was taken off still takes requests of those who had just been sent to it


@dataclass(eq=False)
class Loaded:
    """One version at work.

    Attributes:
        engine: Its engine.
        place: Where it was read.
        share: Share of callers, while it is a canary.
        since: When it came to its role, on the clock of the hosts.
    """

    engine: Engine
    place: str
    share: float = 0.0
    since: float = 0.0

    @property
    def version(self) -> str:
        """Its version."""
        return self.engine.version


class Roles:
    """``stable`` for all callers, ``canary`` for a share of them, ``previous`` kept ready for a roll-back.

    Args:
        source: What is served.
        settings: Settings of the server.
        observer: Is told what happens.
        turns: Turns on the device.
        clock: Gives the time in seconds.
        engine_of: Makes an engine.
    """

    def __init__(
        self,
        source: Source,
        settings: ServeSettings,
        observer: Observer,
        *,
        turns: Turns | None = None,
        clock: Callable[[], float] = time.monotonic,
        engine_of: Callable[..., Engine] = Engine,
    ) -> None:
        self.source, self.settings = source, settings
        self._observer, self._turns, self._clock, self._engine_of = observer, turns or Turns(), clock, engine_of
        self._lock = threading.Lock()  # of the roles, held for moments
        self._loading = threading.Lock()  # one change at a time
        self._roles: dict[Role, Loaded] = {}
        self._leaving: set[Engine] = set()
        self._closing = threading.Event()
        self._broken: set[str] = set()  # versions that did not start here: not loaded again by themselves
        self._verdicts = Verdicts(source, settings.state)
        self._older = Older(source.name, self._started_again)

    @property
    def name(self) -> str:
        """Its name."""
        return self.source.name

    # ---- who is served by what

    def engine(self, caller: str, version: str | None = None) -> Engine:
        """The engine for a caller: the same one each time, as long as the versions stay.

        Args:
            caller: Who asks; a canary gets the callers whose hash with its version falls into its share.
            version: One that is loaded, instead.

        Returns:
            The engine.

        Raises:
            not_found: 404: that version is not loaded.
            draining: 503: none is.
        """
        with self._lock:
            roles = dict(self._roles)
        if version is not None:
            for loaded in roles.values():
                if loaded.version == version:
                    return loaded.engine
            known = ", ".join(loaded.version for loaded in roles.values())
            raise not_found(f"{self.name} has no version {version[:80]!r} here: it has {known}", "version")
        canary = roles.get("canary")
        if canary is not None and _place(self.name, canary.version, caller) < canary.share:
            return canary.engine
        if "stable" not in roles:
            raise draining()
        return roles["stable"].engine

    def versions(self) -> list[dict[str, Any]]:
        """Each version that is loaded: ``version``, ``role``, ``share`` of callers, ``source``, and how it does."""
        with self._lock:
            roles = dict(self._roles)
        canary = roles["canary"].share if "canary" in roles else 0.0
        shares = {"stable": 1 - canary, "canary": canary, "previous": 0.0}
        out = []
        for role, loaded in roles.items():
            status = loaded.engine.status()
            facts = {"backend": status.backend, "running": status.running, "images": status.images, "failures": status.failures}
            out.append(
                {"version": loaded.version, "role": role, "share": shares[role], "source": loaded.place, **facts}
                | {"seconds": round(self._clock() - loaded.since, 1)}
            )
        return out

    def statuses(self) -> list[EngineStatus]:
        """Engines that serve now."""
        with self._lock:
            serving = [self._roles[role] for role in ("stable", "canary") if role in self._roles]
        return [loaded.engine.status() for loaded in serving]

    def close(self, seconds: float) -> None:
        """Stop all versions: refuse new requests, finish those that were accepted.

        Args:
            seconds: Time to finish.
        """
        self._closing.set()
        self._older.close()
        with self._lock:
            engines = {loaded.engine for loaded in self._roles.values()} | self._leaving
        if engines:
            with ThreadPoolExecutor(len(engines)) as pool:
                list(pool.map(lambda engine: engine.stop(seconds), engines))
        with self._lock:
            self._roles.clear()

    # ---- inside (one change at a time)

    def _started(self, opened: Opened) -> Loaded:
        """An engine that has proved to work: it has measured itself, and made finite images."""
        with self._lock:
            roles = dict(self._roles)
        if any(loaded.version == opened.version for loaded in roles.values()):
            raise ServiceError(409, "loaded", f"{self.name} has version {opened.version} loaded already", param="version")
        if "stable" in roles:
            old = roles["stable"].engine.model
            if old.shape != opened.model.shape or old.labels != opened.model.labels:
                line = f"version {opened.version} makes other images or classes than {self.name} does: serve it by another name"
                raise ServiceError(409, "other_images", line, param="source")
        return Loaded(self._engine(opened), opened.place)

    def _started_again(self, version: str) -> Engine:
        """An engine of a version of the registry, beside those that serve.

        Raises:
            InputError: The source is no registry's.
        """
        if not self.source.entry:
            raise InputError(f"{self.name} comes from no registry: it has no other versions")
        return self._engine(open_version(self.source.place, self.settings.device, version))

    def _engine(self, opened: Opened) -> Engine:
        engine = self._engine_of(
            opened.model,
            self.settings,
            name=self.name,
            version=opened.version,
            observer=self._observer,
            turns=self._turns,
            clock=self._clock,
        )
        try:
            engine.start()
        except Exception as problem:
            self._broken.add(opened.version)
            if isinstance(problem, ServiceError) and problem.code == "broken":
                raise ServiceError(409, "broken", problem.message, param="source") from problem
            raise
        if self._closing.is_set():
            engine.stop(0)
            raise draining()
        return engine

    def _take_on(self, loaded: Loaded, role: Role) -> None:
        loaded.since = self._clock()
        with self._lock:
            gone = [self._roles.pop("canary", None)]
            if role == "stable" and "stable" in self._roles:
                gone.append(self._roles.pop("previous", None))
                self._roles["previous"] = self._roles["stable"]
            self._roles[role] = loaded
            previous = self._roles.get("previous")
        log.info("%s: version %s is %s now", self.name, loaded.version, role)
        self._observer.loaded(self.name, loaded.version, role)
        if role == "stable" and previous is not None:
            self._observer.loaded(self.name, previous.version, "gone")
        for each in gone:
            if each is not None and each is not loaded:
                self._take_off(each)

    def _take_off(self, loaded: Loaded) -> None:
        """Let a version finish what it has begun, in the background."""
        self._observer.loaded(self.name, loaded.version, "gone")
        engine = loaded.engine
        with self._lock:
            self._leaving.add(engine)

        def leave() -> None:
            self._closing.wait(GRACE)
            engine.stop(self.settings.drain_seconds if self._closing.is_set() else self.settings.request_seconds)
            with self._lock:
                self._leaving.discard(engine)

        threading.Thread(target=leave, name=f"leaving-{self.name}", daemon=True).start()

    def _say(self, loaded: Loaded, word: str, reason: str) -> None:
        """Write down what is found of a version of the registry, for later processes and for the other replicas."""
        if loaded.place == self.source.place:
            self._verdicts.say(loaded.version, word, reason)

    def _promote(self, reason: str) -> None:
        with self._lock:
            canary = self._roles.get("canary")
        if canary is None:
            raise ServiceError(409, "no_canary", f"{self.name} has no canary to promote")
        self._take_on(canary, "stable")
        self._say(canary, "proved", reason)

    def _roll_back(self, reason: str) -> None:
        with self._lock:
            roles = dict(self._roles)
            if "canary" in roles:
                gone = self._roles.pop("canary")
            elif "previous" in roles:
                gone, self._roles["stable"] = self._roles["stable"], self._roles.pop("previous")
                self._roles["stable"].since = self._clock()
            else:
                raise ServiceError(409, "no_version", f"{self.name} has no canary to take off and no version to go back to")
            stable = self._roles["stable"]
        log.warning("%s: version %s was taken back, %s serves: %s", self.name, gone.version, stable.version, reason)
        if "canary" not in roles:
            self._observer.loaded(self.name, stable.version, "stable")
        self._take_off(gone)
        self._say(gone, "refused", reason)


def _place(name: str, version: str, caller: str) -> float:
    """Where a caller falls in [0, 1): the same on every replica, and another one for each version."""
    digest = hashlib.sha256(f"{name}\0{version}\0{caller}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
