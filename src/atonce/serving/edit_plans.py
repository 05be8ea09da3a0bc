"""Requests for edits, read and checked against a model before any network call is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from atonce.core.choices import class_rows
from atonce.core.errors import InputError
from atonce.editing.classes import GUESS_CALLS, edit_labels, must_guess
from atonce.editing.inputs import needs_consistency
from atonce.editing.operators import averages
from atonce.model import ConsistencyModel
from atonce.serving import pictures
from atonce.serving.errors import bad_request
from atonce.serving.generate import check_steps, label_words, refuse, seed_of
from atonce.serving.pictures import Read, Sizes
from atonce.serving.schemas import (
    ColorizeRequest,
    DenoiseRequest,
    DrawnRequest,
    EditRequest,
    InpaintRequest,
    InterpolateRequest,
    LocalRequest,
    OutpaintRequest,
    RestoreRequest,
    UpscaleRequest,
)
from atonce.serving.settings import ServeSettings

MOST_WINDOWS = 256  # of one outpainting
MOST_BETWEEN = 4096  # images of one interpolation


@dataclass(frozen=True, eq=False)
class Plan:
    """An edit whose pictures have been read and checked against a model; no network call has been made.

    Attributes:
        kind: Name of the edit.
        request: What is asked for.
        n: Results for each picture.
        total: Results in all.
        cost: Images that the work is worth: windows of an outpainting count.
        price: Images that are counted against the caller's limits: those of ``cost``, and one for each network call by which
            the class of a picture is guessed.
        seed: Of the noise; ``None`` for interpolation.
        labels: One class for all, or one for each result; ``None`` where none are given.
        read: The pictures.
        mask: bool [N or 1, 1, H, W], where the edit has one.
    """

    kind: str
    request: EditRequest
    n: int
    total: int
    cost: int
    price: int
    seed: int | None
    labels: int | list[int] | None
    read: Read | None = None
    mask: Tensor | None = None


def plan_edit(model: ConsistencyModel, kind: str, request: EditRequest, settings: ServeSettings) -> Plan:
    """Read and check everything that can be checked without a network call.

    Args:
        model: The model.
        kind: Name of the edit.
        request: What is asked for.
        settings: Limits of steps and pixels.

    Returns:
        The plan.

    Raises:
        ServiceError: Something does not fit.
    """
    try:
        return _plan(model, kind, request, settings)
    except InputError as problem:
        refuse(problem, type(request))


def count_results(kind: str, request: EditRequest) -> int:
    """Images that an edit will give, known before any picture is decoded."""
    if isinstance(request, InterpolateRequest):
        return request.n
    given = getattr(request, "image")  # noqa: B009 - of all but interpolation
    return getattr(request, "n", 1) * (1 if isinstance(given, str) else len(given))


def _plan(model: ConsistencyModel, kind: str, request: EditRequest, settings: ServeSettings) -> Plan:
    if model.shape[0] not in (1, 3) or model.shape != model.image_shape or model.clip != (-1.0, 1.0):
        raise bad_request("this model makes data that are no grey or RGB pictures, which cannot be edited here", "model")
    if kind != "denoise":
        needs_consistency(model)
    steps, sigmas = getattr(request, "steps", None), getattr(request, "sigmas", None)
    check_steps(steps, sigmas, settings)
    if isinstance(request, InterpolateRequest):
        return _plan_between(model, request, settings)
    assert isinstance(request, DrawnRequest | DenoiseRequest)
    sizes = _sizes(model, request, settings)
    texts = [request.image] if isinstance(request.image, str) else request.image
    n = request.n if isinstance(request, DrawnRequest) else 1
    labels = class_rows(label_words(request.labels), model.labels, len(texts), n)
    edit_labels(model, labels if isinstance(labels, int) else None, 1, request.guidance, guessed=True)
    read = pictures.read_pictures(texts, sizes, "image")
    mask = _mask(request, read, sizes)
    windows = _windows(model, request, read)
    total = len(texts) * n
    cost = total * windows
    return Plan(
        kind, request, n, total, cost, cost + total * _guesses(model, labels), seed_of(request.seed), labels, read, mask
    )


def _guesses(model: ConsistencyModel, labels: int | list[int] | None) -> int:
    """Network calls by which the class of one picture is guessed, where the request gives none."""
    return GUESS_CALLS * model.config.network.labels if must_guess(model, labels) else 0


def _sizes(model: ConsistencyModel, request: DrawnRequest | DenoiseRequest, settings: ServeSettings) -> Sizes:
    channels, side, _ = model.shape
    if isinstance(request, OutpaintRequest):
        return Sizes(settings.max_pixels, channels, None, longest=settings.max_side)
    if isinstance(request, UpscaleRequest):
        averages(request.factor).check((1, *model.shape))
        remedy = f" ({side}x{side} of the model over the factor {request.factor})"
        return Sizes(
            settings.max_pixels, channels, side // request.factor, request.fit, remedy=remedy, longest=settings.max_side
        )
    if isinstance(request, RestoreRequest):
        averages(request.factor).check((1, *model.shape))
        if request.grey and channels != 3:
            raise bad_request("grey is true, but this model makes grey pictures: leave it out", "grey")
        return Sizes(settings.max_pixels, channels, side, request.fit, request.factor, longest=settings.max_side)
    if isinstance(request, ColorizeRequest):
        if channels != 3:
            raise bad_request("this model makes grey pictures, so it knows no colours: name a model of 3 channels", "model")
        channels = 1
    return Sizes(settings.max_pixels, channels, side, request.fit, longest=settings.max_side)


def _mask(request: EditRequest, read: Read, sizes: Sizes) -> Tensor | None:
    """What is to be made: the mask, or what is not opaque; with ``fit`` "pad" the border too."""
    if not isinstance(request, InpaintRequest | LocalRequest | RestoreRequest):
        return None
    found = read.clear if request.mask is None else pictures.read_mask(request.mask, read, sizes)
    if read.border is not None:
        found = read.border if found is None else found | read.border
    if found is None and not isinstance(request, RestoreRequest):
        raise bad_request(
            "nothing says what is to be made: give a mask (white where it is), or a picture that is transparent there", "mask"
        )
    if isinstance(request, RestoreRequest) and found is None and not request.grey and request.factor == 1:
        raise bad_request("nothing says what is known: give mask, grey or factor, or a picture with transparent parts", "mask")
    return found


def _windows(model: ConsistencyModel, request: EditRequest, read: Read) -> int:
    if not isinstance(request, OutpaintRequest) or request.size is None:
        return 1
    counts = [math.ceil(max(0, a - b) / max(1, b // 2)) + 1 for a, b in zip(request.size, model.shape[1:], strict=True)]
    if math.prod(counts) > MOST_WINDOWS:
        height, width = model.shape[1:]
        raise bad_request(
            f"size is {request.size[0]}x{request.size[1]}, which takes {math.prod(counts):,} windows of {height}x{width}: "
            f"at most {MOST_WINDOWS} are made, choose a smaller size",
            "size",
        )
    return math.prod(counts)


def _plan_between(model: ConsistencyModel, request: InterpolateRequest, settings: ServeSettings) -> Plan:
    if (request.images is None) == (request.seeds is None):
        both = "both are given" if request.images else "neither is given"
        raise bad_request(f"interpolation goes between two images or two seeds, {both}: give one of them", "images")
    if request.n > MOST_BETWEEN:
        raise bad_request(f"n is {request.n:,}, at most {MOST_BETWEEN:,} images are made between two", "n")
    labels = class_rows(label_words(request.labels), model.labels, 2, 1)
    read = None
    if request.images is not None:
        sizes = Sizes(settings.max_pixels, model.shape[0], model.shape[1], request.fit, longest=settings.max_side)
        read = pictures.read_pictures(request.images, sizes, "images")
    else:
        edit_labels(model, labels, 2, request.guidance)
    price = request.n + (0 if read is None else 2 * _guesses(model, labels))
    return Plan("interpolate", request, request.n, request.n, request.n, price, None, labels, read)
