"""What a server tells of its inside, and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")

from fastapi.testclient import TestClient

from atonce.serving.keys import make_key

BARE = {"status": "ok", "atonce": None, "models": [], "quality": []}


@pytest.fixture
def closed(serve: Any, tmp_path: Path) -> Any:
    """Starts a server with keys; gives its client, and headers with and without the scope metrics."""
    file = tmp_path / "keys.json"
    tokens = [make_key(file, name, scopes=scopes)[1] for name, scopes in (("prom", ("metrics",)), ("user", ("generate",)))]

    def start(**options: Any) -> tuple[TestClient, dict[str, str], dict[str, str]]:
        client = serve("digits", keys=file, **options)
        return client, {"Authorization": f"Bearer {tokens[0]}"}, {"X-API-Key": tokens[1]}

    return start


@pytest.mark.parametrize(
    "public", [{"host": "0.0.0.0"}, {"trusted_proxies": ("10.0.0.1",)}, {"public_url": "https://images.example.org"}]
)
def test_details_of_a_public_server_with_keys_need_the_scope(closed: Any, public: dict[str, Any]) -> None:
    client, scraper, user = closed(**public)
    assert client.get("/healthz").json() == BARE
    assert client.get("/healthz", headers=scraper).json()["models"][0]["model"] == "digits"
    assert client.get("/healthz", headers=user).status_code == 403
    assert client.get("/healthz", headers={"X-API-Key": "atonce_wrong"}).status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=user).status_code == 403
    assert b"atonce_http_requests_total" in client.get("/metrics", headers=scraper).content
    assert client.get("/livez").json() == client.get("/readyz").json() == {"status": "ok"}
    client.hosts.ready = False
    told = client.get("/healthz")
    assert (told.status_code, told.json()) == (503, {**BARE, "status": "missing"})


def test_an_owner_may_open_and_close_them(closed: Any, serve: Any) -> None:
    client, _, _ = closed(host="0.0.0.0", metrics_open=True, health_open=True)
    assert client.get("/healthz").json()["models"][0]["model"] == "digits"
    assert client.get("/metrics").status_code == 200
    client, scraper, _ = closed(metrics_open=False, health_open=False)
    assert client.get("/healthz").json() == BARE
    assert client.get("/healthz", headers=scraper).json()["models"] != []
    assert client.get("/metrics").status_code == 401


def test_without_keys_or_on_this_machine_only_they_are_open(closed: Any, serve: Any) -> None:
    client, _, _ = closed()
    assert client.get("/healthz").json()["models"] != []
    assert client.get("/metrics").status_code == 200
    client = serve("digits", host="0.0.0.0")
    assert client.get("/healthz").json()["models"] != []
    assert client.get("/metrics").status_code == 200
