"""From the controls of the Edit tab to a request for an edit, the same that the API takes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.serving.asking import refuse_form
from atonce.serving.schemas import EDITS, EditRequest

TASKS: dict[str, tuple[str, str]] = {
    "inpaint": ("Fill in", "Mark what is to be made anew; every other pixel keeps its value."),
    "local": ("Change a part", "Mark what is to change; its coarse content stays, and every other pixel keeps its value."),
    "outpaint": ("Extend", "The picture gets surroundings; its own pixels keep their values."),
    "stroke": ("Strokes to picture", "Paint coarse strokes; the model makes a picture of them."),
    "colorize": ("Colourise", "A grey picture gets colours whose grey values are its own."),
    "upscale": ("Enlarge", "A picture with more pixels, whose block means are the pixels of the small one."),
    "denoise": ("Remove noise", "White noise is taken away in one network call."),
    "variations": ("Variations", "Pictures like this one; with another label they turn into that class."),
    "interpolate": ("Between two", "The pictures on the way from one to another."),
}
"""Name and one sentence of each task."""

BETWEEN = {"this picture and another": "pictures", "two seeds": "seeds"}
MASKED = ("inpaint", "local")
WITH_SIGMA = ("local", "stroke", "denoise", "variations")
GUESS = "guessed from the picture"
FITS = {"crop: the middle square": "crop", "pad: whole, with a border": "pad", "refuse": "none"}


@dataclass(frozen=True)
class Wish:
    """What the controls say.

    Attributes:
        model: Name of a served model.
        task: A key of :data:`TASKS`.
        seed: Of the noise.
        steps: Network calls; ``None`` for the task's own number.
        label: Name of a class; ``None`` where it is guessed or the model has none.
        sigma: First noise level, or the noise that is to be removed; ``None`` for the task's own.
        n: Results.
        factor: Of enlarging.
        size: Height and width of an extended picture; ``None`` for the model's.
        place: Row and column of the picture in it; ``None`` for the middle.
        fit: What to do with pictures of another size.
        seeds: Two seeds to go between instead of pictures.
        iterations: Steps of the search for a picture's noise.
        guidance: Scale, for models that know it.
    """

    model: str
    task: str
    seed: int = 0
    steps: int | None = None
    label: str | None = None
    sigma: float | None = None
    n: int = 1
    factor: int = 2
    size: tuple[int, int] | None = None
    place: tuple[int, int] | None = None
    fit: str = "crop"
    seeds: tuple[int, int] | None = None
    iterations: int = 60
    guidance: float | None = None


def whole(value: Any, name: str) -> int:
    """A whole number of a field.

    Args:
        value: What the field gives.
        name: What it is called.

    Returns:
        The number.

    Raises:
        InputError: It is empty or not whole.
    """
    if value is None or value == "" or isinstance(value, bool):
        raise InputError(f"{name} is empty: give a whole number")
    try:
        number = float(value)
        found = int(number)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {value!r}, must be a whole number") from None
    if number != found:
        raise InputError(f"{name} is {value!r}, must be a whole number")
    return found


def possible(model: ConsistencyModel, task: str) -> str:
    """Why a model cannot do a task.

    Args:
        model: The model.
        task: A key of :data:`TASKS`.

    Returns:
        One line; empty where it can.
    """
    if model.shape[0] not in (1, 3) or model.shape != model.image_shape or model.clip != (-1.0, 1.0):
        return "This model makes data that are no grey or RGB pictures, which cannot be edited."
    if task == "colorize" and model.shape[0] != 3:
        return "This model makes grey pictures, so it knows no colours: colourising needs a model of 3 channels."
    if task != "denoise" and model.kind == "denoiser":
        return "This model is a diffusion model; only noise can be removed with it. The other edits need a consistency model."
    if task == "upscale" and not factors(model):
        return f"No factor divides the {model.shape[1]} x {model.shape[2]} pixels of this model."
    return ""


def factors(model: ConsistencyModel) -> list[int]:
    """By how much a model can enlarge: what divides its height and width and leaves at least two pixels."""
    _, height, width = model.shape
    return [k for k in range(2, min(height, width) // 2 + 1) if height % k == 0 and width % k == 0]


def request_of(wish: Wish, pictures: Sequence[bytes], mask: str | None = None) -> EditRequest:
    """A wish as a request.

    Args:
        wish: What is wanted.
        pictures: PNG files: the picture; two of them to go between; none to go between seeds.
        mask: A ``data:`` address of what is to be made, for the tasks of :data:`MASKED`.

    Returns:
        The request.

    Raises:
        InputError: Something is missing.
        ServiceError: A value is out of range.
    """
    form = EDITS[wish.task]
    fields: dict[str, Any] = {"model": wish.model, "labels": wish.label, "fit": wish.fit, "guidance": wish.guidance}
    texts = [base64.b64encode(content).decode("ascii") for content in pictures]
    if wish.task == "interpolate":
        fields["n"] = wish.n
        if wish.seeds is not None:
            fields["seeds"] = list(wish.seeds)
        elif len(texts) != 2:
            raise InputError("there is only one picture: choose the other end from the history, or go between two seeds")
        else:
            fields |= {"images": texts, "iterations": wish.iterations}
    else:
        if not texts:
            raise InputError("there is no picture yet: choose one first")
        fields |= {"image": texts[0], "seed": wish.seed}
    if "steps" in form.model_fields:
        fields["steps"] = wish.steps
    if wish.task in WITH_SIGMA:
        fields["sigma"] = wish.sigma
    if wish.task in MASKED:
        if not mask:
            raise InputError("nothing is marked: paint what is to be made, or add a rectangle")
        fields["mask"] = mask
    match wish.task:
        case "upscale":
            fields |= {"factor": wish.factor, "fit": "crop"}  # a picture of the model's size is made small first
        case "outpaint":
            del fields["fit"]
            fields |= {
                "size": None if wish.size is None else list(wish.size),
                "place": None if wish.place is None else list(wish.place),
            }
        case "variations":
            fields["n"] = wish.n
    try:
        return form.model_validate(fields, strict=True)
    except ValidationError as fault:
        refuse_form(fault, form)


def title_of(wish: Wish, names: Sequence[str] | None, record: dict[str, Any]) -> str:
    """A result in words.

    Args:
        wish: What was wanted.
        names: The model's classes.
        record: Of the first picture.

    Returns:
        For example ``Fill in, Sneaker, seed 3``.
    """
    label = record.get("label")
    parts = [TASKS[wish.task][0]]
    if names is not None and label is not None and label >= 0:
        parts.append(names[label])
    if wish.task == "interpolate":
        parts.append(f"seeds {wish.seeds[0]} to {wish.seeds[1]}" if wish.seeds else "two pictures")
    elif wish.task != "denoise":
        parts.append(f"seed {wish.seed}")
    return ", ".join(parts)


def wish_of(values: Mapping[str, Any]) -> Wish:
    """The values of the controls as a wish.

    Args:
        values: By name of the control.

    Returns:
        The wish.

    Raises:
        InputError: A field holds no number where one is needed, or a task is unknown.
    """
    task = str(values["task"])
    if task not in TASKS:
        raise InputError(f"there is no task {task[:40]!r}: choose one of the list")
    size = (whole(values["height"] or 0, "the height"), whole(values["width"] or 0, "the width"))
    place = (values["top"], values["left"])
    between = task == "interpolate" and BETWEEN.get(str(values["between"])) == "seeds"
    return Wish(
        model=str(values["model"]),
        task=task,
        seed=whole(values["seed"], "the seed"),
        steps=whole(values["steps"] or 0, "steps") or None,
        label=None if values["label"] in (None, "", GUESS) else str(values["label"]),
        sigma=level(values["sigma"]) if task in WITH_SIGMA else None,
        n=whole(values["n"], "the number of pictures"),
        factor=whole(values["factor"], "the factor") if task == "upscale" else 2,
        size=size if any(size) else None,
        place=None if None in place or "" in place else (whole(place[0], "rows above"), whole(place[1], "columns to the left")),
        fit=FITS.get(str(values["fit"]), "crop"),
        seeds=(whole(values["seed_a"], "the first seed"), whole(values["seed_b"], "the second seed")) if between else None,
        iterations=whole(values["iterations"], "the search steps"),
    )


def level(text: Any) -> float | None:
    """A noise level of a field that may be empty.

    Args:
        text: What was typed.

    Returns:
        The level; ``None`` for an empty field.

    Raises:
        InputError: It is no number above 0.
    """
    typed = str(text if text is not None else "").strip().replace(",", ".")
    if not typed:
        return None
    try:
        found = float(typed)
    except ValueError:
        raise InputError(f"the noise level is {typed[:20]!r}, must be a number above 0, or empty") from None
    if not 0 < found < math.inf:
        raise InputError(f"the noise level is {typed[:20]}, must be a number above 0, or empty")
    return found
