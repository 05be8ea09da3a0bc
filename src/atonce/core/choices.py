"""What people choose by a word: a class, by number or by name, and how a picture is brought to size."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from atonce.core.errors import InputError

Fit = Literal["none", "crop", "pad"]
"""Refuse pictures of another size; take the middle square, resized; shrink them whole, with a border."""


def class_numbers(words: Sequence[str], names: Sequence[str] | None) -> tuple[int, ...] | None:
    """Numbers of the classes that a user gave.

    A whole number is the number of a class; anything else is its name, in any case of letters.

    Args:
        words: What the user wrote.
        names: The classes of the model; ``None`` for one without.

    Returns:
        One number for each word; ``None`` where there are no words.

    Raises:
        InputError: There is no such class, or the model has none.
    """
    if not words:
        return None
    if names is None:
        raise InputError("labels are given, but this model is unconditional: leave them out")
    known = {name.casefold(): number for number, name in enumerate(names)}
    return tuple(_number(word, known, names) for word in words)


def class_rows(words: Sequence[str], names: Sequence[str] | None, images: int, n: int) -> int | list[int] | None:
    """Classes of the results of edits.

    Args:
        words: One for all, one for each image, or one for each result; or none.
        names: The classes of the model; ``None`` for one without.
        images: Number of images.
        n: Results of each.

    Returns:
        One class for all results as an int, a list of one for each result, or ``None`` where there are no words.

    Raises:
        InputError: A class is unknown, or their number does not fit.
    """
    found = list(class_numbers(words, names) or ())
    if len(found) <= 1:
        return found[0] if found else None
    if len(found) not in (images, images * n):
        raise InputError(
            f"{len(found)} labels are given for {images} images with {n} results each: give one for all, one for each image or "
            "one for each result"
        )
    return found if len(found) == images * n else [label for label in found for _ in range(n)]


def _number(word: str, known: dict[str, int], names: Sequence[str]) -> int:
    try:
        number = int(word)
    except ValueError:
        if word.casefold() in known:
            return known[word.casefold()]
        close = difflib.get_close_matches(word.casefold(), known, n=5, cutoff=0.5) if len(names) > 20 else known
        listed = ", ".join(names[known[name]] for name in close)
        hint = f"; {'near' if len(names) > 20 else 'known'}: {listed}" if listed else ""
        raise InputError(f"there is no class {word!r}: give a number from 0 to {len(names) - 1}, or a name{hint}") from None
    if not 0 <= number < len(names):
        raise InputError(f"label {number} is out of range: this model has {len(names)} classes, 0 to {len(names) - 1}")
    return number
