"""Editing from a whole image: noise is added to it and taken away again, so that its coarse content stays."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from atonce.editing.classes import labels_of, must_guess
from atonce.editing.engine import Callback, Labels, batch_size, check_options, run
from atonce.editing.inputs import check_seed, image_batch, needs_consistency, whole
from atonce.editing.operators import nothing, pixels
from atonce.editing.times import STROKE, renoise_times
from atonce.model import ConsistencyModel

VARIATION = 2.0  # first noise levels in units of sigma_data
LOCAL = 4.0


def stroke(
    model: ConsistencyModel,
    sketch: Tensor,
    *,
    sigma: float | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Turn strokes into an image (SDEdit, Meng et al. 2022; with a consistency model: Song et al. 2023).

    Args:
        model: A consistency model or flow map.
        sketch: Images [C, H, W] or [B, C, H, W].
        sigma: First noise level: more of it keeps less of the sketch. The default is the paper's 5.38 at sigma_data = 0.5,
            scaled with the model's.
        sigmas: All noise levels, instead of ``sigma`` and ``steps``.
        steps: Network calls; further levels fall in the ratio of the paper's two, 5.38 and 2.24.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`~atonce.editing.tasks.restore`.

    Returns:
        float32 images of the same rank.

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    x = image_batch(sketch, model.shape, model.device, model.clip, "sketch")
    times = renoise_times(model, sigma, STROKE, steps, sigmas)
    out, _ = run(
        model,
        x,
        nothing(),
        times,
        start=x,
        seed=seed,
        labels=labels,
        guidance=guidance,
        first=first,
        batch=batch,
        callback=callback,
    )
    return out if sketch.dim() == 4 else out[0]


def variations(
    model: ConsistencyModel,
    image: Tensor,
    *,
    n: int = 8,
    sigma: float | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = 1,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Images that are like a given one: each is the image under other noise, denoised.

    Args:
        model: A consistency model or flow map.
        image: Images [C, H, W] or [B, C, H, W].
        n: Variations of each.
        sigma: First noise level, the amount of change; default 2 sigma_data.
        sigmas: All noise levels, instead of ``sigma`` and ``steps``.
        steps: Network calls.
        seed: Seed of the noise; variation j of image i has the noise of index (first + i) n + j.
        labels: Classes, one or one for each image, of models with classes; another class than the image's turns it.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`~atonce.editing.tasks.restore`.

    Returns:
        float32 [n, C, H, W], or [B, n, C, H, W] for a batch.

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    whole(n, "n", 1)
    whole(first, "first", 0)
    x = image_batch(image, model.shape, model.device, model.clip)
    times = renoise_times(model, sigma, VARIATION, steps, sigmas)
    many = x.repeat_interleave(n, 0)
    if must_guess(model, labels):
        size = batch_size(model, batch)
        labels = labels_of(model, None, x, first=first, seed=check_seed(seed), guidance=guidance, batch=size)
    out, _ = run(
        model,
        many,
        nothing(),
        times,
        start=many,
        seed=seed,
        labels=_repeated(labels, len(x), n),
        guidance=guidance.repeat_interleave(n) if isinstance(guidance, Tensor) and guidance.numel() == len(x) else guidance,
        first=first * n,
        batch=batch,
        callback=callback,
    )
    out = out.reshape(len(x), n, *model.shape)
    return out if image.dim() == 4 else out[0]


def local(
    model: ConsistencyModel,
    image: Tensor,
    mask: Tensor,
    *,
    sigma: float | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = 8,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Change an image inside a mask only, keeping its coarse content there; outside it keeps every bit.

    Args:
        model: A consistency model or flow map.
        image: Images [C, H, W] or [B, C, H, W].
        mask: bool [H, W], [1, H, W] or [B, 1, H, W], true where the image may change.
        sigma: First noise level, the amount of change; default 4 sigma_data. At sigma_max this is inpainting.
        sigmas: All noise levels, instead of ``sigma`` and ``steps``.
        steps: Network calls.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`~atonce.editing.tasks.restore`.

    Returns:
        float32 images of the same rank.

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    x = image_batch(image, model.shape, model.device, model.clip)
    known = pixels(mask)
    known.check(x.shape)
    times = renoise_times(model, sigma, LOCAL, steps, sigmas, even=True)
    if bool(mask.any()):
        x, _ = run(
            model,
            x,
            known,
            times,
            start=x,
            seed=seed,
            labels=labels,
            guidance=guidance,
            first=first,
            batch=batch,
            callback=callback,
        )
    else:
        check_options(model, len(x), labels, guidance, seed, first, batch)
        x = x.clone()
    return x if image.dim() == 4 else x[0]


def _repeated(labels: Labels, images: int, n: int) -> Labels:
    """Labels of n variations of each image: one for all stays one."""
    if labels is None or isinstance(labels, int):
        return labels
    values = labels.reshape(-1).tolist() if isinstance(labels, Tensor) else list(labels)
    return values if len(values) != images or images == 1 else [value for value in values for _ in range(n)]
