"""Links: what was signed comes back, anything else does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.serving.errors import ServiceError
from atonce.serving.links import Link, base_of, link_of, token_of
from atonce.serving.settings import ServeSettings

SECRET = b"s" * 32
LINK = Link("digits", "1", 7, 3, None, (80.0, 0.8), None, "png", 2_000_000_000)


@given(
    st.builds(
        Link,
        model=st.text(min_size=1, max_size=40),
        version=st.text(min_size=1, max_size=40),
        seed=st.integers(-(1 << 63), (1 << 63) - 1),
        index=st.integers(0, 1 << 53),
        label=st.none() | st.integers(0, 1000),
        sigmas=st.lists(st.floats(0.001, 100), min_size=1, max_size=20).map(tuple),
        guidance=st.none() | st.floats(0, 10),
        format=st.sampled_from(["png", "webp", "jpeg"]),
        until=st.just(2_000_000_000),
    )
)
def test_a_link_comes_back_whole(link):
    assert link_of(token_of(link, SECRET), SECRET, now=0.0) == link


@given(st.data())
def test_no_changed_token_is_taken(data):
    token = token_of(LINK, SECRET)
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCxyz019-_."))
    changed = token[:place] + letter + token[place + 1 :]
    if changed == token:
        return
    if place in (token.index(".") - 1, len(token) - 1):
        return  # the last letter of base64 may hold bits that stand for nothing
    with pytest.raises(ServiceError) as caught:
        link_of(changed, SECRET, now=0.0)
    assert caught.value.status == 404


@given(st.text(max_size=200))
def test_no_text_brings_it_down(token):
    with pytest.raises(ServiceError) as caught:
        link_of(token, SECRET)
    assert caught.value.status == 404


def test_another_secret_or_a_later_time_is_refused():
    token = token_of(LINK, SECRET)
    with pytest.raises(ServiceError, match="another secret"):
        link_of(token, b"t" * 32, now=0.0)
    assert link_of(token, SECRET, now=2_000_000_000.0) == LINK
    with pytest.raises(ServiceError, match="expired"):
        link_of(token, SECRET, now=2_000_000_000.5)


def base(*headers: tuple[str, str], server: tuple[str, int | None] = ("10.1.2.3", 8000), **settings: object) -> str:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"headers": raw, "server": server, "client": ("10.9.9.9", 5000), "scheme": "http"}
    return base_of(scope, ServeSettings(**settings))


@pytest.mark.parametrize(
    ("host", "begins"),
    [
        ("evil.example", "http://10.1.2.3:8000"),
        ("10.1.2.3:8000", "http://10.1.2.3:8000"),
        ("10.1.2.3:80@evil.example", "http://10.1.2.3:8000"),
        ("10.1.2.3:9000", "http://10.1.2.3:9000"),  # a port that something passes on
        ("localhost:9000", "http://localhost:9000"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("localhost.evil.example", "http://10.1.2.3:8000"),
        ("127.0.0.1.evil.example", "http://10.1.2.3:8000"),
        ("localhost/x", "http://10.1.2.3:8000"),
        ("", "http://10.1.2.3:8000"),
    ],
)
def test_a_callers_own_word_for_the_host_is_not_taken(host, begins):
    assert base(("host", host)) == begins
    assert base(("host", host), ("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "https")) == begins


def test_an_owner_says_where_links_lead():
    evil = (("host", "evil.example"), ("x-forwarded-host", "evil.example"))
    assert base(*evil, public_url="https://images.example.org") == "https://images.example.org"
    assert base(*evil, public_url="https://example.org/images/") == "https://example.org/images"
    for wrong in ("images.example.org", "ftp://example.org", "https://example.org/?a=b", "https://"):
        with pytest.raises(ValueError, match="https://images.example.org"):
            ServeSettings(public_url=wrong)


def test_a_trusted_proxy_is_believed():
    told = (("host", "inner:8000"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "images.example.org"))
    assert base(*told, trusted_proxies=("10.9.0.0/16",)) == "https://images.example.org"
    assert base(*told, trusted_proxies=("10.8.0.0/16",)) == "http://10.1.2.3:8000"
    assert base(*told[:1], trusted_proxies=("10.9.9.9",)) == "http://inner:8000"
    twice = (("x-forwarded-host", "evil.example, images.example.org"), ("x-forwarded-proto", "javascript"))
    assert base(*twice, trusted_proxies=("10.9.9.9",)) == "http://images.example.org"
    assert base(("host", "<b>"), trusted_proxies=("10.9.9.9",)) == "http://10.1.2.3:8000"


def test_addresses_of_six_have_brackets():
    assert base(("host", "x"), server=("2001:db8::1", 8000)) == "http://[2001:db8::1]:8000"
    assert base(("host", "[2001:db8::1]:8000"), server=("2001:db8::1", 8000)) == "http://[2001:db8::1]:8000"
    assert base(("host", "[::1]:8000"), server=("2001:db8::1", 8000)) == "http://[::1]:8000"


def test_a_link_of_an_answer_does_not_lead_where_its_caller_says(serve):
    pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
    wanted = {"prompt": "", "response_format": "url", "seed": 1}
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    answer = serve("digits").post("/v1/images/generations", json=wanted, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["url"].startswith("http://testserver/v1/images/link/")
    client = serve("digits", public_url="https://images.example.org")
    url = client.post("/v1/images/generations", json=wanted, headers=headers).json()["data"][0]["url"]
    assert url.startswith("https://images.example.org/v1/images/link/")
    assert client.get(url.removeprefix("https://images.example.org")).headers["content-type"] == "image/png"
