"""JSON of callers: sound documents are read as Python reads them, bombs and oddities are refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.serving.errors import ServiceError
from atonce.serving.strict_json import MAX_DEPTH, MAX_NAMES, MAX_VALUES, read_json


def refusal(body: bytes) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read_json(body)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    return caught.value


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
SOUND = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)


@given(SOUND, st.booleans(), st.sampled_from([None, 2]))
def test_sound_documents_are_read_as_python_reads_them(value: Any, plain: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=plain, indent=indent).encode()
    assert read_json(body) == json.loads(body)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\0123456789.eEINaftrulsu-+ \n', max_size=200).map(str.encode))
def test_anything_else_is_refused_and_nothing_else_happens(body: bytes) -> None:
    found, refusal = None, None
    try:
        found = read_json(body)
    except ServiceError as problem:
        refusal = problem
    assert found == json.loads(body) if refusal is None else refusal.status == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"01", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'"a\nb"', "not JSON"),
        (b'"\0"', "not JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8: byte 7"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'{"n": NaN}', "holds NaN"),
        (b'{"n": Infinity}', "holds Infinity"),
        (b'{"n": -Infinity}', "holds -Infinity"),
        (b'{"n": 1e999}', "1e999, which is too large"),
        (b'{"n": -1e999}', "too large"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"n": 1, "n": 2}', "names 'n' twice"),
        (b'{"a": {"b": [{"c": 1, "d": 2, "c": 1}]}}', "names 'c' twice"),
        (b'{"n": 1, "\\u006e": 2}', "names 'n' twice"),
        (b'"\\ud800"', "no text"),
        (b'{"\\udfff": 1}', "no text"),
        (b'["a\\u0000b"]', "no text"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deep"),
        (b'{"a":' * 5_000_000, "nested too deep"),
        (b"[" * 400_000, "nested too deep"),
        (b'"' * 1_000_000 + b"[" * 100, "nested too deep"),
        (b'"' * 1_000_001 + b"[" * 100, "not JSON"),
        (b'"\\' * 1_000_000 + b"[" * 100, "not JSON"),
    ],
)
def test_oddities_and_bombs(body: bytes, said: str) -> None:
    if said == "nested too deep" and len(body) > 10_000_000:
        assert refusal(body).status == 413
        return
    error = refusal(body)
    assert (error.status, error.code) == (400, "invalid_json")
    assert said in error.message


def test_the_greatest_depth_is_allowed_and_brackets_in_text_do_not_count() -> None:
    assert read_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    text = "[{" * 1000 + '\\"[[' * 10
    assert read_json(json.dumps({"a": text, "b": [text]}).encode()) == {"a": text, "b": [text]}
    wide = json.dumps([[[k]] for k in range(1000)]).encode()
    assert len(read_json(wide)) == 1000


def test_a_million_values_are_allowed_and_many_more_are_not() -> None:
    body = ("[" + "7," * 999_999 + "7]").encode()
    assert len(read_json(body)) == 1_000_000
    assert refusal(b"[" + b"1," * MAX_VALUES + b"1]").status == 413


def test_escapes_that_are_text_pass() -> None:
    assert read_json(rb'"\u00e9\ud83d\ude00\\u0000"') == "é😀\\u0000"


def test_an_object_has_no_more_names_than_any_request_could_need() -> None:
    most = {f"k{i}": i for i in range(MAX_NAMES)}
    assert read_json(json.dumps({"a": [most, most]}).encode()) == {"a": [most, most]}
    error = refusal(json.dumps({"a": {**most, "one more": 1}}).encode())
    assert (error.status, error.message) == (400, "the body holds an object of 101 names: at most 100")
