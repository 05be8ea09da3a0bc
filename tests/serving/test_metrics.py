"""Metrics: what is counted where, and labels that no caller can make many of."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from prometheus_client.parser import text_string_to_metric_families

from atonce.serving.metrics import KEPT, Metrics
from atonce.serving.metrics_http import HttpMetrics
from atonce.serving.rows import EngineStatus
from atonce.serving.settings import ServeSettings
from atonce.serving.watch_statistics import Reading


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, kind = metrics.text()
    assert kind.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def metrics() -> Metrics:
    found = Metrics(ServeSettings(queue_seconds=3.0, watch_seconds=60.0))
    found.loaded("digits", "0001", "stable")
    return found


def test_events_are_counted(metrics: Metrics) -> None:
    metrics.batch("digits", "0001", 5, 8, 0.02)
    metrics.batch("digits", "0001", 64, 64, 0.2)
    metrics.waited("digits", "0001", "interactive", 0.004)
    metrics.queued("digits", "0001", 7)
    metrics.made("digits", "0001", "generate", 5)
    metrics.made("digits", "0001", "inpaint", 2)
    metrics.refused("digits", "overloaded")
    metrics.encoded("png", 5, 0.01)
    metrics.job("generate", "done")
    metrics.limits_store(False)
    assert value(metrics, "atonce_batch_rows_count", model="digits") == 2
    assert value(metrics, "atonce_batch_rows_sum", model="digits") == 69
    assert value(metrics, "atonce_batch_rows_bucket", model="digits", le="8.0") == 1
    assert value(metrics, "atonce_batch_padding_rows_total", model="digits") == 3
    assert value(metrics, "atonce_network_seconds_sum", model="digits") == pytest.approx(0.22)
    assert value(metrics, "atonce_queue_wait_seconds_bucket", model="digits", lane="interactive", le="0.005") == 1
    assert value(metrics, "atonce_queue_rows", model="digits", version="0001") == 7
    assert value(metrics, "atonce_images_total", model="digits", version="0001", kind="generate") == 5
    assert value(metrics, "atonce_refused_total", model="digits", reason="overloaded") == 1
    assert value(metrics, "atonce_encode_seconds_count", format="png") == 1
    assert value(metrics, "atonce_encoded_images_total", format="png") == 5
    assert value(metrics, "atonce_job_events_total", kind="generate", status="done") == 1
    assert value(metrics, "atonce_limits_store_up") == 0
    assert value(metrics, "atonce_queue_promise_seconds") == 3
    assert value(metrics, "atonce_quality_interval_seconds") == 60


def test_unknown_models_are_no_labels(metrics: Metrics) -> None:
    for i in range(100):
        metrics.refused(f"guess-{i}", "not_found")
        metrics.edited(f"guess-{i}", {"mean": 0.5})
    assert value(metrics, "atonce_refused_total", model="other", reason="not_found") == 100
    assert not any("guess" in str(labels) for _, labels in samples(metrics))


def reading(value: float, exceeded: bool = False) -> Reading:
    return Reading(value, (value - 0.1, value + 0.1), None, 0.5, exceeded, False)


def test_quality_and_what_is_left_when_a_version_goes(metrics: Metrics) -> None:
    metrics.made("digits", "0001", "generate", 1)
    metrics.quality("digits", "0001", {"frechet": reading(0.7, True)}, alarm=True, seconds=2.0, outcome="exceeded")
    where = {"model": "digits", "version": "0001"}
    assert value(metrics, "atonce_quality_value", statistic="frechet", **where) == 0.7
    assert value(metrics, "atonce_quality_low", statistic="frechet", **where) == pytest.approx(0.6)
    assert value(metrics, "atonce_quality_high", statistic="frechet", **where) == pytest.approx(0.8)
    assert value(metrics, "atonce_quality_limit", statistic="frechet", side="high", **where) == 0.5
    assert value(metrics, "atonce_quality_limit", statistic="frechet", side="low", **where) is None
    assert value(metrics, "atonce_quality_exceeded", statistic="frechet", **where) == 1
    assert value(metrics, "atonce_quality_alarm", **where) == 1
    assert value(metrics, "atonce_quality_rounds_total", outcome="exceeded", **where) == 1
    assert value(metrics, "atonce_quality_last_round_timestamp_seconds", **where)
    metrics.queued("digits", "0001", 0)
    metrics.loaded("digits", "0002", "stable")
    metrics.loaded("digits", "0001", "gone")
    metrics.queued("digits", "0001", 3)  # said by a worker that is just ending
    metrics.quality("digits", "0001", {"frechet": reading(0.7)}, alarm=True, seconds=2.0, outcome="good")
    left = [name for name, labels in samples(metrics) if ("version", "0001") in labels]
    assert {name.removesuffix("_created") for name in left} == {
        "atonce_images_total", "atonce_images", "atonce_quality_rounds_total", "atonce_quality_rounds",
    }  # fmt: skip


def test_canaries_that_are_taken_off_are_counted_and_those_that_are_promoted_are_not(metrics: Metrics) -> None:
    metrics.loaded("digits", "0002", "canary")
    metrics.loaded("digits", "0002", "stable")
    metrics.loaded("digits", "0001", "gone")
    metrics.loaded("digits", "0003", "canary")
    metrics.loaded("digits", "0004", "canary")  # takes the place of the third
    metrics.loaded("digits", "0003", "gone")
    assert not any(name == "atonce_roll_backs_total" for name, _ in samples(metrics))
    metrics.loaded("digits", "0004", "gone")
    assert value(metrics, "atonce_roll_backs_total", model="digits", reason="canary") == 1
    metrics.loaded("digits", "0005", "canary")
    metrics.taking_back("digits", "0005", "quality")
    metrics.loaded("digits", "0005", "gone")
    assert value(metrics, "atonce_roll_backs_total", model="digits", reason="quality") == 1


def test_reloading_for_a_year_does_not_fill_the_memory(metrics: Metrics) -> None:
    for i in range(200):
        version = f"{i:04d}"
        metrics.loaded("digits", version, "stable")
        metrics.made("digits", version, "generate", 1)
        metrics.queued("digits", version, 1)
        metrics.quality("digits", version, {"frechet": reading(0.1)}, alarm=False, seconds=1.0, outcome="good")
        metrics.loaded("digits", version, "gone")
    versions = {dict(labels)["version"] for name, labels in samples(metrics) if name == "atonce_images_total"}
    assert versions == {f"{i:04d}" for i in range(200 - KEPT, 200)}
    assert len(metrics._roles) == KEPT


def test_what_is_asked_at_each_scrape(metrics: Metrics) -> None:
    status = EngineStatus("digits", "0001", "compiled", (1, 2), 120.0, 4, 0.3, 2.0, True, 9, 9, 2)
    metrics.attach(statuses=lambda: [status], jobs=lambda: {"queued": 3, "running": 1}, ready=lambda: False)
    assert value(metrics, "atonce_model_info", model="digits", version="0001", role="stable", backend="compiled") == 1
    assert value(metrics, "atonce_engine_rate", model="digits", version="0001") == 120
    assert value(metrics, "atonce_queue_expected_seconds", model="digits", version="0001") == 0.3
    assert value(metrics, "atonce_engine_failures_total", model="digits", version="0001") == 2
    assert value(metrics, "atonce_jobs", status="queued") == 3
    assert value(metrics, "atonce_ready") == 0
    metrics.attach(jobs=lambda: {}["away"])
    assert value(metrics, "atonce_jobs", status="queued") is None  # a part that cannot answer takes nothing else with it
    assert value(metrics, "atonce_engine_rate", model="digits", version="0001") == 120


def test_the_process_and_the_build_are_there(metrics: Metrics) -> None:
    names = {name for name, _ in samples(metrics)}
    assert {"process_resident_memory_bytes", "process_start_time_seconds", "python_gc_collections_total"} <= names
    assert "atonce_build_info" in names


def test_the_catalogue_knows_every_name_and_label(metrics: Metrics) -> None:
    metrics.batch("digits", "0001", 5, 8, 0.02)
    metrics.waited("digits", "0001", "bulk", 0.02)
    metrics.quality("digits", "0001", {"frechet": reading(0.7)}, alarm=True, seconds=2.0, outcome="good")
    metrics.attach(jobs=lambda: {"queued": 3})
    for name, labels in samples(metrics):
        if name.startswith("atonce_") and not name.endswith("_created"):
            assert frozenset(dict(labels)) == metrics.catalogue[name], name


def test_openmetrics_is_spoken(metrics: Metrics) -> None:
    body, kind = metrics.text("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def ask(metrics: Metrics, *requests: tuple[str, str]) -> None:
    app, router = FastAPI(), APIRouter(prefix="/v1")

    @router.get("/jobs/{job}")
    def job(job: str) -> str:
        if job == "none":
            raise HTTPException(404)
        if job == "bad":
            raise RuntimeError
        return "x" * 10

    app.include_router(router)
    app.add_middleware(HttpMetrics, metrics=metrics)

    async def go() -> None:
        for method, path in requests:
            scope: dict[str, Any] = {
                "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
                "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("y", 1), "root_path": "",
            }  # fmt: skip

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                pass

            try:
                await app(scope, receive, send)
            except RuntimeError:
                pass

    asyncio.run(go())


def test_requests_are_counted_by_the_template_of_their_route(metrics: Metrics) -> None:
    numbers = [("GET", f"/v1/jobs/{i}") for i in range(50)]
    paths = [("GET", f"/wp-admin/{i}") for i in range(50)]
    ask(metrics, *numbers, *paths, ("GET", "/v1/jobs/none"), ("GET", "/v1/jobs/bad"), ("BREW", "/v1/jobs/3"))
    route = "/v1/jobs/{job}"
    assert value(metrics, "atonce_http_requests_total", route=route, method="GET", status="200") == 50
    assert value(metrics, "atonce_http_requests_total", route="other", method="GET", status="404") == 50
    assert value(metrics, "atonce_http_requests_total", route=route, method="GET", status="404") == 1
    assert value(metrics, "atonce_http_requests_total", route=route, method="GET", status="500") == 1
    assert value(metrics, "atonce_http_requests_total", route=route, method="other", status="405") == 1
    assert value(metrics, "atonce_http_request_seconds_count", route=route) == 53
    assert value(metrics, "atonce_http_answer_bytes_total", route=route) >= 50 * 12
    assert value(metrics, "atonce_http_open_requests") == 0
    routes = {dict(labels)["route"] for name, labels in samples(metrics) if name == "atonce_http_requests_total"}
    assert routes == {route, "other"}


def test_pictures_for_edits_become_drift(metrics: Metrics) -> None:
    for i in range(600):
        metrics.edited("digits", {"mean": 0.5 + 0.1 * math.sin(i)})
    assert value(metrics, "atonce_input_images_total", model="digits") == 600
    assert value(metrics, "atonce_input_drift", model="digits", statistic="mean") < 0.1
    assert value(metrics, "atonce_input_drift_alarm", model="digits") == 0
    for i in range(300):
        metrics.edited("digits", {"mean": 0.8 + 0.1 * math.sin(i)})
    assert value(metrics, "atonce_input_drift", model="digits", statistic="mean") > 1
    assert value(metrics, "atonce_input_drift_alarm", model="digits") == 1
