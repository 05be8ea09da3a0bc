"""Versions that are no longer served, loaded for as long as somebody finishes what was begun with them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from atonce.core.errors import AtonceError
from atonce.serving.engine import Engine
from atonce.serving.errors import ServiceError, not_found


class Older:
    """Engines of versions that no caller gets; those who need the same one share it.

    Args:
        name: Of the model.
        start: Gives a started engine of a version, or raises what keeps it from being loaded.
    """

    def __init__(self, name: str, start: Callable[[str], Engine]) -> None:
        self._name, self._start = name, start
        self._changing = threading.Lock()
        self._engines: dict[str, tuple[Engine, int]] = {}
        self._closed = False

    @contextlib.contextmanager
    def engine(self, version: str) -> Iterator[Engine]:
        """The engine of a version, loaded where it is not.

        Args:
            version: The version.

        Yields:
            The engine, until it is given back.

        Raises:
            not_found: 404: it cannot be loaded.
            ServiceError: 503: the process stops.
        """
        with self._changing:
            if self._closed:
                raise ServiceError(503, "draining", "this server is stopping", retry_after=1.0)
            if version in self._engines:
                engine, users = self._engines[version]
            else:
                try:
                    engine, users = self._start(version), 0
                except ServiceError as problem:
                    if problem.status == 503:
                        raise
                    raise not_found(f"{self._name} cannot load version {version[:80]!r} again", "version") from problem
                except AtonceError as problem:
                    raise not_found(f"{self._name} has no version {version[:80]!r} any more", "version") from problem
            self._engines[version] = engine, users + 1
        try:
            yield engine
        finally:
            with self._changing:
                engine, users = self._engines[version]
                if users > 1:
                    self._engines[version] = engine, users - 1
                else:
                    del self._engines[version]
            if users <= 1:
                engine.stop(0)

    def close(self) -> None:
        """Give out no more, and end what runs."""
        with self._changing:
            self._closed = True
            engines = [engine for engine, _ in self._engines.values()]
        for engine in engines:
            engine.stop(0)
