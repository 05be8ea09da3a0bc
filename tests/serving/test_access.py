"""Who is asking: keys and scopes, the address behind proxies, requests and images counted, over two replicas too."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.serving.access import FAILED_ATTEMPTS, Principal, caller_address, charge, require, trusted_networks
from atonce.serving.errors import ServiceError
from atonce.serving.guard import Guard
from atonce.serving.keys import SCOPES, KeyFile, make_key, revoke_key
from atonce.serving.limits import Limits
from atonce.serving.rates import parse_limit
from atonce.serving.settings import ServeSettings


def small_app(settings: ServeSettings) -> FastAPI:
    """Routes that need scopes, behind the guard."""
    app = FastAPI()
    app.add_middleware(Guard, settings=settings)
    keys = None if settings.keys is None else KeyFile(settings.keys)
    events: list[Any] = []
    audit = SimpleNamespace(write=events.append, events=events)
    app.state.service = SimpleNamespace(settings=settings, keys=keys, limits=Limits(settings), audit=audit)
    app.state.draining = False

    @app.exception_handler(ServiceError)
    async def failed(request: Request, error: ServiceError) -> JSONResponse:
        return JSONResponse(error.body(request.state.request_id), error.status, error.headers())

    for scope in SCOPES:

        @app.get(f"/v1/{scope}")
        async def get(principal: Principal = Depends(require(scope))) -> dict[str, Any]:  # noqa: B008
            return {"id": principal.id, "name": principal.name}

    @app.post("/v1/make")
    async def make(request: Request, n: int, principal: Annotated[Principal, Depends(require("generate"))]) -> dict[str, int]:
        await charge(request, principal, n)
        return {"n": n}

    @app.post("/v1/open")
    async def open_route() -> dict[str, Any]:
        return {}

    return app


def client(app: FastAPI, address: str = "10.1.2.3") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 5000)), base_url="http://test")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# ---- keys and scopes


def test_each_scope_opens_its_own_door_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    tokens = {scope: make_key(path, f"only {scope}", scopes=(scope,))[1] for scope in SCOPES}
    app = small_app(ServeSettings(keys=path))

    async def run() -> None:
        async with client(app) as http:
            for owned, token in tokens.items():
                for scope in SCOPES:
                    for headers in (bearer(token), {"X-API-Key": token}, {"authorization": f"bEaReR   {token} "}):
                        answer = await http.get(f"/v1/{scope}", headers=headers)
                        assert answer.status_code == (200 if scope == owned else 403)
                    if scope != owned:
                        assert answer.json()["error"]["code"] == "forbidden"
                    else:
                        assert answer.json()["name"] == f"only {scope}"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "invalid_api_key"),
        ({"Authorization": "Bearer sk-something"}, "invalid_api_key"),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, "invalid_api_key"),
        ({"X-API-Key": "x" * 3000}, "invalid_api_key"),
        ({"Authorization": "Bearer \xff"}, "invalid_api_key"),
    ],
)
def test_without_a_key_that_works(tmp_path: Path, headers: dict[str, str], code: str) -> None:
    path = tmp_path / "keys.json"
    _, token = make_key(path, "shop")
    app = small_app(ServeSettings(keys=path))

    async def run() -> None:
        async with client(app) as http:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = await http.get("/v1/generate", headers=raw)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
            assert answer.headers["www-authenticate"] == "Bearer"
            both = await http.get("/v1/generate", headers={**bearer(token), "X-API-Key": token[:-1] + "x"})
            assert both.status_code == 401  # it is not for us to choose
            assert (await http.get("/v1/generate", headers={**bearer(token), "X-API-Key": token})).status_code == 200

    asyncio.run(run())


def test_a_revoked_key_is_refused_from_the_next_request_on(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, token = make_key(path, "shop")
    app = small_app(ServeSettings(keys=path))

    async def run() -> None:
        async with client(app) as http:
            assert (await http.get("/v1/generate", headers=bearer(token))).status_code == 200
            revoke_key(path, key.id)
            answer = await http.get("/v1/generate", headers=bearer(token))
            assert answer.status_code == 401
            assert "was revoked" in answer.json()["error"]["message"]

    asyncio.run(run())


def test_without_keys_everybody_may_do_everything_but_administer() -> None:
    app = small_app(ServeSettings())

    async def run() -> None:
        async with client(app) as http:
            for scope in SCOPES:
                answer = await http.get(f"/v1/{scope}", headers=bearer("sk-any-client-sends-one"))
                assert answer.status_code == (403 if scope == "admin" else 200)
            assert (await http.get("/v1/generate")).json() == {"id": "ip:10.1.2.3", "name": "10.1.2.3"}

    asyncio.run(run())


def test_a_scope_that_does_not_exist_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="no scope"):
        require("root")


def test_no_body_is_read_from_a_caller_without_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make_key(path, "shop")
    app = small_app(ServeSettings(keys=path))
    said: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/open", "raw_path": b"/v1/open", "query_string": b"", "scheme": "http",
        "headers": [(b"content-length", b"1000000"), (b"content-type", b"application/json")], "client": ("10.0.0.1", 1),
        "server": ("test", 80), "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert said[0]["status"] == 401


# ---- limits


def test_requests_of_a_key_and_of_an_address_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, plain = make_key(path, "plain")
    _, tight = make_key(path, "tight", rate="2/hour")
    _, free = make_key(path, "free", rate="")
    with_keys = small_app(ServeSettings(keys=path, rate="3/hour"))
    without = small_app(ServeSettings(rate="3/hour"))

    async def statuses(app: FastAPI, headers: dict[str, str], count: int, address: str = "10.1.2.3") -> list[int]:
        async with client(app, address) as http:
            return [(await http.get("/v1/generate", headers=headers)).status_code for _ in range(count)]

    async def run() -> None:
        assert await statuses(with_keys, bearer(plain), 4) == [200, 200, 200, 429]
        assert await statuses(with_keys, bearer(tight), 3) == [200, 200, 429]
        assert await statuses(with_keys, bearer(free), 9) == [200] * 9
        assert await statuses(without, {}, 4) == [200, 200, 200, 429]
        assert await statuses(without, {}, 1, "10.1.2.4") == [200]
        assert await statuses(without, {}, 4, "2001:db8:1:2::1") == [200, 200, 200, 429]
        assert await statuses(without, {}, 1, "2001:db8:1:2:ffff::9") == [429]  # the same /64
        assert await statuses(without, {}, 1, "2001:db8:1:3::1") == [200]
        async with client(without) as http:
            answer = await http.get("/v1/generate")
        told = {name: answer.headers[name] for name in answer.headers if name.startswith("ratelimit") or name == "retry-after"}
        assert told["ratelimit-limit"] == "3"
        assert told["ratelimit-remaining"] == "0"
        assert 3500 < int(told["ratelimit-reset"]) <= 3600
        assert 3500 < int(told["retry-after"]) <= 3600
        assert answer.json()["error"]["code"] == "rate_limited"

    asyncio.run(run())


def test_images_are_counted_by_rate_and_quota(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, token = make_key(path, "shop", image_rate="100/hour", quota="150/day")
    app = small_app(ServeSettings(keys=path))

    async def make(http: httpx.AsyncClient, n: int) -> httpx.Response:
        return await http.post(f"/v1/make?n={n}", headers=bearer(token))

    async def run() -> None:
        async with client(app) as http:
            answer = await make(http, 90)
            assert answer.status_code == 200
            assert answer.headers["ratelimit-limit"] == "100"
            assert answer.headers["ratelimit-remaining"] == "10"
            assert '"images";q=150;w=86400' in answer.headers["ratelimit-policy"]
            refused = await make(http, 11)
            assert refused.status_code == 429
            assert "100 images in 3600 s (10 left now)" in refused.json()["error"]["message"]
            assert refused.headers["ratelimit-policy"] == '"images";q=100;w=3600'
            assert refused.headers["ratelimit-remaining"] == "10"
            assert (await make(http, 10)).status_code == 200
            beyond = await make(http, 101)
            assert (beyond.status_code, beyond.json()["error"]["param"]) == (400, "n")

    asyncio.run(run())


def test_failed_attempts_are_counted_and_do_not_lock_out_good_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, token = make_key(path, "shop")
    app = small_app(ServeSettings(keys=path, rate=""))
    allowed = parse_limit(FAILED_ATTEMPTS)[0].amount

    async def run() -> None:
        async with client(app) as http:
            bad = [(await http.get("/v1/generate", headers=bearer("atonce_x"))).status_code for _ in range(allowed + 5)]
            assert bad == [401] * allowed + [429] * 5
            assert (await http.get("/v1/generate", headers=bearer(token))).status_code == 200
        async with client(app, "10.9.9.9") as http:
            assert (await http.get("/v1/generate")).status_code == 401

    asyncio.run(run())


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of this test's own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    place = tmp_path / "redis.sock"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--unixsocket", str(place), "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not place.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_two_replicas_together_answer_exactly_the_limit(redis_url: str) -> None:
    replicas = [small_app(ServeSettings(redis=redis_url, rate="40/hour")) for _ in range(2)]

    async def run() -> list[int]:
        clients = [client(app) for app in replicas]
        answers = await asyncio.gather(*(clients[k % 2].get("/v1/generate") for k in range(120)))
        for app, http in zip(replicas, clients, strict=True):
            await http.aclose()
            await app.state.service.limits.close()
        return sorted(answer.status_code for answer in answers)

    assert asyncio.run(run()) == [200] * 40 + [429] * 80


def test_a_redis_that_is_away_closes_what_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, token = make_key(path, "shop")
    app = small_app(ServeSettings(keys=path, redis="redis://127.0.0.1:1"))

    async def run() -> None:
        async with client(app) as http:
            answer = await http.get("/v1/generate", headers=bearer(token))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert (await http.get("/v1/generate")).status_code == 401  # without a key nothing is done anyway
            assert (await http.post("/v1/open")).status_code == 200  # not counted

    asyncio.run(run())


# ---- addresses


def address(client: str | None, forwarded: list[str] = (), trusted: tuple[str, ...] = ()) -> str:  # type: ignore[assignment]
    scope = {"client": client and (client, 1), "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded]}
    return caller_address(scope, trusted_networks(trusted))


PROXIES = ("10.0.0.0/8", "192.0.2.1", "fd00::/8")


@pytest.mark.parametrize(
    ("client", "forwarded", "found"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),  # not a proxy of ours: not believed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the rest is the caller's own claim
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4, 192.0.2.1"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4, 10.7.7.7, 192.0.2.1"], "1.2.3.4"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4:8080"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db8::7]:8080"], "2001:db8::/64"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("fd00::1", ["2001:db8:0:1:2::7"], "2001:db8:0:1::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("testclient", [], "unknown"),
        (None, ["1.2.3.4"], "unknown"),
    ],
)
def test_the_address_of_a_caller(client: str | None, forwarded: list[str], found: str) -> None:
    assert address(client, forwarded, PROXIES) == found


def test_without_trusted_proxies_no_header_is_believed() -> None:
    for peer in ("127.0.0.1", "10.0.0.1", "203.0.113.9"):
        assert address(peer, ["1.2.3.4"]) == peer


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=40), max_size=4))
def test_no_header_changes_the_address_of_a_stranger_or_fails(forwarded: list[str]) -> None:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    networks = trusted_networks(PROXIES)
    assert caller_address({"client": ("203.0.113.9", 1), "headers": headers}, networks) == "203.0.113.9"
    caller_address({"client": ("10.0.0.1", 1), "headers": headers}, networks)


def test_a_proxy_that_is_no_address() -> None:
    with pytest.raises(InputError, match=r"'10\.0\.0\.1/8' is no address or network"):
        trusted_networks(("10.0.0.1/8",))
