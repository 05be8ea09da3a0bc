"""The application around the routes: health, models, the owner's routes, the document, callers who go away, the end."""

from __future__ import annotations

import http.client
import json
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

import atonce
from atonce.core.errors import ModelFileError
from atonce.serving.app import create_app
from atonce.serving.document import REQUESTS
from atonce.serving.edits import run_edit
from atonce.serving.schemas import EDITS
from atonce.serving.settings import ServeSettings


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


# ---- health


def test_health(client):
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    told = client.get("/healthz").json()
    assert told["status"] == "ok"
    assert [each["model"] for each in told["models"]] == ["digits", "fashion-mnist"]
    assert b"atonce_http_requests_total" in client.get("/metrics").content


def test_ready_is_no_where_a_model_is_missing_or_the_server_stops(client):
    client.hosts.ready = False
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").json()["status"] == "missing"
    assert client.get("/livez").status_code == 200
    client.hosts.ready = True
    client.app.state.draining = True
    assert client.get("/readyz").json() == {"status": "draining"}
    answer = client.post("/v1/generate", json={})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert client.get("/livez").status_code == 200


def test_not_ready_before_the_start(tmp_path):
    app = create_app(ServeSettings(models=("digits",), state=tmp_path))
    answer = TestClient(app).get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "starting"}


def test_metrics_can_be_left_out(serve):
    assert serve(metrics=False).get("/metrics").status_code == 404


# ---- models


def test_models_are_described(client):
    told = client.get("/v1/models").json()
    assert told["object"] == "list"
    assert [each["id"] for each in told["data"]] == ["digits", "fashion-mnist"]
    one = client.get("/v1/models/fashion-mnist").json()
    model = atonce.load("fashion-mnist")
    assert one == told["data"][1]
    assert one["shape"] == [1, 28, 28]
    assert one["labels"] == model.labels
    assert (one["sigma_max"], one["kind"], one["version"], one["backend"]) == (80.0, "consistency", "1", "eager")
    assert one["limits"]["images"] == 64
    assert one["edits"] is True
    assert client.get("/v1/models/cat").status_code == 404


def test_the_card_is_markdown_or_json(client):
    text = client.get("/v1/models/digits/card")
    assert text.headers["content-type"].startswith("text/markdown")
    assert text.text.startswith("---\nlibrary_name: atonce")
    told = client.get("/v1/models/digits/card", headers={"Accept": "application/json"}).json()
    assert told["card"] == json.loads(json.dumps(atonce.load("digits").card))
    assert len(told["records"]) == len(atonce.load("digits").records)


# ---- the owner's routes


@pytest.fixture
def owner(serve, tmp_path):
    """A server with keys: its client, and headers of an owner and of a user."""
    from atonce.serving.keys import make_key

    admin = make_key(tmp_path / "keys.json", "owner", scopes=("admin", "generate"))[1]
    user = make_key(tmp_path / "keys.json", "user", scopes=("generate", "models"))[1]
    client = serve(keys=tmp_path / "keys.json")
    return client, {"Authorization": f"Bearer {admin}"}, {"X-API-Key": user}


def test_keys_and_scopes_are_asked_for(owner):
    client, admin, user = owner
    assert client.post("/v1/generate", json={}).status_code == 401
    assert client.post("/v1/generate", json={}, headers=user).status_code == 200
    assert client.post("/v1/edits/denoise", json={}, headers=user).status_code == 403
    assert client.get("/v1/models", headers=admin).status_code == 403
    assert client.get("/v1/admin/status", headers=user).status_code == 403
    for path in ("/livez", "/readyz", "/healthz", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200, path


def test_an_owner_changes_versions(owner):
    client, admin, _ = owner
    told = client.post("/v1/admin/models/digits/load", json={"source": "digits", "canary": 0.25}, headers=admin)
    assert told.json() == {"model": "digits", "versions": [{"version": "1", "role": "stable"}]}
    assert client.hosts.host("digits").done == [("load", "digits", None, 0.25)]
    assert client.post("/v1/admin/models/digits/roll-back", headers=admin).status_code == 200
    refused = client.post("/v1/admin/models/digits/promote", headers=admin)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "no_canary"
    assert client.post("/v1/admin/models/cat/promote", headers=admin).status_code == 404
    wrong = client.post("/v1/admin/models/digits/load", json={"source": "no/such"}, headers=admin)
    assert wrong.status_code == 400
    assert "no/such" in wrong.json()["error"]["message"]
    assert client.post("/v1/admin/models/digits/load", json={"source": "digits", "canary": 2}, headers=admin).status_code == 400
    status = client.get("/v1/admin/status", headers=admin).json()
    assert [each["name"] for each in status["engines"]] == ["digits", "fashion-mnist"]
    assert status["versions"]["digits"][0]["role"] == "stable"


def test_what_was_asked_is_in_the_audit_log_without_content(client, tmp_path, digit, b64):
    client.post("/v1/generate", json={"n": 2, "seed": 4}, headers={"X-Request-ID": "mine-1"})
    client.post("/v1/edits/stroke", json={"image": b64(digit)})
    client.app.state.service.audit.flush()
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert lines[0]["request_id"] == "mine-1"
    assert (lines[0]["model"], lines[0]["version"], lines[0]["n"], lines[0]["seed"]) == ("digits", "1", 2, 4)
    assert lines[1]["kind"] == "stroke"
    assert b64(digit)[:40] not in (tmp_path / "state" / "audit.jsonl").read_text()


# ---- addresses that are none


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/generate", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/edits/explode", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("GET", "/v1/images/link/x.y", 404),
        ("GET", "/v1/jobs/job_0", 404),
    ],
)
def test_errors_have_one_shape(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    told = answer.json()
    assert set(told) == {"error", "request_id"}
    assert set(told["error"]) == {"message", "type", "code", "param"}
    assert told["request_id"] == answer.headers["x-request-id"]


# ---- the document


@pytest.mark.parametrize("keys", [False, True])
def test_the_document_is_complete(request, keys):
    client = request.getfixturevalue("owner")[0] if keys else request.getfixturevalue("client")
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for kind in EDITS:
        assert f"/v1/edits/{kind}" in document["paths"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]
    names = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(names) == len(set(names))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"], path
            assert operation.get("description") or operation.get("summary"), path
            open_to_all = path in ("/livez", "/readyz", "/healthz", "/metrics") or "link" in path
            asks = "admin" in path or (keys and not open_to_all)
            assert ("security" in operation) == asks, path
            if not open_to_all:
                assert ("401" in operation["responses"]) == asks, path
            if path.startswith("/v1/"):
                assert {"429", "500", "503"} <= set(operation["responses"]), path
            if "requestBody" in operation:
                assert {"400", "413", "415", "408"} <= set(operation["responses"]), (path, method)


def test_every_example_of_the_document_runs(client):
    document = client.get("/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" not in body or path.startswith(("/v1/admin", "/v1/jobs")):
            continue
        example = {key: value for key, value in body["example"].items() if key != "labels"}
        answer = client.post(path, json=example)
        wanted = 400 if path.endswith("colorize") else 200  # the model makes grey pictures
        assert answer.status_code == wanted, (path, answer.text)
        tried += 1
    assert tried == 1 + len(EDITS) + 3


def test_schemas_are_those_that_are_enforced():
    for form in REQUESTS:
        schema = form.model_json_schema()
        assert schema["additionalProperties"] is False
        assert "$defs" not in schema
        for name, field in schema["properties"].items():
            assert field.get("description") or name in ("guidance", "factor", "fit"), (form.__name__, name)
            if name not in schema.get("required", ()):
                TypeAdapter(form.model_fields[name].annotation).validate_python(field.get("default"))


# ---- callers who go away


def test_a_caller_who_goes_away_cancels_its_request(listen):
    address, hosts = listen()
    engine = hosts.host("digits").own
    engine.gate.clear()
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request("POST", "/v1/generate", "{}", {"Content-Type": "application/json"})
    wait_for(lambda: engine.futures)
    assert not engine.futures[0].cancelled()
    connection.close()
    wait_for(lambda: engine.futures[0].cancelled())
    engine.gate.set()


def test_a_caller_who_goes_away_ends_its_edit(listen, digit, b64, monkeypatch):
    from atonce.serving import answers

    address, _ = listen()
    ended: list[BaseException] = []
    begun: list[bool] = []

    def slow(*arguments, stop, **options):
        begun.append(True)
        assert stop.wait(20)
        try:
            return run_edit(*arguments, stop=stop, **options)
        except BaseException as problem:
            ended.append(problem)
            raise

    monkeypatch.setattr(answers, "run_edit", slow)
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    wanted = json.dumps({"image": b64(digit), "steps": 50})
    connection.request("POST", "/v1/edits/stroke", wanted, {"Content-Type": "application/json"})
    wait_for(lambda: begun)
    connection.close()
    wait_for(lambda: ended)
    assert type(ended[0]).__name__ == "CancelledError"


def test_others_are_answered_while_one_waits(listen):
    address, hosts = listen()
    hosts.host("digits").own.gate.clear()
    slow = http.client.HTTPConnection(urlsplit(address).netloc)
    slow.request("POST", "/v1/generate", "{}", {"Content-Type": "application/json"})
    wait_for(lambda: hosts.host("digits").own.futures)
    quick = http.client.HTTPConnection(urlsplit(address).netloc)
    quick.request("POST", "/v1/generate", '{"model": "fashion-mnist"}', {"Content-Type": "application/json"})
    assert quick.getresponse().status == 200
    hosts.host("digits").own.gate.set()
    assert slow.getresponse().status == 200


# ---- start and end


def test_what_was_started_is_stopped_in_reverse_also_where_a_part_fails(tmp_path, monkeypatch):
    done: list[str] = []
    settings = ServeSettings(models=("digits",), state=tmp_path)
    hosts = SimpleNamespace(
        default="digits",
        ready=True,
        start=lambda: done.append("hosts"),
        stop=lambda: done.append("no hosts"),
        names=list,
        statuses=list,
    )
    app = create_app(settings, hosts)
    service = app.state.service
    monkeypatch.setattr(service.jobs, "start", lambda: done.append("jobs"))
    monkeypatch.setattr(service.jobs, "stop", lambda: done.append("no jobs"))
    with TestClient(app):
        assert app.state.ready
    assert not app.state.ready
    assert done == ["hosts", "jobs", "no jobs", "no hosts"]

    done.clear()

    def fail() -> None:
        raise ModelFileError("there is no model here")

    broken = create_app(settings, hosts)
    monkeypatch.setattr(broken.state.service.jobs, "start", fail)
    with pytest.raises(ModelFileError), TestClient(broken):
        pass
    assert done == ["hosts", "no hosts"]
