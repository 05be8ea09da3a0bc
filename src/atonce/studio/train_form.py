"""What somebody asks for in the Train tab, checked field by field, as a recipe and as words of ``atonce train``."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from atonce.core.checks import whole
from atonce.core.errors import InputError
from atonce.networks.presets import NAMES as NETWORKS
from atonce.planning.candidates import METHODS, settings_of
from atonce.training.presets import PRESETS
from atonce.training.recipe import Recipe
from atonce.training.words import recipe_from_words

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
OWN = "the preset's"  # network: what the preset has
MODEST = {"images": 200_000, "batch": 128}  # what the form offers for presets other than digits: an hour of two cores on 28x28
MOST = 10**12  # images


@dataclass(frozen=True)
class Form:
    """The fields of the form. What is ``None`` is left to the preset.

    Attributes:
        name: Of the run and its folder.
        preset: Name of the preset.
        images: Budget in images seen.
        batch: Images of an optimiser step.
        lr: Learning rate.
        network: A network by name, or :data:`OWN`.
        conditional: Train with the data's labels.
        size: Height and width to which the images are cropped and resized.
        seed: Of weights, order and noise.
        start: Name or folder of the model that is distilled, or whose weights start the run; as ``atonce train`` takes it.
        small: Whether the settings of our measured small runs are used, where the preset has such, instead of published ones.
    """

    name: str
    preset: str = "digits"
    images: int | None = None
    batch: int | None = None
    lr: float | None = None
    network: str = OWN
    conditional: bool = False
    size: int | None = None
    seed: int = 0
    start: str | None = None
    small: bool = True

    @property
    def distils(self) -> bool:
        """Whether ``start`` is a teacher, not merely the first weights."""
        return distils(self.preset)


def distils(preset: str) -> bool:
    """Whether a preset learns from a diffusion model."""
    return "teacher" in inspect.signature(PRESETS[preset]).parameters


def form_of(values: dict[str, Any]) -> Form:
    """A form from what the page sends.

    Args:
        values: Values by name of the field; numbers may come as floats, and empty fields as ``None`` or ``""``.

    Returns:
        The form.

    Raises:
        InputError: A field is no number, out of its range, or not known; the message names field, value and limit.
    """
    name = check_name(values.get("name"))
    preset = values.get("preset") or "digits"
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}, must be one of {', '.join(PRESETS)}")
    network = values.get("network") or OWN
    if network != OWN and network not in NETWORKS:
        raise InputError(f"network is {network!r}, must be one of {', '.join(NETWORKS)}")
    lr = values.get("lr")
    if lr in (None, "", 0):  # an empty number field says 0
        lr = None
    elif isinstance(lr, bool) or not isinstance(lr, (int, float)) or not math.isfinite(lr) or not 0 < lr <= 10:
        raise InputError(f"learning rate is {lr!r}, must be above 0 and at most 10, or 0 for the preset's")
    seed = _whole(values.get("seed"), "seed", 0, 1 << 62)
    form = Form(
        name=name,
        preset=preset,
        images=_whole(values.get("images"), "images", 1, MOST),
        batch=_whole(values.get("batch"), "batch", 1, 1 << 16),
        lr=None if lr is None else float(lr),
        network=network,
        conditional=bool(values.get("conditional")),
        size=_whole(values.get("size") or None, "size", 4, 1024),
        seed=0 if seed is None else seed,
        start=values.get("start") or None,
        small=bool(values.get("small", True)),
    )
    if form.distils and form.start is None:
        raise InputError(
            f"{preset} distils a diffusion model and none is chosen: train one first with the preset diffusion, then choose it "
            "under 'Start from'"
        )
    return form


def check_name(name: Any) -> str:
    """The name of a new run, which becomes a folder's.

    Args:
        name: What was typed.

    Returns:
        The name without spaces around it.

    Raises:
        InputError: It is empty, too long, or has characters that a folder's name should not have.
    """
    text = str(name or "").strip()
    if not text:
        raise InputError("the run has no name: give 1 to 64 letters, digits, '.', '_' or '-'")
    if not NAME.fullmatch(text) or text.endswith((".", ".tmp")):
        raise InputError(
            f"the run's name is {text[:80]!r}, must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return text


def settings(form: Form, side: int) -> dict[str, Any]:
    """Recipe fields beside the arguments of the preset.

    Args:
        form: The form.
        side: Height and width of the images.

    Returns:
        Fields by name.
    """
    fields = settings_of(form.preset, side, True) if form.small and form.preset in METHODS else {}
    if form.lr is not None:
        fields["lr"] = form.lr
    if form.conditional:
        fields["conditional"] = True
    return fields


def arguments(form: Form) -> dict[str, Any]:
    """The arguments of the preset: budget, batch, seed, network, and the model it starts from."""
    modest = {} if form.preset == "digits" else MODEST
    given: dict[str, Any] = {"seed": form.seed}
    for name in ("images", "batch"):
        value = getattr(form, name)
        value = modest.get(name) if value is None else value
        given |= {} if value is None else {name: value}
    if form.network != OWN:
        given["network"] = form.network
    if form.start is not None:
        given["teacher" if form.distils else "init"] = form.start
    return given


def recipe_of(form: Form, side: int) -> Recipe:
    """The recipe that the command of :func:`words` trains, before it knows the data.

    Args:
        form: The form.
        side: Height and width of the images.

    Returns:
        The recipe.

    Raises:
        InputError: Fields do not fit together.
    """
    return recipe_from_words(form.preset, arguments(form), _pairs(settings(form, side)))


def words(form: Form, side: int, place: str, out: str) -> list[str]:
    """The words of the command, without the program: what runs, and what can be typed instead.

    Args:
        form: The form.
        side: Height and width of the images.
        place: The data, as ``--data`` takes them.
        out: The run folder.

    Returns:
        ``train`` and its arguments.
    """
    line = ["train", form.preset, "--data", place, "--out", out]
    for name, value in arguments(form).items():
        line += [f"--{name}", str(value)]
    if form.size is not None:
        line += ["--size", str(form.size)]
    if pairs := _pairs(settings(form, side)):
        line += ["--set", *pairs]
    return line


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in fields.items()]


def _whole(value: Any, name: str, least: int, most: int) -> int | None:
    """A whole number of a number field, which gives floats; ``None`` where it is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return whole(value, name, least, most)
