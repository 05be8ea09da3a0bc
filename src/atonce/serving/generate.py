"""Generation that comes as a request: checked, asked of an engine, waited for without a thread."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

import torch
from torch import Tensor

from atonce.core.choices import class_numbers
from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel
from atonce.model_config import drawn_labels
from atonce.serving.errors import bad_request, too_large
from atonce.serving.schemas import GenerateRequest, Labels, Strict
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.rows import Ask

R = TypeVar("R", bound=Strict)
DENOISER_STEPS = 18  # EDM's choice for small images; a denoiser's single step is no image
_SEEDS = 1 << 32  # of those that are drawn: any program can hold them exactly


def classes_of(model: ConsistencyModel, ask: Ask, index: Tensor, keys: int | Tensor) -> list[int] | None:
    """The class of each image of a request: the given ones, or those that are drawn.

    Args:
        model: The model.
        ask: The request.
        index: Indices of the images, int64 [n].
        keys: The seed, or one for each image.

    Returns:
        Numbers of classes; ``None`` where the model has none.
    """
    if ask.labels is not None:
        return list(ask.labels) if len(ask.labels) == ask.n else [ask.labels[0]] * ask.n
    classes = model.config.network.labels
    return drawn_labels(keys, index, classes).tolist() if classes else None


def ask_of(model: ConsistencyModel, request: GenerateRequest) -> Ask:
    """A request as an engine takes it.

    Args:
        model: The model that is to answer it.
        request: What is asked for. A seed that is missing is drawn: whoever needs the same one twice calls :func:`with_seed`.

    Returns:
        What to submit.

    Raises:
        bad_request: Something does not fit the model.
    """
    from atonce.serving.rows import ask_for

    labels = label_words(request.labels)
    seeds = request.seeds
    n = request.n or len(seeds or ()) or (len(labels) if len(labels) > 1 else 1)
    if seeds is not None and (request.seed is not None or request.first):
        raise bad_request("seeds is given with seed or first: seeds says it all, leave them out", "seeds")
    if seeds is not None and len(seeds) != n:
        raise bad_request(f"{len(seeds)} seeds are given for {n} images: give one for each", "seeds")
    steps = request.steps or (DENOISER_STEPS if model.kind == "denoiser" and request.sigmas is None else 1)
    try:
        numbers = class_numbers(labels, model.labels)
        if numbers is not None and len(numbers) not in (1, n):
            raise bad_request(f"{len(numbers)} labels are given for {n} images: give one, or one for each image", "labels")
        return ask_for(
            model,
            n=n,
            seed=seed_of(request.seed),
            first=request.first,
            seeds=None if seeds is None else tuple(seeds),
            labels=numbers,
            steps=steps,
            sigmas=None if request.sigmas is None else tuple(request.sigmas),
            guidance=request.guidance,
            ema=request.ema,
        )
    except InputError as problem:
        refuse(problem, type(request))


def check_generate(request: GenerateRequest, n: int, settings: ServeSettings) -> None:
    """Refuse a direct request that asks for more than one may.

    Args:
        request: What is asked for.
        n: Its images.
        settings: The limits.

    Raises:
        ServiceError: There are too many steps or images.
    """
    check_steps(request.steps, request.sigmas, settings)
    check_images(n, settings)


def check_images(n: int, settings: ServeSettings, param: str = "n") -> None:
    """Refuse too many images for a direct request.

    Args:
        n: How many.
        settings: The limit.
        param: The field that says so.

    Raises:
        too_large: There are.
    """
    if n > settings.max_images:
        raise too_large(
            f"{n:,} images are asked for, one request may have {settings.max_images:,}: ask for fewer, or make a job",
            param,
        )


def check_steps(steps: int | None, sigmas: Sequence[float] | None, settings: ServeSettings) -> None:
    """Refuse too many steps.

    Args:
        steps: How many, if said.
        sigmas: Noise levels, if given.
        settings: The limit.

    Raises:
        bad_request: There are.
    """
    for count, param in ((steps or 0, "steps"), (len(sigmas or ()), "sigmas")):
        if count > settings.max_steps:
            raise bad_request(f"{param} asks for {count} network calls, the limit is {settings.max_steps}", param)


def with_seed(request: R) -> R:
    """The same request with a seed, drawn where there is none and the request can have one."""
    fields = type(request).model_fields
    if "seed" not in fields or any(getattr(request, name, None) is not None for name in ("seed", "seeds")):
        return request
    return request.model_copy(update={"seed": seed_of(None)})


def seed_of(seed: int | None) -> int:
    """A seed, drawn where there is none."""
    return secrets.randbelow(_SEEDS) if seed is None else seed


def seed_noise(model: ConsistencyModel, seed: int) -> Tensor:
    """The noise [C, H, W] of the one image of a seed."""
    return normal(seed, torch.tensor([0]), model.shape, Stream.SAMPLE, 0)[0].to(model.device)


def label_words(labels: Labels | None) -> list[str]:
    """Labels as they are written: numbers and names."""
    given = [] if labels is None else labels if isinstance(labels, list) else [labels]
    return [str(label) for label in given]


def refuse(problem: InputError, form: type[Strict]) -> NoReturn:
    """Give a complaint of the library as an answer.

    Args:
        problem: Its message names the value, the limit and the remedy.
        form: The request; a field of it that the message begins with is named.

    Raises:
        bad_request: It.
    """
    text = str(problem)
    words = text.replace("=", " ").split()
    first = words[0].rstrip(":,") if words else ""
    aliases = {"label": "labels", "class": "labels", "there": "labels"} if "class" in text or "label" in text else {}
    param = aliases.get(first, first)
    raise bad_request(text, param if param in form.model_fields else None) from problem
