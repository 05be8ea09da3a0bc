"""The algorithm over a model and a batch of images: labels, noise by index, parts of a batch, reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from atonce.core.streams import Stream, normal
from atonce.editing.algorithm import EditInfo, edit
from atonce.editing.classes import GUESS_CALLS, edit_labels, labels_of, must_guess, rows_of
from atonce.editing.classes import Labels as Labels
from atonce.editing.inputs import check_seed, needs_consistency, whole
from atonce.editing.operators import Known
from atonce.model import ConsistencyModel
from atonce.model_config import default_batch

Callback = Callable[[dict[str, Any]], None] | None


@torch.no_grad()
def run(
    model: ConsistencyModel,
    image: Tensor,
    known: Known,
    sigmas: Sequence[float],
    *,
    start: Tensor | None = None,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
    pass_number: int = 0,
) -> tuple[Tensor, EditInfo]:
    """Edit images that have been checked.

    The noise of image ``first + i`` at step k is a function of (seed, first + i, pass_number, k), drawn on the CPU.

    Args:
        model: A consistency model or flow map.
        image: float32 [B, C, H, W] on the model's device.
        known: What is known of them.
        sigmas: Descending noise levels.
        start: Images to which the first noise is added; default: the known part.
        seed: Seed of the noise.
        labels: Classes, one or one for each image. ``None`` is "no class" for models that were trained for it; for other models
            with classes each image's is guessed (:func:`~atonce.editing.classes.guess_labels`).
        guidance: Scale of guidance, one or one for each image, for models that can.
        first: Index of the first image.
        batch: Images computed at once; default 256 on a GPU, 64 elsewhere.
        callback: Called after each step of each part with what :func:`~atonce.editing.algorithm.edit` tells, ``calls`` with
            those of guesses, ``labels`` (of this part, or ``None``), ``first`` and ``done``.
        pass_number: Keeps the noise of several passes over one image apart.

    Returns:
        float32 [B, C, H, W], and what was done.
    """
    needs_consistency(model)
    n = image.shape[0]
    size = check_options(model, n, labels, guidance, seed, first, batch)
    known.check(image.shape)
    # A start is a whole image, and says more about the class than what is to be kept of it.
    told = known if start is None else None
    label = labels_of(model, labels, image, told, first=first, seed=seed, guidance=guidance, batch=size)
    index = torch.arange(first, first + n)
    out = torch.empty_like(image)
    clamped = bare = 0.0
    for begin in range(0, n, size):
        part = slice(begin, min(begin + size, n))
        rows = None if label is None else label[part]
        scale = rows_of(guidance, part, n)

        def f(x: Tensor, sigma: float, rows: Tensor | None = rows, scale: float | Tensor | None = scale) -> Tensor:
            return model(x, sigma, rows, guidance=scale)

        def draw(step: int, part: slice = part) -> Tensor:
            z = normal(seed, index[part], tuple(image.shape[1:]), Stream.EDIT, pass_number * len(sigmas) + step)
            return z.to(image.device)

        def report(info: dict[str, Any], part: slice = part, rows: Tensor | None = rows) -> None:
            if callback is not None:
                done = part.stop if info["step"] == len(sigmas) - 1 else part.start
                calls = calls_of(model, labels, guidance, int(info["calls"]))
                callback({**info, "calls": calls, "labels": rows, "first": first + part.start, "done": done})

        begun = None if start is None else start[part]
        out[part], info = edit(
            f, known.rows(part), image[part], sigmas, draw, model.sigma_end, model.clip, start=begun, callback=report
        )
        clamped, bare = max(clamped, info.clamped), max(bare, info.bare)
    calls = calls_of(model, labels, guidance, len(sigmas))
    return out, EditInfo(tuple(sigmas), calls, clamped, bare, None if label is None else tuple(label.tolist()))


def check_options(
    model: ConsistencyModel,
    n: int,
    labels: Labels,
    guidance: float | Tensor | None,
    seed: int,
    first: int,
    batch: int | None,
) -> int:
    """Check what all edits take.

    Args:
        model: The model.
        n: Number of images.
        labels: Their classes.
        guidance: Scale of guidance.
        seed: Seed of the noise.
        first: Index of the first image.
        batch: Images computed at once.

    Returns:
        Images computed at once.

    Raises:
        InputError: Something does not fit.
    """
    check_seed(seed)
    whole(first, "first", 0)
    edit_labels(model, labels, n, guidance, guessed=True)
    return batch_size(model, batch)


def calls_of(model: ConsistencyModel, labels: Labels, guidance: float | Tensor | None, steps: int) -> int:
    """Network calls for each image so far: those of guesses too, and twice as many where guidance computes both classes."""
    twice = 2 if guidance is not None and model.config.guidance is not None and model.config.guidance.form == "free" else 1
    return twice * (steps + (GUESS_CALLS * model.config.network.labels if must_guess(model, labels) else 0))


def batch_size(model: ConsistencyModel, batch: int | None) -> int:
    """Images computed at once: as asked for, else 256 on a GPU and 64 elsewhere."""
    return whole(batch, "batch", 1) if batch is not None else default_batch(model.device)
