"""What a server measures about itself, for Prometheus: its own registry, few labels, names that begin with ``atonce_``.

Labels come from short lists: routes are templates, not paths; models and versions are those that were loaded; a word that a
caller chose never becomes a label. The metrics of a version that was taken off go with it, so reloading every hour for a year
does not fill the memory.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from atonce.core.errors import MissingExtraError
from atonce.core.version import VERSION
from atonce.serving.input_drift import InputDrift
from atonce.serving.observe import Observer, Silent

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.gc_collector import GCCollector
    from prometheus_client.process_collector import ProcessCollector
except ImportError as problem:  # pragma: no cover - depends on the installation
    raise MissingExtraError("the server's metrics need prometheus_client: pip install 'atonce[serve]'") from problem

if TYPE_CHECKING:
    from atonce.serving.rows import EngineStatus
    from atonce.serving.settings import ServeSettings
    from atonce.serving.watch_statistics import Reading

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
OTHER = "other"
"""The label of everything that is not in a list."""
KEPT = 8
"""Versions of a model, taken off, whose counters are still shown, so that Prometheus sees their last values."""


class Metrics:
    """Listens to all parts of the service (an :class:`~atonce.serving.observe.Observer`) and answers Prometheus.

    Args:
        settings: The service's; None for tests.
    """

    def __init__(self, settings: ServeSettings | None = None) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.catalogue: dict[str, frozenset[str]] = {}
        self.drift = InputDrift()
        self.also: Observer = Silent()  # is told of calls, waits and encoding too: the tracing, where it is on
        self._roles: dict[tuple[str, str], str] = {}
        self._gone: dict[str, deque[str]] = {}
        self._known: set[str] = set()
        self._reasons: dict[tuple[str, str], str] = {}
        self._statuses: Callable[[], Iterable[EngineStatus]] = tuple
        self._jobs: Callable[[], Mapping[str, int]] = dict
        self._ready: Callable[[], bool] = lambda: True
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        self.http_requests = counter("http_requests", "Requests answered", "route", "method", "status")
        self.http_seconds = histogram("http_request_seconds", "Time from a request to the end of its answer", SECONDS, "route")
        self.http_open = gauge("http_open_requests", "Requests being answered now")
        self.http_bytes = counter("http_answer_bytes", "Bytes of the bodies of answers", "route")

        self.queue_rows = gauge("queue_rows", "Rows that wait for a network call now", "model", "version")
        self.queue_wait = histogram(
            "queue_wait_seconds", "Wait of a request for its first network call", SECONDS, "model", "lane"
        )
        self.batch_rows = histogram("batch_rows", "Rows of a network call", ROWS, "model")
        self.batch_padding = counter("batch_padding_rows", "Rows that only filled a call up to its bucket", "model")
        self.network_seconds = histogram("network_seconds", "Time of a network call", SECONDS, "model")
        self.images = counter("images", "Images finished", "model", "version", "kind")
        self.refused_total = counter("refused", "Work that was refused or given up", "model", "reason")
        self.encode_seconds = histogram("encode_seconds", "Time to write the images of an answer", SECONDS, "format")
        self.encoded_images = counter("encoded_images", "Images written into answers", "format")
        self.job_events = counter("job_events", "Jobs that reached a status", "kind", "status")
        self.roll_backs = counter("roll_backs", "Canaries that were taken off again", "model", "reason")

        self.quality_value = gauge("quality_value", "Value of the last round", "model", "version", "statistic")
        self.quality_low = gauge("quality_low", "Lower end of its 95 % interval", "model", "version", "statistic")
        self.quality_high = gauge("quality_high", "Upper end of its 95 % interval", "model", "version", "statistic")
        self.quality_limit = gauge("quality_limit", "Limit of the alarm", "model", "version", "statistic", "side")
        self.quality_exceeded = gauge("quality_exceeded", "1 where beyond its limit", "model", "version", "statistic")
        self.quality_alarm = gauge("quality_alarm", "1 while the watch holds a version for degraded", "model", "version")
        self.quality_rounds = counter("quality_rounds", "Rounds of the watch", "model", "version", "outcome")
        self.quality_seconds = gauge("quality_round_seconds", "Time of the last round", "model", "version")
        self.quality_last = gauge("quality_last_round_timestamp_seconds", "When the last round ended", "model", "version")
        self.quality_every = gauge("quality_interval_seconds", "Time between rounds that was asked for; 0: no watch")

        self.input_drift = gauge("input_drift", "Population stability index of pictures for edits", "model", "statistic")
        self.input_alarm = gauge("input_drift_alarm", "1 while the pictures for edits have surely changed", "model")
        self.input_images = counter("input_images", "Pictures that came in for edits", "model")

        self.limits_up = gauge("limits_store_up", "1 while the store of the rate limits answers")
        self.promise = gauge("queue_promise_seconds", "Longest wait that is promised")
        self.build = gauge("build_info", "Versions; always 1", "version", "python")
        self.build.labels(VERSION, platform.python_version()).set(1)
        self.limits_up.set(1)
        if settings is not None:
            self.promise.set(settings.queue_seconds)
            self.quality_every.set(settings.watch_seconds)
        self.registry.register(_Asked(self))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    # ---- making them

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        made = Counter(f"atonce_{name}", text, labels, registry=self.registry)
        self.catalogue[f"atonce_{name}_total"] = frozenset(labels)
        return made

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self.catalogue[f"atonce_{name}"] = frozenset(labels)
        return Gauge(f"atonce_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        for end, more in (("_bucket", {"le"}), ("_sum", set()), ("_count", set())):
            self.catalogue[f"atonce_{name}{end}"] = frozenset({*labels, *more})
        return Histogram(f"atonce_{name}", text, labels, registry=self.registry, buckets=tuple(buckets))

    # ---- asked when Prometheus asks

    def attach(
        self,
        *,
        statuses: Callable[[], Iterable[EngineStatus]] | None = None,
        jobs: Callable[[], Mapping[str, int]] | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Where to ask, at each scrape, for what is no event.

        Args:
            statuses: Gives the statuses of all engines for example ``hosts.statuses``.
            jobs: Gives the number of jobs by status.
            ready: Whether this process answers requests.
        """
        self._statuses = statuses or self._statuses
        self._jobs = jobs or self._jobs
        self._ready = ready or self._ready

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics.

        Args:
            accept: The request's ``Accept`` header; Prometheus asks for OpenMetrics by it.

        Returns:
            The body and its content type.
        """
        write, kind = exposition.choose_encoder(accept)
        return write(self.registry), kind

    # ---- the observer

    def batch(self, model: str, version: str, rows: int, padded: int, seconds: float) -> None:
        """One network call was made for ``rows`` rows, filled up to ``padded``."""
        self._known.add(model)
        self.batch_rows.labels(model).observe(rows)
        self.batch_padding.labels(model).inc(max(0, padded - rows))
        self.network_seconds.labels(model).observe(seconds)
        self.also.batch(model, version, rows, padded, seconds)

    def waited(self, model: str, version: str, lane: str, seconds: float) -> None:
        """A request waited from its acceptance to its first network call."""
        self.queue_wait.labels(model, lane).observe(seconds)
        self.also.waited(model, version, lane, seconds)

    def queued(self, model: str, version: str, rows: int) -> None:
        """Rows that wait now."""
        if self._roles.get((model, version)) != "gone":
            self.queue_rows.labels(model, version).set(rows)

    def made(self, model: str, version: str, kind: str, images: int) -> None:
        """Images were finished."""
        self.images.labels(model, version, kind).inc(images)

    def refused(self, model: str, reason: str) -> None:
        """Work was refused."""
        self.refused_total.labels(self._model(model), reason).inc()

    def encoded(self, form: str, images: int, seconds: float) -> None:
        """Images were written."""
        self.encode_seconds.labels(form).observe(seconds)
        self.encoded_images.labels(form).inc(images)
        self.also.encoded(form, images, seconds)

    def job(self, kind: str, status: str) -> None:
        """A job reached a status."""
        self.job_events.labels(kind, status).inc()

    def loaded(self, model: str, version: str, role: str) -> None:
        """A version was put to work (``stable``, ``canary``) or taken off (``gone``)."""
        self._known.add(model)
        was, self._roles[model, version] = self._roles.get((model, version)), role
        canary = any(name == model and role == "canary" for (name, _), role in self._roles.items())
        if (was, role, canary) == ("canary", "gone", False):  # neither promoted nor replaced by the next one
            self.roll_backs.labels(model, self._reasons.pop((model, version), "canary")).inc()
        gone = self._gone.setdefault(model, deque())
        if role != "gone":
            if version in gone:
                gone.remove(version)
            return
        for each in (self.queue_rows, *self._quality()):
            each.remove_by_labels({"model": model, "version": version})
        gone.append(version)
        while len(gone) > KEPT:
            oldest = gone.popleft()
            self._roles.pop((model, oldest), None)
            self.images.remove_by_labels({"model": model, "version": oldest})
            self.quality_rounds.remove_by_labels({"model": model, "version": oldest})

    def edited(self, model: str, statistics: dict[str, float]) -> None:
        """Facts of an image that came in for an edit."""
        if model not in self._known:
            return
        self.input_images.labels(model).inc()
        found = self.drift.add(model, statistics)
        if found is not None:
            for name, value in found.index.items():
                self.input_drift.labels(model, name).set(value)
            self.input_alarm.labels(model).set(found.alarm)

    def role(self, model: str, version: str) -> str:
        """``stable``, ``canary`` or ``gone``, as it was last said; ``stable`` where nothing was."""
        return self._roles.get((model, version), "stable")

    # ---- further events

    def taking_back(self, model: str, version: str, reason: str) -> None:
        """Why a canary is about to be taken off (``quality``); without a word it is counted as ``canary``."""
        self._reasons[model, version] = reason

    def limits_store(self, up: bool) -> None:
        """Whether the store of the rate limits answered."""
        self.limits_up.set(up)

    def quality(
        self, model: str, version: str, readings: Mapping[str, Reading], *, alarm: bool, seconds: float, outcome: str
    ) -> None:
        """A round of the quality watch ended.

        Args:
            model: The model.
            version: Its version.
            readings: What was found, by statistic; empty where the round failed.
            alarm: Whether the watch holds the version for degraded now.
            seconds: Time of the round.
            outcome: ``good``, ``exceeded`` or ``failed``.
        """
        self.quality_rounds.labels(model, version, outcome).inc()
        if self._roles.get((model, version)) == "gone":
            return
        self.quality_alarm.labels(model, version).set(alarm)
        self.quality_seconds.labels(model, version).set(seconds)
        if readings:
            self.quality_last.labels(model, version).set(time.time())
        for name, found in readings.items():
            where = (model, version, name)
            self.quality_value.labels(*where).set(found.value)
            self.quality_low.labels(*where).set(found.interval[0])
            self.quality_high.labels(*where).set(found.interval[1])
            self.quality_exceeded.labels(*where).set(found.exceeded)
            for side, limit in (("low", found.lower), ("high", found.upper)):
                if limit is not None:
                    self.quality_limit.labels(*where, side).set(limit)

    def _quality(self) -> tuple[Gauge, ...]:
        return (
            self.quality_value, self.quality_low, self.quality_high, self.quality_limit, self.quality_exceeded,
            self.quality_alarm, self.quality_seconds, self.quality_last,
        )  # fmt: skip

    def _model(self, name: str) -> str:
        return name if name in self._known else OTHER


class _Asked:
    """Metrics that are asked for at each scrape; what cannot answer is left out, and the rest is still shown."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labels = {
            "atonce_model_info": ("model", "version", "role", "backend"),
            "atonce_engine_rate": ("model", "version"),
            "atonce_queue_expected_seconds": ("model", "version"),
            "atonce_engine_failures_total": ("model", "version"),
            "atonce_jobs": ("status",),
            "atonce_ready": (),
        }
        metrics.catalogue |= {name: frozenset(labels) for name, labels in self._labels.items()}

    def collect(self) -> Iterator[Any]:
        """What Prometheus gets."""
        asked, labels = self._metrics, self._labels
        info = GaugeMetricFamily("atonce_model_info", "Versions that are loaded; always 1", labels=labels["atonce_model_info"])
        rate = GaugeMetricFamily("atonce_engine_rate", "Rows a second, as measured", labels=labels["atonce_engine_rate"])
        wait = GaugeMetricFamily(
            "atonce_queue_expected_seconds", "Wait that a request may expect", labels=labels["atonce_queue_expected_seconds"]
        )
        failures = CounterMetricFamily(
            "atonce_engine_failures", "Network calls that failed", labels=labels["atonce_engine_failures_total"]
        )
        for status in _answer(asked._statuses, ()):
            where = (status.name, status.version)
            info.add_metric((*where, asked.role(*where), status.backend), 1)
            rate.add_metric(where, status.rate)
            wait.add_metric(where, status.wait)
            failures.add_metric(where, status.failures)
        yield from (info, rate, wait, failures)
        jobs = GaugeMetricFamily("atonce_jobs", "Jobs that are kept, by status", labels=labels["atonce_jobs"])
        for name, count in _answer(asked._jobs, {}).items():
            jobs.add_metric((name,), count)
        yield jobs
        yield GaugeMetricFamily(
            "atonce_ready", "1 while this process takes requests", value=float(_answer(asked._ready, False))
        )


def _answer(ask: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return ask()
    except Exception:  # a scrape must not fail with a part that is stopping
        return otherwise
