"""Editing by what is known: inpaint, colourise, upscale, and the general door for any combination.

Every function takes float images [C, H, W] or [B, C, H, W] in the range of the model, [-1, 1], and gives float32 of the same
rank on the model's device. Known pixels keep every bit. Known grey values and means are kept to 1e-5, then the nearest image in
the range that keeps them is taken; the callback is told by how much they differ in the end (``clamped``), and by how much they
would after a bare clamp (``bare``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.editing.algorithm import EditInfo
from atonce.editing.engine import Callback, Labels, check_options, run
from atonce.editing.inputs import image_batch, needs_consistency
from atonce.editing.operators import GREY, Known, averages, from_averages, from_grey, grey, pixels
from atonce.editing.times import edit_times
from atonce.model import ConsistencyModel

STEPS = 16


def restore(
    model: ConsistencyModel,
    image: Tensor,
    known: Known,
    *,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Make what is not known of an image (Song et al. 2023, Algorithm 4).

    For example a grey photo with a hole: ``restore(model, image, pixels(mask) & grey())``; grey everywhere and the colours
    outside a mask: ``pixels(mask) | grey()``; a small grey picture: ``grey() & averages(4)``.

    Args:
        model: A consistency model or flow map.
        image: Images [C, H, W] or [B, C, H, W] that carry what is known. The rest must be finite and in the range too, but
            does not matter.
        known: What is known, from :mod:`atonce.editing.operators`.
        sigmas: Noise levels, descending, instead of the default for ``steps``.
        steps: Network calls.
        seed: Seed of the noise; with the index of the image and the step it decides it.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image, so that shards fit together.
        batch: Images computed at once.
        callback: Called after each step with ``step``, ``sigma``, ``x0``, ``calls``, ``first``, ``done``; after the last one
            also with ``free``, ``clamped`` and ``bare``: the images before the range was imposed, the largest difference of
            the known part after that, and what a bare clamp would have made of it.

    Returns:
        float32 images of the same rank, on the model's device.

    Raises:
        InputError: Something does not fit; nothing has been computed then.
    """
    options = (sigmas, steps, seed, labels, guidance, first, batch, callback)
    return restore_with_info(model, image, known, *options)[0]


def restore_with_info(
    model: ConsistencyModel,
    image: Tensor,
    known: Known,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
    *,
    free: bool = False,
    name: str = "image",
) -> tuple[Tensor, EditInfo]:
    """As :func:`restore`, with what was done.

    Args:
        model: As there.
        image: As there.
        known: As there.
        sigmas: As there.
        steps: As there.
        seed: As there.
        labels: As there.
        guidance: As there.
        first: As there.
        batch: As there.
        callback: As there.
        free: Whether the image may leave the range, as the shortest image of a grey value does.
        name: What to call the image in messages.

    Returns:
        Images, and the noise levels, calls and effect of the last clamp.

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    if not isinstance(known, Known):
        raise InputError(f"known is {type(known).__name__}, must be what is known, for example atonce.edit.pixels(mask)")
    x = image_batch(image, model.shape, model.device, None if free else model.clip, name)
    known.check(x.shape)
    times = edit_times(model, steps, sigmas)
    out, info = run(
        model, x, known, times, seed=seed, labels=labels, guidance=guidance, first=first, batch=batch, callback=callback
    )
    return (out if image.dim() == 4 else out[0]), info


def inpaint(
    model: ConsistencyModel,
    image: Tensor,
    mask: Tensor,
    *,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Make the pixels of a mask; all others keep every bit.

    Args:
        model: A consistency model or flow map.
        image: Images [C, H, W] or [B, C, H, W]; what lies under the mask is not looked at.
        mask: bool [H, W], [1, H, W] or [B, 1, H, W], true where pixels are to be made.
        sigmas: Noise levels, descending, instead of the default for ``steps``.
        steps: Network calls.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`restore`.

    Returns:
        float32 images of the same rank. Where the mask is empty they are the given ones.

    Raises:
        InputError: Something does not fit.
    """
    known = pixels(mask)
    needs_consistency(model)
    if isinstance(image, Tensor) and image.dim() in (3, 4) and tuple(image.shape[-3:]) == model.shape:
        shape = (-1, *image.shape[-3:])
        known.check(image.reshape(shape).shape)
        # What is missing may be anything, also not a number.
        image = known.replace(torch.zeros_like(image).reshape(shape), image.reshape(shape)).reshape(image.shape)
    if not bool(mask.any()):
        # Nothing is to be made: all checks, no network call.
        x = image_batch(image, model.shape, model.device, model.clip)
        edit_times(model, steps, sigmas)
        check_options(model, len(x), labels, guidance, seed, first, batch)
        return x.clone() if image.dim() == 4 else x[0].clone()
    options = (sigmas, steps, seed, labels, guidance, first, batch, callback)
    return restore_with_info(model, image, known, *options)[0]


def colorize(
    model: ConsistencyModel,
    gray: Tensor,
    *,
    weights: Sequence[float] = GREY,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Give a grey picture colours whose grey value is the given one.

    Args:
        model: A consistency model or flow map of 3 channels.
        gray: Grey values [1, H, W] or [B, 1, H, W]; or three equal channels.
        weights: Weights of red, green and blue in the grey value.
        sigmas: Noise levels, descending, instead of the default for ``steps``.
        steps: Network calls.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`restore`.

    Returns:
        float32 images [3, H, W] or [B, 3, H, W].

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    if model.shape[0] != 3:
        raise InputError(f"colourising needs a model of 3 channels, this one makes {model.shape[0]}")
    repeated = isinstance(gray, Tensor) and gray.dim() in (3, 4) and gray.shape[-3] == 3
    g = image_batch(gray, (3 if repeated else 1, *model.shape[1:]), model.device, model.clip, "gray")
    if repeated and not bool((g == g[:, :1]).all()):
        raise InputError(
            "gray has three channels that differ: give one channel, or for new colours of a colour image "
            "restore(model, image, grey())"
        )
    known = grey(weights)
    known.check((len(g), 3, *g.shape[2:]))
    lifted = from_grey(g[:, :1], weights)
    options = (sigmas, steps, seed, labels, guidance, first, batch, callback)
    out, _ = restore_with_info(model, lifted, known, *options, free=True)
    return out if gray.dim() == 4 else out[0]


def upscale(
    model: ConsistencyModel,
    small: Tensor,
    factor: int,
    *,
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Make a larger picture whose patch means are a small one's pixels (super-resolution).

    Args:
        model: A consistency model or flow map.
        small: Images [C, H / factor, W / factor] or [B, C, H / factor, W / factor], each pixel the mean of a patch.
        factor: Side of a patch: any whole number that divides the model's height and width.
        sigmas: Noise levels, descending, instead of the default for ``steps``.
        steps: Network calls.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`restore`.

    Returns:
        float32 images [C, H, W] or [B, C, H, W].

    Raises:
        InputError: Something does not fit.
    """
    known = averages(factor)
    channels, height, width = model.shape
    known.check((1, *model.shape))
    x = image_batch(small, (channels, height // factor, width // factor), model.device, model.clip, "small")
    options = (sigmas, steps, seed, labels, guidance, first, batch, callback)
    out, _ = restore_with_info(model, from_averages(x, factor), known, *options)
    return out if small.dim() == 4 else out[0]


def empty_canvas(image: Tensor, height: int, width: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """A larger canvas with images [B, C, h, w] at a place, and the mask bool [height, width] of what is missing."""
    canvas = image.new_zeros((*image.shape[:2], height, width))
    mask = torch.ones((height, width), dtype=torch.bool, device=image.device)
    rows, columns = slice(top, top + image.shape[2]), slice(left, left + image.shape[3])
    canvas[:, :, rows, columns] = image
    mask[rows, columns] = False
    return canvas, mask
