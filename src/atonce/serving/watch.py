"""The quality watch: now and then it asks each served model for images, as users do, and looks whether they are what they were.

Every ``watch_seconds`` it takes ``watch_images`` images with fresh seeds, and a few with the reference's own, through the same
engine and backend as the users, in the bulk lane, where they give way to everybody. The reference is made once for each version
from the approved weights, by the plain model and not by the engine, and kept in the state folder.

An alarm is raised by two rounds in a row beyond a limit, or by one beyond a far limit, and ends with two good rounds in a row.
An unchanged model exceeds a limit in at most 0.5 % of its rounds (:data:`~atonce.serving.watch_statistics.USUAL`) and a far one
in 0.001 %, so a false alarm is raised in at most about 4 of 100,000 rounds: with one an hour, once in three years.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atonce.core.images import to_uint8
from atonce.core.streams import permutation
from atonce.evaluation.extractors import Extractor, open_extractor
from atonce.model import ConsistencyModel
from atonce.model_files import weights_digest
from atonce.serving.errors import ServiceError
from atonce.serving.generate import DENOISER_STEPS
from atonce.serving.rows import ask_for
from atonce.serving.watch_reference import Kept, approved_weights, build_reference
from atonce.serving.watch_rule import Standing, repeat_reading
from atonce.serving.watch_statistics import ROUNDS, Reading

if TYPE_CHECKING:
    from atonce.serving.engine import Engine
    from atonce.serving.host import Host
    from atonce.serving.hosts import Hosts
    from atonce.serving.metrics import Metrics
    from atonce.serving.settings import ServeSettings

REPEATS = 32
"""Images of the reference that are asked for again, with the same seeds."""
AT_ONCE = 64
"""Images that are asked for together."""
PATIENCE = 120.0
"""Seconds that a round waits for a busy engine before it is given up."""

_log = logging.getLogger("atonce.serving.watch")


class _Stopped(Exception):
    """The server stops."""


class Watch:
    """Watches all versions of all models of one process.

    Args:
        settings: ``watch_seconds``, ``watch_images`` and the state folder.
        hosts: The models.
        metrics: Where readings and alarms are shown.
        extractor: Name of the offline extractor; ``"auto"`` is EfficientNet-Lite0 for photographs where its package is
            installed, and the pixels for everything else.
        approved: Gives the approved weights of an engine's model.
        pause: Seconds of rest for each second of work while a reference is made beside the traffic.
        seeds: Gives the seed of each round; by default nobody can know it before.
    """

    def __init__(
        self,
        settings: ServeSettings,
        hosts: Hosts,
        metrics: Metrics | None = None,
        *,
        extractor: str = "auto",
        approved: Callable[[Engine, Host], ConsistencyModel] = approved_weights,
        pause: float = 1.0,
        seeds: Callable[[], int] | None = None,
    ) -> None:
        self.settings, self.hosts, self.metrics = settings, hosts, metrics
        self._extractor, self._approved, self._pause, self._seeds = extractor, approved, pause, seeds or _unknown
        self._extractors: dict[tuple[int, ...], Extractor] = {}
        self._kept: dict[tuple[str, str], Kept] = {}
        self._standing: dict[tuple[str, str], Standing] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- life

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="quality-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, within a network call."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
            self._thread = None

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self.round()
            except _Stopped:
                return
            except Exception:
                _log.exception("the quality watch failed")
            if self._stop.wait(max(1.0, self.settings.watch_seconds - (time.monotonic() - begun))):
                return

    def state(self) -> list[dict[str, Any]]:
        """How all versions stand, as JSON values, for ``/healthz``."""
        with self._lock:
            standings = [(where, dataclasses.replace(each)) for where, each in self._standing.items()]
        out = []
        for (model, version), each in standings:
            statistics = {name: dataclasses.asdict(reading) for name, reading in each.readings.items()}
            facts = {"model": model, "version": version, "alarm": each.alarm, "rounds": each.rounds, "last": each.at}
            exceeded = [name for name, reading in each.readings.items() if reading.exceeded]
            out.append({**facts, "exceeded": exceeded, "seed": each.seed, "problem": each.problem, "statistics": statistics})
        return out

    # ---- rounds

    def round(self) -> None:
        """One round of every version that runs now."""
        running = [status for status in self.hosts.statuses() if status.running]
        there = {(status.name, status.version) for status in running}
        with self._lock:
            for gone in set(self._standing) - there:
                del self._standing[gone]
                self._kept.pop(gone, None)
        for status in running:
            try:
                engine = self.hosts.host(status.name).engine("watch", status.version)
            except ServiceError:  # taken off just now
                continue
            self.check(engine, status.name, status.version)

    def check(self, engine: Engine, name: str, version: str) -> Standing:
        """One round of one version.

        Args:
            engine: Its engine.
            name: Name of the model.
            version: The version.

        Returns:
            How it stands now.

        Raises:
            _Stopped: The server stops.
        """
        begun = time.monotonic()
        with self._lock:
            standing = self._standing.setdefault((name, version), Standing())
        seed, raised, readings = self._seeds(), False, {}
        try:
            kept = self._reference(engine, name, version)
            begun = time.monotonic()
            readings = self._readings(engine, kept, seed)
        except _Stopped:
            raise
        except Exception as problem:
            _log.warning("%s %s: a round of the quality watch failed: %s", name, version, problem)
            standing.problem = type(problem).__name__
        else:
            raised = standing.take(readings)
            standing.seed = seed
        standing.at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        exceeded = {each: reading.value for each, reading in readings.items() if reading.exceeded}
        if self.metrics is not None:
            outcome = "failed" if not readings else "exceeded" if exceeded else "good"
            seconds = time.monotonic() - begun
            self.metrics.quality(name, version, readings, alarm=standing.alarm, seconds=seconds, outcome=outcome)
        if exceeded:
            told = ", ".join(f"{each} {value:.4g}" for each, value in exceeded.items())
            _log.warning("%s %s: beyond its limits: %s (seed %d, alarm: %s)", name, version, told, seed, standing.alarm)
        if raised:
            _log.error("%s %s: its images are no longer those of its approved weights", name, version)
        if standing.alarm:
            self._take_back(name, version)
        return standing

    def _take_back(self, name: str, version: str) -> None:
        """Take a canary back; a stable version is for people to judge, and goes on."""
        host = self.hosts.host(name)
        if not any((each["version"], each["role"]) == (version, "canary") for each in host.versions()):
            return
        if self.metrics is not None:
            self.metrics.taking_back(name, version, "quality")
        try:
            host.roll_back()
        except ServiceError as problem:  # versions are being changed just now: the next round tries again
            _log.error("%s %s: the canary could not be taken back: %s", name, version, problem)

    def _readings(self, engine: Engine, kept: Kept, seed: int) -> dict[str, Reading]:
        """What a round finds.

        Raises:
            ServiceError: The engine is busy or stops, so nothing can be said.
        """
        try:
            return self._asked(engine, kept, seed)
        except ServiceError as failure:
            if failure.status != 500:
                raise
            return {"broken": Reading(1.0, (0.0, 1.0), None, 0.0, True, False)}  # its network fails

    def _asked(self, engine: Engine, kept: Kept, seed: int) -> dict[str, Reading]:
        size = kept.reference.size
        classes = len(engine.model.labels or [])
        labels = permutation(seed, 0, size) % classes if classes else None
        images = self._made(engine, size, seed, labels)
        again = self._made(engine, len(kept.repeats), kept.seed, kept.labels if classes else None)
        broken = float((~torch.isfinite(torch.cat([images, again])).flatten(1).all(1)).double().mean())
        off = (to_uint8(again).double() - kept.repeats.double()).abs().flatten(1).mean(1) / 255
        extractor = self._extractor_of(engine.model)
        found = kept.reference.read(kept.reference.rows(to_uint8(images.nan_to_num()), labels, extractor))
        found["repeats"] = repeat_reading(off)
        found["broken"] = Reading(broken, (broken, broken), None, 0.0, broken > 0, broken > 0)
        return found

    def _made(self, engine: Engine, n: int, seed: int, labels: Tensor | None) -> Tensor:
        """Images through the engine, a few at a time, so that they never fill its queue."""
        parts = []
        steps = DENOISER_STEPS if engine.model.kind == "denoiser" else 1
        for first in range(0, n, AT_ONCE):
            count = min(AT_ONCE, n - first)
            asked = None if labels is None else labels[first : first + count]
            ask = ask_for(engine.model, count, steps=steps, seed=seed, first=first, labels=asked)
            parts.append(self._wait(functools.partial(engine.submit, ask, lane="bulk", kind="watch")))
        return torch.cat(parts)

    def _wait(self, submit: Callable[[], Future[Tensor]]) -> Tensor:
        """The result of a request; one that is refused is made again until patience ends.

        Raises:
            ServiceError: The engine stayed busy for too long, or failed.
            _Stopped: The server stops.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                future = submit()
                while True:
                    try:
                        return future.result(timeout=0.5)
                    except FutureTimeoutError:
                        if self._stop.is_set():
                            future.cancel()
                            raise _Stopped from None
            except ServiceError as refusal:
                if refusal.retry_after is None or refusal.status != 503 or time.monotonic() + refusal.retry_after > until:
                    raise
                if self._stop.wait(refusal.retry_after):
                    raise _Stopped from None

    # ---- the reference

    def _extractor_of(self, model: ConsistencyModel) -> Extractor:
        shape = model.image_shape
        if shape not in self._extractors:
            self._extractors[shape] = open_extractor(self._extractor, shape)
        return self._extractors[shape]

    def _reference(self, engine: Engine, name: str, version: str) -> Kept:
        """The reference of a version: from memory, from the disk, or made now."""
        if (name, version) in self._kept:
            return self._kept[name, version]
        model, size = self._approved(engine, self.hosts.host(name)), self.settings.watch_images
        extractor, digest = self._extractor_of(model), weights_digest(model)
        path = Path(self.settings.state) / "watch" / f"{digest[:16]}-{extractor.digest[:8]}-{size}.npz"
        kept = Kept.load(path, digest, extractor.digest, size)
        if kept is None:
            begun = time.monotonic()
            kept = self._make(model, digest, extractor, size)
            kept.save(path)
            _log.info("%s %s: made the reference of the quality watch in %.1f s", name, version, time.monotonic() - begun)
        self._kept[name, version] = kept
        return kept

    def _make(self, model: ConsistencyModel, digest: str, extractor: Extractor, size: int) -> Kept:
        count, classes = 2 * ROUNDS * size, len(model.labels or [])
        seed = int(hashlib.sha256(f"atonce: reference of the quality watch: {digest}".encode()).hexdigest()[:12], 16)
        labels = permutation(seed, 0, count) % classes if classes else None
        steps = DENOISER_STEPS if model.kind == "denoiser" else 1
        parts = []
        for first in range(0, count, AT_ONCE):
            begun = time.monotonic()
            asked = None if labels is None else labels[first : first + AT_ONCE]
            made = model.sample(min(AT_ONCE, count - first), steps, seed, first=first, labels=asked)
            parts.append(to_uint8(made).cpu())
            if self._stop.wait(self._pause * (time.monotonic() - begun)):
                raise _Stopped
        images = torch.cat(parts)
        reference = build_reference(images, labels, classes, extractor, size)
        few = torch.zeros(0, dtype=torch.int64) if labels is None else labels[:REPEATS].clone()
        return Kept(reference, images[:REPEATS].clone(), few, seed, digest, extractor.digest)


def _unknown() -> int:
    return secrets.randbits(52)
