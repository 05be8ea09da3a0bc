"""What a caller may hand in: images, noise levels, counts; each fault is one line before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from atonce.core.checks import whole as whole
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel


def image_batch(
    image: Tensor, shape: Sequence[int | None], device: torch.device, clip: tuple[float, float] | None, name: str = "image"
) -> Tensor:
    """Images as float32 [B, C, H, W] on a device, checked.

    Args:
        image: float [C, H, W] or [B, C, H, W].
        shape: The shape (C, H, W) that is wanted; ``None`` where any size will do.
        device: Where the model is.
        clip: Range that the values must lie in, or ``None`` for any finite value.
        name: What to call it in messages.

    Returns:
        The images; [C, H, W] gets a batch of one.

    Raises:
        InputError: Type, shape or values do not fit.
    """
    wanted = ", ".join("any" if side is None else str(side) for side in shape)
    if not isinstance(image, Tensor):
        raise InputError(f"{name} is {type(image).__name__}, must be a float tensor [{wanted}] or [B, {wanted}]")
    if not image.is_floating_point():
        raise InputError(f"{name} is {image.dtype}, must be float in [-1, 1]: 8-bit values become x / 127.5 - 1")
    if image.dim() not in (3, 4):
        raise InputError(f"{name} has shape {list(image.shape)}, must be [{wanted}] or [B, {wanted}]")
    if any(want not in (None, have) for want, have in zip(shape, image.shape[-3:], strict=True)) or 0 in image.shape[-3:]:
        raise InputError(f"{name} has shape {list(image.shape)}, this model takes [{wanted}] or [B, {wanted}]")
    work = image.detach().to(device, torch.float32)
    if work.numel():
        low, high = float(work.min()), float(work.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{name} has values that are not finite")
        if clip is not None and not clip[0] <= low <= high <= clip[1]:
            raise InputError(
                f"{name} has values from {low:.6g} to {high:.6g}, must be within {clip[0]:g} and {clip[1]:g}: "
                "scale it (x / 127.5 - 1 for 8-bit values), or clamp it"
            )
    return work if image.dim() == 4 else work[None]


def needs_consistency(model: ConsistencyModel) -> None:
    """Refuse models that do not give an image in one call.

    Args:
        model: The model.

    Raises:
        InputError: It is a denoiser.
    """
    if model.kind == "denoiser":
        raise InputError(
            "this model is a denoiser: editing needs a consistency model or a flow map, whose one call gives an image; "
            "distil it first (atonce.recipes.cd with this model as teacher)"
        )


def noise_level(model: ConsistencyModel, sigma: float) -> float:
    """One noise level that the model knows.

    Args:
        model: The model.
        sigma: The level.

    Returns:
        It, as a float.

    Raises:
        InputError: It is not above sigma_end and at most sigma_max.
    """
    value = _number(sigma, "sigma")
    if not model.sigma_end < value <= model.sigma_max * (1 + 1e-6):
        raise InputError(f"sigma is {value:g}, must be above {model.sigma_end:g} and at most {model.sigma_max:g}")
    return value


def check_seed(seed: int) -> int:
    """A seed: any whole number."""
    return whole(seed, "seed")


def _number(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name} is {value!r}, must be one number") from problem
    if not math.isfinite(number):
        raise InputError(f"{name} is {number}, must be a finite number")
    return number
