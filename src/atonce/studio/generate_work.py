"""What the tab Generate does: a wish from the controls becomes images with their records, through the service's engines."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.model_config import sample_times
from atonce.serving.answers import made_by
from atonce.serving.asking import refuse_form
from atonce.serving.encode import Made, as_base64, encode
from atonce.serving.generate import DENOISER_STEPS, ask_of, check_generate
from atonce.serving.schemas import GenerateRequest
from atonce.studio.context import Person, Studio, charge, engine_of

SEEDS = 10_000
"""The seeds that a slider reaches: 0 to one less; a wall goes on at 0 after the last."""
MOST_STEPS = 8
MOST_HEUN = 40
WALLS = (9, 16, 36)
DRAWN = "drawn"
"""The label of an image whose class follows from its seed."""


@dataclass(frozen=True)
class Wish:
    """What the controls say.

    Attributes:
        model: Name of a served model.
        seed: Seed of the image.
        label: Name or number of a class; ``None`` where it is drawn or the model has none.
        steps: Intervals.
        sigmas: Noise levels of the intervals, instead; ``None`` for the model's own.
        guidance: Scale, for models that know it.
    """

    model: str
    seed: int = 0
    label: str | None = None
    steps: int = 1
    sigmas: tuple[float, ...] | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Piece:
    """One image with its record, as a file.

    Attributes:
        png: The file; its text holds the record too.
        record: How the image was made.
        title: In words.
        size: Width and height, pixels.
    """

    png: bytes
    record: dict[str, Any]
    title: str
    size: tuple[int, int]

    @property
    def address(self) -> str:
        """The file as an address that a page can show."""
        return f"data:image/png;base64,{as_base64(self.png)}"


def wish_of(
    model: str, seed: float | None, label: str | None, steps: float | None, sigmas: list[float] | None, guidance: float | None
) -> Wish:
    """The values of the controls as a wish.

    Args:
        model: Name.
        seed: A whole number.
        label: A class, or :data:`DRAWN`.
        steps: A whole number.
        sigmas: Noise levels that were set by hand.
        guidance: Scale.

    Returns:
        The wish.

    Raises:
        InputError: A value is missing or not whole.
    """
    for value, name in ((seed, "the seed"), (steps, "steps")):
        if value is None or value != int(value):
            raise InputError(f"{name} is {value}, must be a whole number")
    assert seed is not None
    assert steps is not None
    return Wish(
        model=model,
        seed=int(seed),
        label=None if label in (None, "", DRAWN) else label,
        steps=int(steps),
        sigmas=None if not sigmas else tuple(sigmas),
        guidance=guidance,
    )


async def make(studio: Studio, who: Person, wish: Wish, n: int = 1) -> list[Piece]:
    """Make the image of a wish, and those of the seeds after it.

    Args:
        studio: The studio.
        who: Whose limits count them.
        wish: What is wanted.
        n: How many.

    Returns:
        The images with their records.

    Raises:
        ServiceError: A value does not fit the model, a limit is reached, or the engine refuses.
    """
    made, guidance = await made_of(studio, who, wish, tuple((wish.seed + i) % SEEDS for i in range(n)))
    return [piece_of(made, i, guidance) for i in range(n)]


async def made_of(studio: Studio, who: Person, wish: Wish, seeds: tuple[int, ...]) -> tuple[Made, float | None]:
    """Make images of several seeds.

    Args:
        studio: The studio.
        who: Whose limits count them.
        wish: What is wanted; its seed is not used.
        seeds: One for each image.

    Returns:
        The images as the service makes them, and the scale of guidance.

    Raises:
        ServiceError: As for :func:`make`.
    """
    engine = engine_of(studio, who, wish.model)
    guidance = wish.guidance if knows_guidance(engine.model) else None
    try:
        request = GenerateRequest(
            model=wish.model,
            seed=seeds[0] if len(seeds) == 1 else None,
            seeds=None if len(seeds) == 1 else list(seeds),
            labels=wish.label if engine.model.labels else None,
            steps=None if wish.sigmas else wish.steps,
            sigmas=None if wish.sigmas is None else list(wish.sigmas),
            guidance=guidance,
        )
    except ValidationError as fault:
        refuse_form(fault, GenerateRequest)
    settings = studio.service.settings
    check_generate(request, len(seeds), settings)
    ask = ask_of(engine.model, request)
    await charge(studio, who, len(seeds))
    return await made_by(studio.service, engine, ask, time.monotonic() + settings.request_seconds), guidance


def piece_of(made: Made, i: int, guidance: float | None) -> Piece:
    """One of several images as a file with its record.

    Args:
        made: The images.
        i: Which.
        guidance: The scale they were made with.

    Returns:
        The piece.
    """
    record = made.about(i)
    if record["label"] is not None and made.names is not None and record["label"] >= 0:
        record["class"] = made.names[record["label"]]
    record |= {"calls": made.calls, "guidance": guidance, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    size = (int(made.images.shape[-1]), int(made.images.shape[-2]))
    return Piece(encode(made.images[i], "png", record), record, title_of(record), size)


def title_of(record: dict[str, Any]) -> str:
    """An image in words, for people who cannot see it and for captions.

    Args:
        record: Of the image.

    Returns:
        For example ``digits, seed 7, 1 call``.
    """
    calls = record["calls"]
    label = f", {record['class']}" if record.get("class") is not None else ""
    return f"{record['model']}{label}, seed {record['seed']}, {calls} network call{'s' if calls != 1 else ''}"


def resolved(model: ConsistencyModel, steps: int, sigmas: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """The noise levels of a number of steps.

    Args:
        model: The model.
        steps: Intervals.
        sigmas: Levels that were set by hand, which are checked.

    Returns:
        Where the intervals start.

    Raises:
        InputError: A value is out of range.
    """
    times = sample_times(model.config, steps, sigmas, "auto")
    return tuple(times[:-1] if model.kind == "denoiser" else times)


def usual_steps(model: ConsistencyModel) -> int:
    """How many steps a model makes where nobody says: 1, or a denoiser's usual number."""
    return DENOISER_STEPS if model.kind == "denoiser" else 1


def most_steps(model: ConsistencyModel) -> int:
    """How many steps the slider reaches."""
    return MOST_HEUN if model.kind == "denoiser" else MOST_STEPS


def knows_guidance(model: ConsistencyModel) -> bool:
    """Whether a scale of guidance can be set."""
    return model.config.guidance is not None and model.config.guidance.form in ("free", "embedded")


def scales(model: ConsistencyModel) -> tuple[float, float]:
    """The scales of guidance that a slider reaches."""
    known = model.config.guidance
    return (known.scales[0], known.scales[-1]) if known is not None and known.form == "embedded" else (1.0, 8.0)


def fitted(wish: Wish, model: ConsistencyModel) -> Wish:
    """A wish without what its model does not know.

    Args:
        wish: A wish, perhaps made for another model.
        model: Its model.

    Returns:
        The same with a label of the model or none, steps within the slider, a scale within its range.
    """
    low, high = scales(model)
    scale = min(max(wish.guidance if wish.guidance is not None else low, low), high)
    known = model.labels is not None and wish.label in model.labels
    return replace(
        wish,
        label=wish.label if known else None,
        steps=min(max(wish.steps, 1), most_steps(model)),
        guidance=scale if knows_guidance(model) else None,
    )


def wish_again(record: dict[str, Any], model: ConsistencyModel) -> Wish:
    """The wish that led to an image.

    Args:
        record: Of the image.
        model: Its model.

    Returns:
        The wish; noise levels that the model would choose itself are left to it.
    """
    levels = tuple(float(sigma) for sigma in record["sigmas"])
    own = levels != resolved(model, len(levels))
    return Wish(
        record["model"], int(record["seed"]), record.get("class"), len(levels), levels if own else None, record["guidance"]
    )


def memory_of(wish: Wish) -> dict[str, Any]:
    """A wish as a browser remembers it."""
    return asdict(wish)


def from_memory(values: dict[str, Any]) -> Wish:
    """The wish that a browser remembers.

    Args:
        values: From :func:`memory_of`, or anything.

    Returns:
        The wish.

    Raises:
        InputError: A value cannot be one.
    """
    levels, scale = values.get("sigmas"), values.get("guidance")
    return wish_of(
        str(values["model"]),
        values.get("seed", 0) % SEEDS,
        None if values.get("label") is None else str(values["label"]),
        values.get("steps", 1),
        None if levels is None else [float(level) for level in levels],
        None if scale is None else float(scale),
    )


def unreadable(what: str) -> InputError:
    """An error for a value of the page that is no value: a browser's extension or somebody's script has changed it."""
    return InputError(f"{what} cannot be read: load the page again")
