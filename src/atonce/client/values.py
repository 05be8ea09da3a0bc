"""What callers hand in as numbers, as JSON can carry it: numpy's and PyTorch's values too."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from atonce.core.errors import InputError


def plain(value: Any, name: str) -> Any:
    """A value of a request as Python's own types.

    Args:
        value: A number, a text, a truth value, an array of numpy or a tensor of PyTorch, or any iterable of these.
        name: What to call it in messages.

    Returns:
        The same as ``int``, ``float``, ``bool``, ``str``, ``None``, or lists of them.

    Raises:
        InputError: It is something else.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, float):
        return float(value)  # numpy's float64 is one
    if hasattr(value, "tolist") and not isinstance(value, int):  # arrays and scalars of numpy and PyTorch, also of 0 axes
        found = value.tolist()
        if isinstance(found, list):
            return [plain(each, name) if not isinstance(each, (bool, int, float, str)) else each for each in found]
        if isinstance(found, (bool, int, float, str)):
            return found
    else:
        try:
            return operator.index(value)
        except TypeError:
            pass
        if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, memoryview, Mapping, set, frozenset)):
            return [plain(each, name) for each in value]
        if hasattr(value, "__float__"):
            return float(value)
    raise InputError(f"{name} is a {type(value).__name__}: give numbers, texts, lists or arrays of them")
