"""Traces: the spans of requests, waits, calls and encoding; nothing where no collector is set."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from atonce.core.errors import InputError
from atonce.serving.metrics import Metrics
from atonce.serving.settings import ServeSettings
from atonce.serving.tracing import Tracing, set_up

memory = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="traces need the packages of OpenTelemetry"
)
SETTINGS = ServeSettings(otlp="http://localhost:9")


@pytest.fixture
def exporter() -> Any:
    return memory.InMemorySpanExporter()


def service(exporter: Any) -> tuple[TestClient, Metrics]:
    app, metrics = FastAPI(), Metrics()
    app.state.service = SimpleNamespace(metrics=metrics)

    @app.get("/v1/jobs/{job}")
    async def job(job: str) -> str:
        if job == "bad":
            raise RuntimeError("secret text of the inside")
        metrics.encoded("png", 4, 0.25)
        return job

    @app.get("/livez")
    async def livez() -> str:
        return "ok"

    set_up(app, SETTINGS, exporter)
    return TestClient(app, raise_server_exceptions=False), metrics


def test_a_request_is_a_span_and_what_it_does_is_inside(exporter: Any) -> None:
    client, _ = service(exporter)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (
        client.get("/v1/jobs/7?key=hunter22", headers={"traceparent": parent, "Authorization": "Bearer hunter22"}).text == '"7"'
    )
    assert client.get("/livez").status_code == 200
    encode, request = exporter.get_finished_spans()
    assert request.name == "GET /v1/jobs/{job}"
    assert request.attributes["http.response.status_code"] == 200
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"  # the caller's trace goes on
    assert (encode.name, encode.parent.span_id) == ("encode", request.context.span_id)
    assert (encode.attributes["atonce.format"], encode.attributes["atonce.images"]) == ("png", 4)
    assert (encode.end_time - encode.start_time) / 1e9 == pytest.approx(0.25)
    assert "hunter22" not in encode.to_json() + request.to_json()


def test_a_failure_is_marked_and_says_nothing_of_the_inside(exporter: Any) -> None:
    client, _ = service(exporter)
    assert client.get("/v1/jobs/bad").status_code == 500
    (request,) = exporter.get_finished_spans()
    assert not request.status.is_ok
    assert "secret" not in request.to_json()


def test_calls_and_waits_of_the_engine_are_spans(exporter: Any) -> None:
    _, metrics = service(exporter)
    metrics.batch("digits", "0001", 5, 8, 0.02)
    metrics.waited("digits", "0001", "bulk", 0.5)
    network, wait = exporter.get_finished_spans()
    assert network.name == "network"
    assert dict(network.attributes) == {
        "atonce.model": "digits", "atonce.version": "0001", "atonce.rows": 5, "atonce.padded": 8,
    }  # fmt: skip
    assert (network.end_time - network.start_time) / 1e9 == pytest.approx(0.02)
    assert (wait.name, wait.attributes["atonce.lane"], wait.parent) == ("queue wait", "bulk", None)


def test_nothing_is_traced_without_a_collector() -> None:
    app = FastAPI()
    assert set_up(app, ServeSettings()) is None
    assert app.user_middleware == []


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="give an address like"):
        Tracing("collector:4318")


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    tracing = Tracing("http://127.0.0.1:9")
    begun = time.monotonic()
    for _ in range(3000):
        tracing.batch("m", "1", 1, 1, 0.1)
    assert time.monotonic() - begun < 5
    tracing.provider.shutdown()


def test_without_the_packages_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from atonce.serving.tracing import Tracing\n"
        "from atonce.core.errors import MissingExtraError\n"
        "try: Tracing('http://x')\n"
        "except MissingExtraError as e: print(e)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'atonce[trace]'" in said
