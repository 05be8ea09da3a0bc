"""Links: what was signed comes back, anything else does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.serving.errors import ServiceError
from atonce.serving.links import Link, link_of, token_of

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
