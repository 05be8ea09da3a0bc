"""The classes of edited images, where a model makes one of several: given, left out, or guessed from what is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.editing.algorithm import edit
from atonce.editing.operators import Known, pixels
from atonce.model import ConsistencyModel
from atonce.model_config import checked_labels, guidance_scale, no_class_is_known, refuse_no_class

Labels = Tensor | Sequence[int] | int | None

MOST_CLASSES = 100  # guessing costs GUESS_CALLS network calls for each class
GUESS_CALLS = 3
_GUESS_LEVELS = (4.0, 2.0)  # in units of sigma_data, after sigma_max: where the class of an image is decided
_STEP = 1 << 22  # steps of the stream of edits that no edit reaches


def edit_labels(
    model: ConsistencyModel, labels: Labels, n: int, guidance: float | Tensor | None = None, *, guessed: bool = False
) -> Tensor | None:
    """Labels of n results for a model, checked with the scale of guidance.

    Args:
        model: The model.
        labels: Classes, one or one for each image; negative means "no class". ``None`` is "no class" too where the model was
            trained for it.
        n: Number of images.
        guidance: Scale of guidance.
        guessed: Whether missing labels can be guessed from images (:func:`labels_of`).

    Returns:
        int64 [n] on the model's device, or ``None`` for no class, or where they are to be guessed.

    Raises:
        InputError: They do not fit the model, or it needs a class and there is none.
    """
    classes = model.config.network.labels
    given = checked_labels(labels, n, classes)
    if given is None and must_guess(model, labels):
        if not guessed or classes > MOST_CLASSES:
            raise InputError(
                f"labels are missing: this model makes one of {classes} classes and was never trained without; give the class "
                "of the image, or one for each"
            )
        guidance_scale(model.config.guidance, guidance, torch.zeros(n, dtype=torch.int64))
        return None
    refuse_no_class(model.card, given)
    given = None if given is None else given.to(model.device)
    guidance_scale(model.config.guidance, guidance, given)
    return given


def must_guess(model: ConsistencyModel, labels: Labels) -> bool:
    """Whether the model needs a class for each image and the caller gave none."""
    return labels is None and bool(model.config.network.labels) and not no_class_is_known(model.card)


def labels_of(
    model: ConsistencyModel,
    labels: Labels,
    image: Tensor,
    known: Known | None = None,
    *,
    first: int,
    seed: int,
    guidance: float | Tensor | None,
    batch: int,
) -> Tensor | None:
    """Labels of images: those given, none where the model was trained without, else guessed (:func:`guess_labels`).

    Args:
        model: The model.
        labels: What the caller gave.
        image: float32 [B, C, H, W] on the model's device.
        known: What is known of them; default: all of it.
        first: Index of the first image.
        seed: Seed of the noise of guesses.
        guidance: Scale of guidance, one or [B].
        batch: Images computed at once.

    Returns:
        int64 [B] on the model's device, or ``None`` for no class.

    Raises:
        InputError: They do not fit the model, or there are too many classes to guess.
    """
    n = len(image)
    given = edit_labels(model, labels, n, guidance, guessed=True)
    if not must_guess(model, labels):
        return given
    told = pixels(torch.zeros(image.shape[2:], dtype=torch.bool)) if known is None else known
    parts = [slice(begin, min(begin + batch, n)) for begin in range(0, n, batch)]
    index = torch.arange(first, first + n)
    found = [guess_labels(model, image[part], told.rows(part), index[part], seed, rows_of(guidance, part, n)) for part in parts]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=model.device)


def rows_of(guidance: float | Tensor | None, part: slice, n: int) -> float | Tensor | None:
    """The scale of some of n images: one for all stays one."""
    return guidance[part] if isinstance(guidance, Tensor) and guidance.numel() == n and guidance.dim() else guidance


@torch.no_grad()
def guess_labels(
    model: ConsistencyModel, image: Tensor, known: Known, index: Tensor, seed: int, guidance: float | Tensor | None
) -> Tensor:
    """The class under which a model explains best what is known of an image.

    The edit is begun under every class with the same noise, and the class counts whose estimates miss the known part least: a
    classifier made of the generator (Li et al. 2023, with two noise levels). It is as good as the model: of held-out
    Fashion-MNIST it names about half from one half of the picture, and most of the others with something alike.

    Args:
        model: A class-conditional consistency model or flow map.
        image: float32 [B, C, H, W] on the model's device.
        known: What is known of them.
        index: Global indices of the images, int64 [B].
        seed: Seed of the noise.
        guidance: Scale of guidance, one or [B].

    Returns:
        int64 [B] on the model's device.
    """
    levels = [min(level * model.sigma_data, model.sigma_max / 2 ** (i + 1)) for i, level in enumerate(_GUESS_LEVELS)]
    misses = []
    for label in range(model.config.network.labels):
        rows = torch.full((len(image),), label, dtype=torch.int64, device=model.device)
        missed = torch.zeros(len(image), dtype=torch.float64, device=model.device)

        def f(x: Tensor, sigma: float, rows: Tensor = rows, missed: Tensor = missed) -> Tensor:
            x0 = model(x, sigma, rows, guidance=guidance)
            x0 = x0 if model.clip is None else x0.clamp(*model.clip)
            if sigma < model.sigma_max:
                missed += known.project(x0 - image).double().square().flatten(1).sum(1)
            return x0

        def draw(step: int) -> Tensor:
            return normal(seed, index, tuple(image.shape[1:]), Stream.EDIT, _STEP + step).to(image.device)

        edit(f, known, image, [model.sigma_max, *levels], draw, model.sigma_end, None)
        misses.append(missed)
    return torch.stack(misses).argmin(0)
