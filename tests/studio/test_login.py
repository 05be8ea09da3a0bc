"""The door: who comes in with which cookie, what another site may not do, what is sent with which headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

from atonce.serving.keys import make_key, revoke_key
from atonce.studio import login
from atonce.studio.people import COOKIE, People


@pytest.fixture(scope="module")
def locked(studio_inside: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A studio with keys: its client, and beside it the tokens of two keys."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys.json"
    _, usual = make_key(keys, "anna")
    _, admin = make_key(keys, "ben", scopes=("generate", "edit", "admin"))
    with studio_inside(folder, keys=keys) as client:
        client.usual, client.admin, client.keys = usual, admin, keys
        yield client


def sign_in(client: Any, token: str) -> Any:
    client.cookies.clear()
    return client.post("/studio/login", data={"key": token})


def test_without_a_key_there_is_only_the_page_that_asks_for_one(locked: Any) -> None:
    locked.cookies.clear()
    page = locked.get("/studio/")
    assert page.status_code == 200
    assert '<label for="key">API key</label>' in page.text
    assert "gradio" not in page.text
    assert "set-cookie" not in page.headers
    refused = locked.post("/studio/gradio_api/queue/join", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "not_signed_in")
    assert locked.get("/studio/config").status_code == 401


def test_a_key_is_shown_once_and_opens_the_page(locked: Any) -> None:
    answer = sign_in(locked, locked.usual)
    assert (answer.status_code, answer.headers["location"]) == (303, "/studio/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/studio"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # over plain HTTP it would never come back
    assert locked.usual.rpartition("_")[2] not in cookie
    page = locked.get("/studio/")
    assert "window.gradio_config" in page.text
    assert "window.atonceSignedIn = true" in page.text
    out = locked.post("/studio/logout")
    assert (out.status_code, "Max-Age=0" in out.headers["set-cookie"]) == (303, True)
    assert "API key" in locked.get("/studio/").text


def test_a_wrong_key_is_one_line_and_counted(studio_inside: Any, tmp_path: Path) -> None:
    make_key(tmp_path / "keys.json", "anna")
    with studio_inside(tmp_path, keys=tmp_path / "keys.json") as client:
        wrong = client.post("/studio/login", data={"key": "atonce_" + "0" * 12 + "_" + "x" * 43})
        assert wrong.status_code == 401
        assert wrong.text.count('role="alert"') == 1
        assert "the API key is not known" in wrong.text
        assert client.post("/studio/login", data={"key": "  "}).status_code == 400
        statuses = [client.post("/studio/login", data={"key": "no"}).status_code for _ in range(60)]
        assert statuses[-1] == 429
        assert statuses.count(401) == 59
        assert "try again in" in client.post("/studio/login", data={"key": "no"}).text


def test_a_revoked_key_closes_the_page(studio_inside: Any, tmp_path: Path) -> None:
    key, token = make_key(tmp_path / "keys.json", "anna")
    with studio_inside(tmp_path, keys=tmp_path / "keys.json") as client:
        sign_in(client, token)
        assert "window.gradio_config" in client.get("/studio/").text
        revoke_key(tmp_path / "keys.json", key.id)
        assert "API key" in client.get("/studio/").text
        assert client.get("/studio/config").status_code == 401


def test_scopes_hold(locked: Any) -> None:
    import gradio as gr

    from atonce.studio.context import allow

    studio = locked.app.state.studio
    people = People(studio.service, studio.private, "/studio")
    anna, ben = (known(people, people.with_key(token)) for token in (locked.usual, locked.admin))
    allow(studio, anna, "generate")
    allow(studio, ben, "admin")
    with pytest.raises(gr.Error, match="does not have the scope admin"):
        allow(studio, anna, "admin")
    assert anna.id != ben.id
    assert anna.folder != ben.folder


def known(people: People, value: str) -> Any:
    return people.known({"headers": [(b"cookie", f"{COOKIE}={value}".encode())], "client": ("127.0.0.1", 1)})


def test_a_cookie_that_we_did_not_sign_is_nobody(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = client.app.state.studio
    people = People(studio.service, studio.private, "/studio")
    value = people.newcomer()
    found = known(people, value)
    assert found is not None
    assert (known(people, value).id, found.principal.id) == (found.id, "ip:127.0.0.1")
    assert found.folder.parent == studio.private
    for other in (
        value[:-1] + ("0" if value[-1] != "0" else "1"),
        value.replace("browser", "key"),
        "x",
        value + "; y=1"[:0] + ".a",
    ):
        assert known(people, other) is None
    again = People(studio.service, studio.private, "/studio")
    assert known(again, value) == found  # a restart makes nobody a stranger
    import time

    month = time.time() + 31 * 86400
    monkeypatch.setattr(time, "time", lambda: month)
    assert known(people, value) is None


def test_each_browser_is_a_person(client: Any) -> None:
    client.cookies.clear()
    first = client.get("/studio/").headers["set-cookie"]
    assert "set-cookie" not in client.get("/studio/").headers  # known from now on
    client.cookies.clear()
    second = client.get("/studio/").headers["set-cookie"]
    assert first.partition(";")[0] != second.partition(";")[0]
    client.cookies.clear()


def test_a_link_from_elsewhere_does_not_make_a_stranger_of_its_reader(client: Any) -> None:
    client.cookies.clear()
    answer = client.get("/studio/", headers={"Sec-Fetch-Site": "cross-site"})
    assert "set-cookie" not in answer.headers
    assert 'http-equiv="refresh"' in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_another_site_can_do_nothing(client: Any, headers: dict[str, str], status: int) -> None:
    client.cookies.clear()
    client.get("/studio/")
    cookie = {"Cookie": f"{COOKIE}={client.cookies.get(COOKIE, domain='127.0.0.1', path='/studio')}"}
    answer = client.post("/studio/gradio_api/reset", json={"event_id": "1"}, headers=headers | cookie)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/info", "gradio_api/openapi.json", "gradio_api/proxy=http://127.0.0.1/", "monitoring", "monitoring/summary",
        "gradio_api/deep_link", "gradio_api/runs", "gradio_api/call/x", "gradio_api/token", "manifest.json", "login/x",
        "gradio_api/vibe-code", "own/000000000000/../../page.py", "assets/../index.html", "static/../../../__init__.py",
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(client: Any, path: str) -> None:
    client.get("/studio/")
    assert client.get(f"/studio/{path}").status_code == 404


def test_pages_have_safe_headers_and_files_are_kept(client: Any) -> None:
    page = client.get("/studio/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["x-content-type-options"] == "nosniff"
    own = re.search(r'<link rel="stylesheet" href="\./(own/[0-9a-f]{12}/base\.css)"', page.text)
    assert own is not None
    for path in (own[1], re.search(r"\./(assets/index-[^\"]+\.js)", page.text)[1]):  # type: ignore[index]
        file = client.get(f"/studio/{path}")
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]


def test_a_file_is_packed_for_those_who_are_far_away(client: Any) -> None:
    path = re.search(r"\./(own/[0-9a-f]{12}/base\.css)", client.get("/studio/").text)[1]  # type: ignore[index]
    far = client.get(f"/studio/{path}", headers={"X-Forwarded-For": "203.0.113.9", "Accept-Encoding": "gzip"})
    assert far.headers["content-encoding"] == "gzip"
    near = client.get(f"/studio/{path}", headers={"Accept-Encoding": "identity"})
    assert far.content == near.content
    assert "content-encoding" not in near.headers


def test_an_upload_beyond_the_limit_is_refused(studio_inside: Any, tmp_path: Path) -> None:
    with studio_inside(tmp_path, studio_upload=4096) as client:
        client.get("/studio/")
        fine = client.post("/studio/gradio_api/upload", files={"files": ("a.bin", b"x" * 2000)})
        assert fine.status_code == 200
        large = client.post("/studio/gradio_api/upload", files={"files": ("a.bin", b"x" * 9000)})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        client.cookies.clear()
        assert client.post("/studio/gradio_api/upload", files={"files": ("a.bin", b"x")}).status_code == 401


def test_nobody_listens_in_another_persons_name(client: Any) -> None:
    studio = client.app.state.studio
    people = People(studio.service, studio.private, "/studio")
    anna, ben = ({"Cookie": f"{COOKIE}={people.newcomer()}"} for _ in range(2))
    client.cookies.clear()
    stop = {"session_hash": "annaspage", "fn_index": 1, "event_id": "x"}
    assert client.post("/studio/gradio_api/cancel", json=stop, headers=anna).status_code == 200
    join = {"data": [], "fn_index": 0, "session_hash": "annaspage"}
    for asked in (
        client.post("/studio/gradio_api/cancel", json=stop, headers=ben),
        client.post("/studio/gradio_api/queue/join", json=join, headers=ben),
        client.post("/studio/gradio_api/run/predict", json=join, headers=ben),
        client.get("/studio/gradio_api/queue/data?session_hash=annaspage", headers=ben),
        client.get("/studio/gradio_api/heartbeat/annaspage", headers=ben),
    ):
        assert (asked.status_code, asked.json()["error"]["code"]) == (403, "forbidden")
    assert client.post("/studio/gradio_api/cancel", json=stop, headers=anna).status_code == 200


def test_the_key_page_escapes_what_it_says() -> None:
    assert "<script>" not in login.page("<script>alert(1)</script>")
    with pytest.raises(Exception, match="longer than 4096 bytes"):
        login.key_in(b"key=" + b"x" * 5000)


@pytest.mark.slow
def test_by_mouse_and_keyboard(browser: Any, serve_studio: Any, page_for: Any, axe: Any, shot: Any, tmp_path: Path) -> None:
    _, token = make_key(tmp_path / "keys.json", "anna")
    with (
        serve_studio(tmp_path, "--no-browser", "--keys", str(tmp_path / "keys.json")) as (url, _),
        page_for(browser, url, width=390, expected=(r"status of 401",)) as page,
    ):
        assert axe(page) == []
        shot(page, "login-390")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        assert "not known" in page.get_by_role("alert").inner_text()
        shot(page, "login-wrong-390")
        assert axe(page) == []
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate-picture img[src^=data]")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("#key")
