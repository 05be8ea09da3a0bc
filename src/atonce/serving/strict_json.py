"""JSON as callers may send it: UTF-8, finite numbers of sane size, no name twice, few names, not deep, not millions of values.

Python's reader takes NaN, Infinity, repeated names (the last wins; another reader takes the first), whole numbers of thousands
of digits, and escapes that are no text. Each of these has made some service fail later, far from the request that brought it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from atonce.serving.errors import ServiceError

MAX_DEPTH = 32
MAX_VALUES = 1_200_000
"""Values of one document; a job may bring a label or seed for each of a million images."""
MAX_DIGITS = 40
MAX_NAMES = 100
"""Names of one object; no request knows a third of that, and each unknown one would be looked at."""
_TOO_DEEP = f"the body is nested too deep: at most {MAX_DEPTH} levels"

# A string without an end runs to the end of the text: each character is looked at once, whatever comes.
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def read_json(body: bytes) -> Any:
    """Read a document.

    Args:
        body: As it came.

    Returns:
        Its value.

    Raises:
        ServiceError: 400 (413 for too many values), with a line that says what is wrong.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"the body is not UTF-8: byte {error.start} cannot be read")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise ServiceError(413, "too_large", f"the body holds too many values: at most {MAX_VALUES:,}")
    _check_depth(body)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole, parse_float=_decimal, parse_constant=_constant)
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        _refuse(message)
    except RecursionError:
        _refuse(_TOO_DEEP)
    if b"\\u" in body:  # only escapes can bring what UTF-8 cannot
        _check_text(value)
    return value


def _check_depth(body: bytes) -> None:
    """Count brackets outside strings, where there are enough of them to matter at all.

    Raises:
        ServiceError: It is too deep.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for mark in _MARKS.finditer(body):
        first = mark[0][:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(_TOO_DEEP)
        elif first in b"]}":
            depth -= 1


def _refuse(message: str) -> NoReturn:
    raise ServiceError(400, "invalid_json", message) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        _refuse(f"the body holds an object of {len(pairs):,} names: at most {MAX_NAMES}")
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        _refuse(f"the body names {name[:100]!r} twice")
    return found


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        _refuse(f"the body holds a number of {len(text)} digits: at most {MAX_DIGITS}")
    return int(text)


def _decimal(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(f"the body holds the number {text[:40]}, which is too large")
    return value


def _constant(text: str) -> NoReturn:
    _refuse(f"the body holds {text}, which is no JSON number")


def _check_text(value: Any) -> None:
    """Refuse text that cannot be stored or sent on: half of a surrogate pair, and the character NUL.

    Raises:
        ServiceError: There is such text.
    """
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting += found.keys()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, str) and ("\0" in found or any("\ud800" <= c <= "\udfff" for c in found)):
            message = "the body holds an escape that is no text: the character NUL or half of a surrogate pair"
            _refuse(message)
