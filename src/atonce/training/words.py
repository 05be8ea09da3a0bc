"""A recipe from words of a command line: a preset, its arguments, and further fields as ``name=value``."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from atonce.core.errors import InputError
from atonce.training.presets import PRESETS
from atonce.training.recipe import Recipe

_ELSEWHERE = ("images", "batch", "seed", "network", "init", "teacher")  # these are given as arguments of the preset
_MODEST = {"images": 2_000_000, "batch": 256}  # a budget for a first try; those of the papers take weeks


def recipe_from_words(preset: str, given: Mapping[str, Any], pairs: Sequence[str]) -> Recipe:
    """The recipe of a preset with what the user gave.

    Args:
        preset: Name of the preset.
        given: Arguments of the preset. A budget that is not given is a modest one, or the preset's own for ``digits``.
        pairs: Further fields as ``name=value``; a value is JSON where it reads as such, otherwise text.

    Returns:
        The recipe.

    Raises:
        InputError: A field is not known, given twice, or out of range.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is not known; known: {', '.join(PRESETS)}")
    own = {"form"} & set(inspect.signature(PRESETS[preset]).parameters)
    known = sorted({field.name for field in dataclasses.fields(Recipe)} - {"method", *_ELSEWHERE} | own)
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise InputError(f"--set takes name=value, got {pair!r}")
        if name in _ELSEWHERE:
            raise InputError(f"--set does not take {name}: use --{name}")
        if name not in known:
            raise InputError(f"recipe field {name} is not known; known: {', '.join(known)}")
        if name in fields:
            raise InputError(f"--set has {name} twice")
        fields[name] = _value(name, text)
    return PRESETS[preset](**({} if preset == "digits" else _MODEST) | dict(given), **fields)


def _value(name: str, text: str) -> Any:
    try:
        value = {"True": True, "False": False, "None": None}[text] if text in ("True", "False", "None") else json.loads(text)
    except ValueError:
        value = text
    if name == "ema" and isinstance(value, float | int | str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value
