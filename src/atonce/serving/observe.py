"""What the parts of the service report while they work; the metrics listen, tests and benchmarks need not."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Is told of events. Calls come from several threads and must return at once and never fail."""

    def batch(self, model: str, version: str, rows: int, padded: int, seconds: float) -> None:
        """One network call was made for ``rows`` rows, filled up to ``padded``."""

    def waited(self, model: str, version: str, lane: str, seconds: float) -> None:
        """A request waited from its acceptance to its first network call."""

    def queued(self, model: str, version: str, rows: int) -> None:
        """Rows that wait now."""

    def made(self, model: str, version: str, kind: str, images: int) -> None:
        """Images were finished; ``kind`` is ``generate``, the name of an edit, or ``watch``."""

    def refused(self, model: str, reason: str) -> None:
        """Work was refused (``overloaded``, ``expired``, ``cancelled``, ``draining``)."""

    def encoded(self, form: str, images: int, seconds: float) -> None:
        """Images were written as ``png``, ``webp``, ``jpeg`` or ``npz``."""

    def job(self, kind: str, status: str) -> None:
        """A job reached a status."""

    def loaded(self, model: str, version: str, role: str) -> None:
        """A version was put to work (``stable``, ``canary``) or taken off (``gone``)."""

    def edited(self, model: str, statistics: dict[str, float]) -> None:
        """Facts of an image that came in for an edit (mean, spread, ...), for the watch over the input."""


class Silent:
    """An observer that listens to nothing."""

    def batch(self, model: str, version: str, rows: int, padded: int, seconds: float) -> None:
        """Nothing."""

    def waited(self, model: str, version: str, lane: str, seconds: float) -> None:
        """Nothing."""

    def queued(self, model: str, version: str, rows: int) -> None:
        """Nothing."""

    def made(self, model: str, version: str, kind: str, images: int) -> None:
        """Nothing."""

    def refused(self, model: str, reason: str) -> None:
        """Nothing."""

    def encoded(self, form: str, images: int, seconds: float) -> None:
        """Nothing."""

    def job(self, kind: str, status: str) -> None:
        """Nothing."""

    def loaded(self, model: str, version: str, role: str) -> None:
        """Nothing."""

    def edited(self, model: str, statistics: dict[str, float]) -> None:
        """Nothing."""
