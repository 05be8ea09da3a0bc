"""Outpainting: the surroundings of an image, within the model's frame or beyond it by overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from atonce.core.errors import InputError
from atonce.editing.engine import Callback, Labels, run
from atonce.editing.inputs import image_batch, needs_consistency
from atonce.editing.operators import pixels
from atonce.editing.tasks import STEPS, empty_canvas
from atonce.editing.times import edit_times
from atonce.model import ConsistencyModel


def outpaint(
    model: ConsistencyModel,
    image: Tensor,
    size: tuple[int, int],
    *,
    place: tuple[int, int] | Literal["centre"] = "centre",
    sigmas: Sequence[float] | Tensor | None = None,
    steps: int = STEPS,
    seed: int = 0,
    labels: Labels = None,
    guidance: float | Tensor | None = None,
    first: int = 0,
    batch: int | None = None,
    callback: Callback = None,
) -> Tensor:
    """Make the surroundings of an image; its own pixels keep every bit.

    A canvas of the model's frame is one inpainting. A larger one is filled by windows of the frame's size that overlap by half,
    each an inpainting of what is still missing in it, the one that knows most first.

    Args:
        model: A consistency model or flow map.
        image: Images [C, h, w] or [B, C, h, w].
        size: Height and width (H, W) of the canvas: at least the model's frame and the image.
        place: Row and column of the image's upper left corner, or ``"centre"``.
        sigmas: Noise levels, descending, instead of the default for ``steps``.
        steps: Network calls for each window.
        seed: Seed of the noise.
        labels: Classes, one or one for each image, of models with classes; guessed where missing.
        guidance: Scale of guidance, for models that can.
        first: Index of the first image.
        batch: Images computed at once.
        callback: As in :func:`~atonce.editing.tasks.restore`, with ``window`` and ``windows`` beside; ``x0`` is the window's.

    Returns:
        float32 images [C, H, W] or [B, C, H, W].

    Raises:
        InputError: Something does not fit.
    """
    needs_consistency(model)
    channels, height, width = model.shape
    x = image_batch(image, (channels, None, None), model.device, model.clip)
    canvas_height, canvas_width = _size(size, (height, width), tuple(x.shape[2:]))
    top, left = _place(place, (canvas_height, canvas_width), tuple(x.shape[2:]))
    times = edit_times(model, steps, sigmas)
    canvas, missing = empty_canvas(x, canvas_height, canvas_width, top, left)
    plan = window_order(missing, height, width)
    for number, (row, column) in enumerate(plan):
        part = (slice(row, row + height), slice(column, column + width))

        def report(info: dict[str, Any], number: int = number) -> None:
            if callback is not None:
                callback({**info, "window": number, "windows": len(plan)})

        made, info = run(
            model,
            canvas[:, :, part[0], part[1]],
            pixels(missing[part]),
            times,
            seed=seed,
            labels=labels,
            guidance=guidance,
            first=first,
            batch=batch,
            callback=report,
            pass_number=number,
        )
        canvas[:, :, part[0], part[1]] = made
        missing[part] = False
        labels = None if info.labels is None else list(info.labels)  # a guess holds for all windows
    return canvas if image.dim() == 4 else canvas[0]


def window_order(missing: Tensor, height: int, width: int) -> list[tuple[int, int]]:
    """Upper left corners of the windows that fill a canvas, in order.

    Windows stand at every half of the frame and at the far ends. Next is always the one with the most pixels that are there by
    then, so the picture grows outward from what is known.

    Args:
        missing: bool [H, W], true where pixels are to be made.
        height: Height of a window, at most H.
        width: Width of a window, at most W.

    Returns:
        The corners; windows in which nothing is missing by their turn are left out.
    """
    left = missing.clone()
    corners = [(r, c) for r in _starts(left.shape[0], height) for c in _starts(left.shape[1], width)]
    order: list[tuple[int, int]] = []
    while bool(left.any()):
        counts = [int(left[r : r + height, c : c + width].sum()) for r, c in corners]
        count, best = min((count, k) for k, count in enumerate(counts) if count)
        del count
        row, column = corners[best]
        left[row : row + height, column : column + width] = False
        order.append((row, column))
    return order


def _starts(length: int, window: int) -> list[int]:
    return sorted({*range(0, length - window, max(1, window // 2)), length - window})


def _size(size: tuple[int, int], frame: tuple[int, int], image: tuple[int, ...]) -> tuple[int, int]:
    pair = _pair(size)
    if pair is None or pair[0] < max(frame[0], image[0]) or pair[1] < max(frame[1], image[1]):
        raise InputError(
            f"size is {size!r}, must be (height, width) of at least the model's frame {frame} and the image {tuple(image)}"
        )
    return pair


def _place(place: tuple[int, int] | str, size: tuple[int, int], image: tuple[int, ...]) -> tuple[int, int]:
    room = (size[0] - image[0], size[1] - image[1])
    if place in ("centre", "center"):
        return room[0] // 2, room[1] // 2
    pair = _pair(place)
    if pair is None or not (0 <= pair[0] <= room[0] and 0 <= pair[1] <= room[1]):
        raise InputError(
            f'place is {place!r}, must be "centre" or (top, left) from (0, 0) to {room}, so that the image fits in'
        )
    return pair


def _pair(value: object) -> tuple[int, int] | None:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return None
    a, b = value
    return (a, b) if isinstance(a, int) and isinstance(b, int) else None
