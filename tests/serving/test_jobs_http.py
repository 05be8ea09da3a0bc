"""Jobs over HTTP: submitted, followed, fetched in ranges, cancelled; what is refused, and how it is said."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from atonce.serving.app import create_app
from atonce.serving.keys import make_key
from atonce.serving.routes.jobs import _range
from atonce.serving.schemas import EXAMPLE_PICTURE

sys.path.insert(0, str(Path(__file__).parent))
from jobs_process import SlowEngine, SlowHosts, settings_of

Serve = Callable[..., TestClient]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts the application over a slow engine, which the client has as ``engine``."""
    with contextlib.ExitStack() as stack:

        def start(delay: float = 0.0, **more: Any) -> TestClient:
            settings = settings_of(tmp_path, **{"rate": "", **more})
            engine = SlowEngine(settings, delay=delay)
            client = stack.enter_context(TestClient(create_app(settings, SlowHosts(engine))))  # type: ignore[arg-type]
            client.engine = engine  # type: ignore[attr-defined]
            return client

        yield start


def submit(client: TestClient, n: int = 300, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"kind": "generate", "request": {"n": n, "seed": 7, **more}})
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    return dict(answer.json())


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30})
    assert answer.status_code == 200
    assert answer.json()["status"] == "done", answer.text
    return dict(answer.json())


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"]


def test_submit_follow_fetch(serve: Serve) -> None:
    client = serve(delay=0.002)
    job = submit(client)
    assert (job["object"], job["status"], job["done"], job["total"], job["result"]) == ("job", "queued", 0, 300, None)
    early = client.get(f"/v1/jobs/{job['id']}/result")
    assert early.status_code == 409
    assert early.headers["Retry-After"] == "1"
    done = finished(client, job)
    result = done["result"]
    assert (done["done"], done["version"], done["attempts"], done["error"]) == (300, "1", 1, None)
    assert done["seconds_left"] is None
    assert done["rate"] > 0
    assert result["expires"] >= time.time() + 6 * 86400
    answer = client.get(result["url"])
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == result["media"] == "application/zip"
    assert len(answer.content) == result["bytes"] == int(answer.headers["Content-Length"])
    digest = hashlib.sha256(answer.content)
    assert digest.hexdigest() == result["sha256"]
    assert answer.headers["ETag"] == f'"{result["sha256"]}"'
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}.zip"'


def test_ranges(serve: Serve) -> None:
    client = serve()
    result = finished(client, submit(client))["result"]
    whole, size, etag = client.get(result["url"]).content, result["bytes"], f'"{result["sha256"]}"'
    for header, start, stop in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 1000}", 5, size),
    ):
        part = client.get(result["url"], headers={"Range": header, "If-Range": etag})
        assert part.status_code == 206
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.content == whole[start:stop]
    for header in ("bytes=9-3", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b", "bytes=-"):
        assert client.get(result["url"], headers={"Range": header}).content == whole, "what means nothing is passed over"
    changed = client.get(result["url"], headers={"Range": "bytes=5-9", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole)
    behind = client.get(result["url"], headers={"Range": f"bytes={size}-"})
    assert problem(behind) == (416, f"the range begins behind the end: the result has {size} bytes")


@given(start=st.integers(0, 20), stop=st.integers(0, 30), size=st.integers(1, 20))
def test_a_range_is_that_of_the_standard(start: int, stop: int, size: int) -> None:
    content = bytes(range(size))
    found = _range(f"bytes={start}-{stop}", size)
    if stop < start:
        assert found is None
    else:
        assert found is not None
        assert content[found[0] : found[1]] == content[start : stop + 1]
    last = _range(f"bytes=-{stop}", size)
    assert last is not None
    assert content[last[0] : last[1]] == (content[-stop:] if stop else b"")


def test_waiting_ends_with_the_job_or_the_time(serve: Serve) -> None:
    client = serve(delay=0.01)
    job = submit(client, 200)
    begun = time.monotonic()
    assert client.get(f"/v1/jobs/{job['id']}", params={"wait": 0.3}).json()["status"] == "running"
    assert 0.3 <= time.monotonic() - begun < 1.8
    assert finished(client, job)["done"] == 200
    assert time.monotonic() - begun < 20
    for wrong in ("-1", "31", "nan", "soon"):
        assert client.get(f"/v1/jobs/{job['id']}", params={"wait": wrong}).status_code == 400


def test_waiting_ends_when_the_server_drains(serve: Serve) -> None:
    client = serve(delay=0.05)
    job = submit(client, 2000)
    threading.Timer(0.3, lambda: setattr(client.app.state, "draining", True)).start()  # type: ignore[attr-defined]
    begun = time.monotonic()
    assert client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).status_code == 200
    assert time.monotonic() - begun < 5


def test_a_retry_gives_the_same_job(serve: Serve) -> None:
    client = serve()
    body = {"kind": "generate", "request": {"n": 10}}
    answers = [client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "a-word"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 200, 200]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post("/v1/jobs", json={**body, "request": {"n": 11}}, headers={"Idempotency-Key": "a-word"})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"
    for wrong in ("", "two words", "x" * 201):
        assert client.post("/v1/jobs", json=body, headers={"Idempotency-Key": wrong}).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "kind is missing"),
        ({"kind": "paint", "request": {}}, 400, "kind is 'paint', should be one of generate, inpaint"),
        ({"kind": "generate"}, 400, "request is missing"),
        ({"kind": "generate", "request": []}, 400, "request is "),
        ({"kind": "generate", "request": {"n": 0}}, 400, "n is 0"),
        ({"kind": "generate", "request": {"n": "3"}}, 400, "n is '3'"),
        ({"kind": "generate", "request": {"number": 3}}, 400, "'number' is no field of this request"),
        ({"kind": "generate", "request": {}, "priority": 1}, 400, "'priority' is no field of this request"),
        ({"kind": "generate", "request": {"n": 100_001}}, 413, "100,001 images are asked for"),
        ({"kind": "generate", "request": {"model": "x"}}, 404, "there is no model 'x'"),
        ({"kind": "variations", "request": {"n": 2}}, 400, "image is missing"),
        ({"kind": "variations", "request": {"image": EXAMPLE_PICTURE, "n": 100_001}}, 413, "100,001 images are asked for"),
        ({"kind": "colorize", "request": {"image": EXAMPLE_PICTURE}}, 400, "this model makes grey pictures"),
    ],
)
def test_what_does_not_fit_is_refused(serve: Serve, body: dict[str, Any], status: int, text: str) -> None:
    client = serve()
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"].startswith(text)
    assert client.get("/v1/jobs").json() == {"object": "list", "data": [], "has_more": False}


def test_a_form_is_no_job(serve: Serve) -> None:
    client = serve()
    assert client.post("/v1/jobs", files={"kind": (None, "generate")}).status_code == 415
    assert client.post("/v1/jobs", content=b"kind=generate", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/jobs", content=b"{").status_code == 400


def test_jobs_that_are_not_there(serve: Serve) -> None:
    client = serve()
    for name in ("job_" + "0" * 24, "nothing", "..%2F..%2Fetc"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/result")):
            assert client.request(method, f"/v1/jobs/{name}{path}").status_code == 404


def test_lists_have_pages(serve: Serve) -> None:
    client = serve(job_workers=0)
    ids = [submit(client, 10)["id"] for _ in range(5)]
    first = client.get("/v1/jobs", params={"limit": 3}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:1:-1], True)
    rest = client.get("/v1/jobs", params={"limit": 3, "before": first["data"][-1]["id"]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[1::-1], False)
    assert client.delete(f"/v1/jobs/{ids[0]}").json()["status"] == "cancelled"
    cancelled = client.get("/v1/jobs", params={"status": "cancelled"}).json()["data"]
    assert [job["id"] for job in cancelled] == ids[:1]
    for wrong in ({"limit": 0}, {"limit": 101}, {"status": "lost"}, {"before": "x"}):
        assert client.get("/v1/jobs", params=wrong).status_code == 400


def test_a_running_job_is_cancelled(serve: Serve) -> None:
    client = serve(delay=0.02)
    job = submit(client, 5000)
    client.get(f"/v1/jobs/{job['id']}", params={"wait": 0.3})
    assert client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelling"
    assert client.get(f"/v1/jobs/{job['id']}", params={"wait": 10}).json()["status"] == "cancelled"
    assert client.get(f"/v1/jobs/{job['id']}/result").status_code == 409


def test_keys_and_scopes(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    tokens = {
        name: make_key(file, name, scopes=scopes)[1]
        for name, scopes in (("a", ["jobs", "generate"]), ("b", ["jobs", "generate"]), ("c", ["generate"]), ("d", ["jobs"]))
    }
    client = serve(keys=file)
    as_ = lambda name: {"Authorization": f"Bearer {tokens[name]}"}
    body = {"kind": "generate", "request": {"n": 10}}
    assert client.post("/v1/jobs", json=body).status_code == 401
    assert client.get("/v1/jobs").status_code == 401
    assert client.post("/v1/jobs", json=body, headers=as_("c")).status_code == 403
    assert problem(client.post("/v1/jobs", json=body, headers=as_("d")))[0] == 403
    edit = {"kind": "variations", "request": {"image": EXAMPLE_PICTURE}}
    assert client.post("/v1/jobs", json=edit, headers=as_("a")).status_code == 403
    job = client.post("/v1/jobs", json=body, headers=as_("a")).json()
    assert client.get(f"/v1/jobs/{job['id']}", headers=as_("b")).status_code == 404
    assert client.get("/v1/jobs", headers=as_("b")).json()["data"] == []
    assert client.get(f"/v1/jobs/{job['id']}", headers=as_("a"), params={"wait": 20}).json()["status"] == "done"


def test_images_of_jobs_count_against_the_limit(serve: Serve) -> None:
    client = serve(image_rate="500/hour", job_workers=0)
    submit(client, 400)
    answer = client.post("/v1/jobs", json={"kind": "generate", "request": {"n": 200}})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    submit(client, 100)


def test_too_many_jobs_are_a_429(serve: Serve) -> None:
    client = serve(max_jobs=1, job_workers=0)
    submit(client)
    answer = client.post("/v1/jobs", json={"kind": "generate", "request": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_jobs")
    assert answer.headers["Retry-After"] == "10"


def test_the_document_describes_jobs_as_they_are(serve: Serve) -> None:
    client = serve(job_workers=0)
    document = client.get("/openapi.json").json()
    path = document["paths"]["/v1/jobs"]["post"]
    body = path["requestBody"]["content"]["application/json"]
    assert client.post("/v1/jobs", json=body["example"]).status_code == 202
    kinds = [form["properties"]["kind"]["const"] for form in body["schema"]["oneOf"]]
    assert kinds[0] == "generate"
    assert len(kinds) == 11
    assert "$ref" not in str(body)
    assert {"200", "202", "400", "409", "413", "415", "429", "503"} <= set(path["responses"])
    assert "422" not in path["responses"]
    told = document["components"]["schemas"]["JobAnswer"]["properties"]
    assert set(submit(client)) == set(told)
    result = document["paths"]["/v1/jobs/{id}/result"]["get"]["responses"]
    assert set(result["206"]["content"]) == {"application/zip", "application/x-npz"}


def test_metrics_tell_of_jobs(serve: Serve) -> None:
    client = serve()
    finished(client, submit(client, 10))
    text = client.get("/metrics").text
    assert 'atonce_jobs{status="done"} 1.0' in text
    assert 'atonce_job_events_total{kind="generate",status="queued"} 1.0' in text
