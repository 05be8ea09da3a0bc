"""The recipes that a plan weighs, with the settings that are known to work at their scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atonce.planning.evidence import best_line
from atonce.training.presets import PRESETS
from atonce.training.recipe import Recipe

METHODS = ("ict", "ct", "ect", "diffusion", "cd", "progressive")
DISTILLING = ("cd", "progressive")
TEACHER = "teacher"  # stands in a recipe for the teacher until it is opened


def settings_of(method: str, size: int, short: bool) -> dict[str, Any]:
    """Recipe fields beside those of the preset.

    Args:
        method: The preset.
        size: Height and width of the images.
        short: Whether the run is of small scale: then those of our table's best line, where it has one.

    Returns:
        Fields by name; none for the published recipe.
    """
    line = best_line((method,), size) or _any_line(method)
    return dict(line.settings) if short and line is not None else {}


def recipe_of(
    method: str,
    *,
    images: int,
    batch: int,
    network: str,
    settings: Mapping[str, Any],
    conditional: bool = False,
    taught: bool = False,
) -> Recipe:
    """A candidate's recipe.

    Args:
        method: The preset.
        images: Budget.
        batch: Images a step.
        network: A name.
        settings: Further fields.
        conditional: With labels.
        taught: Whether a run that need not have a teacher starts from one.

    Returns:
        The recipe; a teacher stands in it as the word :data:`TEACHER`.
    """
    further: dict[str, Any] = {**settings, "conditional": conditional}
    if method in DISTILLING:
        further["teacher"] = TEACHER
    elif taught:
        further["init"] = TEACHER
    return PRESETS[method](images, batch, network=network, **further)


def command(
    method: str, data: str, images: int, batch: int, network: str, settings: Mapping[str, Any], **further: str | None
) -> str:
    """The command that starts a candidate.

    Args:
        method: The preset.
        data: As the data were named.
        images: Budget.
        batch: Images a step.
        network: A name.
        settings: Further recipe fields.
        further: Further options by name.

    Returns:
        One line.
    """
    words = [f"atonce train {method} --data {_quoted(data)} --images {images} --batch {batch}"]
    words += [f"--network {network}"] if network != "auto" else []
    words += [f"--{name} {_quoted(value)}" for name, value in further.items() if value is not None]
    if settings:
        words.append("--set " + " ".join(f"{name}={_value(value)}" for name, value in settings.items()))
    return " ".join(words)


def _any_line(method: str) -> Any:
    """A line of the table with this preset, where none has a distance in one step (a diffusion model has not)."""
    from atonce.planning.evidence import table

    return next((line for line in table() if line.method == method), None)


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return str(value[0]) if len(value) == 1 else "[" + ",".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
