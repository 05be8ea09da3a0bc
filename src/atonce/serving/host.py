"""One served name and its versions: loaded, tried on a share of callers, promoted and rolled back while requests are served."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from atonce.core.errors import AtonceError, InputError
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError, draining, not_found
from atonce.serving.observe import Observer
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.sources import Opened, Source, open_source, pointed
from atonce.serving.turns import Turns

log = logging.getLogger("atonce.serving")

Role = Literal["stable", "canary", "previous"]

GRACE = 2.0  # seconds in which a version that was taken off still takes requests of those who had just been sent to it
FAULTS = 3  # failures from which on a canary may be taken back


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


class Host:
    """One name: ``stable`` for all callers, ``canary`` for a share of them, ``previous`` kept ready for a roll-back.

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
        self._passed: set[str] = set()  # versions that failed or were taken back: not loaded again by themselves

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

    # ---- changes

    def load(self, place: str, version: str | None = None, canary: float | None = None) -> str:
        """Load a version; it takes over, for all callers or for a share of them, when it has proved to work.

        Args:
            place: A registry entry, or what ``atonce.load`` takes.
            version: What to call it; default: the registry's number, or the start of the digest of the weights.
            canary: Share of callers; 0: all; default: of the settings.

        Returns:
            Its version.

        Raises:
            ServiceError: 409: another change is under way, it is loaded already, it does not make the same images, or its
                images are no numbers. The versions that serve are as they were.
            InputError: The share is none, or it makes no pictures.
            AtonceError: It cannot be opened.
        """
        share = self.settings.canary_share if canary is None else canary
        if not 0 <= share <= 1:
            raise InputError(f"canary is {share}, must be a share from 0 to 1")
        with self._one_change():
            loaded = self._started(open_source(place, self.settings.device, version))
            loaded.share = share
            self._passed.discard(loaded.version)  # its owner wants it
            self._take_on(loaded, "canary" if share > 0 and "stable" in self._roles else "stable")
            return loaded.version

    def promote(self) -> None:
        """Give the canary to all callers.

        Raises:
            ServiceError: 409: there is none, or another change is under way.
        """
        with self._one_change():
            self._promote()

    def roll_back(self) -> None:
        """Take the canary off, or go back to the version before.

        The version that is taken off is not loaded again by itself. Requests that it has begun are finished.

        Raises:
            ServiceError: 409: there is neither, or another change is under way.
        """
        with self._one_change():
            self._roll_back()

    def close(self, seconds: float) -> None:
        """Stop all versions: refuse new requests, finish those that were accepted.

        Args:
            seconds: Time to finish.
        """
        self._closing.set()
        with self._lock:
            engines = {loaded.engine for loaded in self._roles.values()} | self._leaving
        if engines:
            with ThreadPoolExecutor(len(engines)) as pool:
                list(pool.map(lambda engine: engine.stop(seconds), engines))
        with self._lock:
            self._roles.clear()

    def look(self) -> None:
        """One look: whether the registry names another version, and whether a canary has failed or has proved itself.

        Never raises: what goes wrong is logged, and the versions that serve go on.
        """
        try:
            with self._one_change():
                self._judge()
                if (wanted := pointed(self.source)) is not None:
                    self._follow(wanted)
        except ServiceError as problem:
            log.info("%s: no look for a new version: %s", self.name, problem.message)
        except Exception:
            log.exception("%s: looking for a new version failed", self.name)

    # ---- inside (one change at a time)

    def _one_change(self) -> _Change:
        return _Change(self._loading, self.name)

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
            self._passed.add(opened.version)
            if isinstance(problem, ServiceError) and problem.code == "broken":
                raise ServiceError(409, "broken", problem.message, param="source") from problem
            raise
        if self._closing.is_set():
            engine.stop(0)
            raise draining()
        return Loaded(engine, opened.place)

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

    def _promote(self) -> None:
        with self._lock:
            canary = self._roles.get("canary")
        if canary is None:
            raise ServiceError(409, "no_canary", f"{self.name} has no canary to promote")
        self._take_on(canary, "stable")

    def _roll_back(self) -> None:
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
        self._passed.add(gone.version)
        log.warning("%s: version %s was taken back, %s serves", self.name, gone.version, stable.version)
        if "canary" not in roles:
            self._observer.loaded(self.name, stable.version, "stable")
        self._take_off(gone)

    def _judge(self) -> None:
        """Take a canary back whose network fails more often than the stable one's; promote one that served without."""
        with self._lock:
            canary, stable = self._roles.get("canary"), self._roles.get("stable")
        if canary is None or stable is None:
            return
        ours, theirs = canary.engine.status(), stable.engine.status()
        if ours.failures >= FAULTS and _share(ours) > 2 * _share(theirs) + 0.01:
            log.error("%s: canary %s failed %d times, it is taken back", self.name, ours.version, ours.failures)
            self._roll_back()
        elif self._clock() - canary.since >= self.settings.canary_seconds and ours.calls and not ours.failures:
            self._promote()

    def _follow(self, wanted: str) -> None:
        """Make the version that the registry names the one that serves, or is tried."""
        with self._lock:
            roles = dict(self._roles)
        known = {loaded.version: role for role, loaded in roles.items()}
        role, canary = known.get(wanted), roles.get("canary")
        if role == "canary":
            return
        if canary is not None and canary.place == self.source.place and (role is not None or wanted in self._passed):
            self._roll_back()  # the registry has taken back what is tried here
        if role == "previous":
            self._roll_back()
        if role is not None or wanted in self._passed:
            return
        try:
            loaded = self._started(open_source(self.source.place, self.settings.device))
        except AtonceError as problem:
            self._passed.add(wanted)
            log.error("%s: version %s cannot serve, nothing has changed: %s", self.name, wanted, problem)
            return
        loaded.share = self.settings.canary_share
        self._take_on(loaded, "canary" if loaded.share > 0 else "stable")


class _Change:
    """Held while versions change; refused where another change is under way."""

    def __init__(self, lock: threading.Lock, name: str) -> None:
        self.lock, self.name = lock, name

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise ServiceError(409, "busy", f"versions of {self.name} are being changed: try again when that is done")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _place(name: str, version: str, caller: str) -> float:
    """Where a caller falls in [0, 1): the same on every replica, and another one for each version."""
    digest = hashlib.sha256(f"{name}\0{version}\0{caller}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _share(status: EngineStatus) -> float:
    return status.failures / max(status.calls, status.failures, 1)
