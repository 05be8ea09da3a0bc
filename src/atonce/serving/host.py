"""One served name and its versions: loaded, tried on a share of callers, promoted and rolled back while requests are served."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping

from atonce.core.errors import AtonceError, InputError
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError
from atonce.serving.roles import Role, Roles
from atonce.serving.rows import EngineStatus
from atonce.serving.sources import open_source, open_version, pointed, pointed_before
from atonce.serving.verdicts import order

log = logging.getLogger("atonce.serving")

FAULTS = 3  # failures from which on a canary may be taken back


class Host(Roles):
    """One name, which follows its registry: versions are tried, promoted and rolled back while requests are served."""

    @contextlib.contextmanager
    def older(self, version: str) -> Iterator[Engine]:
        """A version of the registry that is loaded for no caller, to finish what was begun with it.

        Args:
            version: The registry's number.

        Yields:
            Its engine; it is stopped when the last one has given it back.

        Raises:
            ServiceError: 404: it is not in the registry, or cannot be loaded; 503: this process stops.
        """
        with self._older.engine(version) as engine:
            yield engine

    # ---- changes

    def start(self) -> None:
        """Load what serves all callers: the version in use where it has proved itself, else the last one that has.

        Where new versions are tried on a share of callers first, a restart is no way around that: a version in use that has
        not proved itself on any replica becomes the canary, and one that was taken back is not loaded.

        Raises:
            AtonceError: No version can be served.
        """
        with self._one_change():
            wanted, share = pointed(self.source), self.settings.canary_share
            if wanted is None:
                self._take_on(self._started(open_source(self.source.place, self.settings.device)), "stable")
                return
            known = self._verdicts.known()
            choices = order(wanted, pointed_before(self.source), known, share)
            for version in choices:
                try:
                    loaded = self._started(open_version(self.source.place, self.settings.device, version))
                except AtonceError as problem:
                    if version == choices[-1]:
                        raise
                    self._broken.add(version)
                    log.error("%s: version %s cannot serve, an earlier one does: %s", self.name, version, problem)
                    continue
                if known.get(version) == "refused":
                    log.error("%s: version %s was taken back, but there is no other one to serve", self.name, version)
                self._take_on(loaded, "stable")
                if known.get(version) != "refused":
                    self._say(loaded, "proved", "serves all callers")
                break
            self._follow(wanted, known)

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
            role: Role = "canary" if share > 0 and "stable" in self._roles else "stable"
            self._broken.discard(loaded.version)  # its owner wants it
            self._take_on(loaded, role)
            self._say(loaded, "tried" if role == "canary" else "proved", "its owner asked for it")
            return loaded.version

    def promote(self) -> None:
        """Give the canary to all callers.

        Raises:
            ServiceError: 409: there is none, or another change is under way.
        """
        with self._one_change():
            self._promote("its owner asked for it")

    def roll_back(self) -> None:
        """Take the canary off, or go back to the version before.

        The version that is taken off is not loaded again by itself. Requests that it has begun are finished.

        Raises:
            ServiceError: 409: there is neither, or another change is under way.
        """
        with self._one_change():
            self._roll_back("taken back by its owner or by the quality watch")

    def look(self) -> None:
        """One look: whether the registry names another version, and whether a canary has failed or has proved itself.

        Never raises: what goes wrong is logged, and the versions that serve go on.
        """
        try:
            with self._one_change():
                self._judge()
                if (wanted := pointed(self.source)) is not None:
                    known = self._verdicts.known()
                    self._agree(known)
                    self._follow(wanted, known)
        except ServiceError as problem:
            log.info("%s: no look for a new version: %s", self.name, problem.message)
        except Exception:
            log.exception("%s: looking for a new version failed", self.name)

    # ---- inside (one change at a time)

    def _one_change(self) -> _Change:
        return _Change(self._loading, self.name)

    def _judge(self) -> None:
        """Take a canary back whose network fails more often than the stable one's; promote one that served without."""
        with self._lock:
            canary, stable = self._roles.get("canary"), self._roles.get("stable")
        if canary is None or stable is None:
            return
        ours, theirs = canary.engine.status(), stable.engine.status()
        if ours.failures >= FAULTS and _share(ours) > 2 * _share(theirs) + 0.01:
            log.error("%s: canary %s failed %d times, it is taken back", self.name, ours.version, ours.failures)
            self._roll_back(f"as a canary its network failed {ours.failures} times")
        elif self._clock() - canary.since >= self.settings.canary_seconds and ours.calls and not ours.failures:
            self._promote(f"as a canary it served for {self.settings.canary_seconds:g} s without faults")

    def _agree(self, known: Mapping[str, str]) -> None:
        """Do what was found on another replica, or asked for there."""
        with self._lock:
            roles = dict(self._roles)
        ours = {role: known.get(loaded.version) for role, loaded in roles.items() if loaded.place == self.source.place}
        if ours.get("canary") == "refused":
            self._roll_back("taken back on another replica")
        elif ours.get("canary") == "proved":
            self._promote("proved on another replica")
        elif ours.get("stable") == "refused" and "canary" not in roles:
            if ours.get("previous", "refused") != "refused":
                self._roll_back("taken back on another replica")
            elif proved := [version for version, word in known.items() if word == "proved" and version not in self._broken]:
                try:
                    earlier = self._started(open_version(self.source.place, self.settings.device, proved[-1]))
                except AtonceError as problem:
                    self._broken.add(proved[-1])
                    log.error("%s: version %s cannot serve, nothing has changed: %s", self.name, proved[-1], problem)
                else:
                    self._take_on(earlier, "stable")

    def _follow(self, wanted: str, known: Mapping[str, str]) -> None:
        """Make the version that the registry names the one that serves, or is tried."""
        passed = wanted in self._broken or known.get(wanted) == "refused"
        with self._lock:
            roles = dict(self._roles)
        known = {loaded.version: role for role, loaded in roles.items()}
        role, canary = known.get(wanted), roles.get("canary")
        if role == "canary":
            return
        if canary is not None and canary.place == self.source.place and (role is not None or passed):
            self._roll_back("the registry names another version")
        if role == "previous":
            self._roll_back("the registry names the version before")
        if role is not None or passed:
            return
        try:
            loaded = self._started(open_source(self.source.place, self.settings.device))
        except AtonceError as problem:
            self._broken.add(wanted)
            log.error("%s: version %s cannot serve, nothing has changed: %s", self.name, wanted, problem)
            return
        loaded.share = 0.0 if known.get(wanted) == "proved" else self.settings.canary_share
        self._take_on(loaded, "canary" if loaded.share > 0 else "stable")
        if loaded.share == 0:
            self._say(loaded, "proved", "serves all callers")


class _Change:
    """Held while versions change; refused where another change is under way."""

    def __init__(self, lock: threading.Lock, name: str) -> None:
        self.lock, self.name = lock, name

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise ServiceError(409, "busy", f"versions of {self.name} are being changed: try again when that is done")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _share(status: EngineStatus) -> float:
    return status.failures / max(status.calls, status.failures, 1)
