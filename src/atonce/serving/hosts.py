"""The models of a process, by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from atonce.core.errors import InputError
from atonce.serving.engine import Engine
from atonce.serving.errors import not_found
from atonce.serving.host import Host
from atonce.serving.observe import Observer, Silent
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.sources import parse
from atonce.serving.turns import Turns


class Hosts:
    """All models of a process.

    Args:
        settings: Settings of the server.
        observer: Is told what happens.
        clock: Gives the time in seconds.
        engine_of: Makes an engine.

    Raises:
        InputError: A name cannot be used, or comes twice.
    """

    def __init__(
        self,
        settings: ServeSettings,
        observer: Observer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        engine_of: Callable[..., Engine] = Engine,
    ) -> None:
        self.settings = settings
        turns = Turns()
        self._hosts: dict[str, Host] = {}
        for text in settings.models:
            source = parse(text)
            if source.name in self._hosts:
                raise InputError(f"two models are called {source.name}: give one of them another name, NAME=SOURCE")
            self._hosts[source.name] = Host(
                source, settings, observer or Silent(), turns=turns, clock=clock, engine_of=engine_of
            )
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = False

    def start(self) -> None:
        """Open all models, choose their backends, warm up.

        Raises:
            InputError: There is none, or one cannot be served.
            AtonceError: One cannot be opened; those that were started are stopped.
        """
        if not self._hosts:
            raise InputError("there is no model to serve: name one, for example digits")
        try:
            for host in self._hosts.values():
                host.start()
        except BaseException:
            self.stop()
            raise
        self._started = True
        if self.settings.reload_seconds > 0:
            self._thread = threading.Thread(target=self._look, name="versions", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Refuse new requests, finish those that were accepted within the time of the settings, and end the rest."""
        self._started = False
        self._stopping.set()
        if self._hosts:
            with ThreadPoolExecutor(len(self._hosts)) as pool:
                list(pool.map(lambda host: host.close(self.settings.drain_seconds), self._hosts.values()))
        if self._thread is not None:
            self._thread.join(5.0)

    def names(self) -> list[str]:
        """Names, in the order of the settings."""
        return list(self._hosts)

    @property
    def default(self) -> str:
        """The name that is meant where a request has none: the first."""
        return self.names()[0]

    def host(self, name: str) -> Host:
        """One model.

        Args:
            name: Its name.

        Returns:
            The model and its versions.

        Raises:
            not_found: 404: there is none of that name.
        """
        if name not in self._hosts:
            raise not_found(f"there is no model {name[:80]!r}: served are {', '.join(self._hosts)}", "model")
        return self._hosts[name]

    def statuses(self) -> list[EngineStatus]:
        """All engines that serve now, stable ones and canaries."""
        return [status for host in self._hosts.values() for status in host.statuses()]

    @property
    def ready(self) -> bool:
        """Whether every model has a version that takes requests."""
        return self._started and all(any(s.running for s in host.statuses()) for host in self._hosts.values())

    def _look(self) -> None:
        while not self._stopping.wait(self.settings.reload_seconds):
            for host in self._hosts.values():
                host.look()
