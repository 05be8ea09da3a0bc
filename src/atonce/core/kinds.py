"""Whether values that came out of a file are of the kinds that a dataclass says its fields have."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_types(form: type, values: Mapping[str, Any]) -> None:
    """Refuse values of the wrong kind; what is missing or unknown is for the dataclass itself to say.

    Args:
        form: A dataclass.
        values: Values of its fields by name.

    Raises:
        TypeError: A value is of another kind than its field.
    """
    for name, hint in get_type_hints(form).items():
        if name in values and not fits(values[name], hint):
            raise TypeError(f"{name} is {values[name]!r}, of the wrong kind")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a kind; a whole number serves as a float, true and false as no number.

    Args:
        value: The value.
        hint: A class, a union, ``tuple[X, ...]`` or ``Mapping[X, Y]``.

    Returns:
        Whether it is.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is tuple:  # all of one kind
        return isinstance(value, tuple) and all(fits(each, inner[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool):
        return bool(hint is bool)
    return isinstance(value, int | float if hint is float else hint)
