"""Networks by name, sized to the data."""

from __future__ import annotations

import dataclasses

from atonce.core.errors import InputError
from atonce.networks.unet import UNetConfig, ddpmpp, ncsnpp

NAMES = ("auto", "tiny", "small", "ddpmpp", "ncsnpp", "ncsnpp-deep")


def named(name: str, size: int, image_channels: int, labels: int = 0, augment_labels: int = 0) -> UNetConfig:
    """The network called ``name`` for images of the given shape.

    ``tiny`` and ``small`` are DDPM++ shapes for a CPU, ``ddpmpp`` and ``ncsnpp`` the published ones for 32x32 (a level more
    above that), ``ncsnpp-deep`` has twice the blocks (iCT-deep). ``auto`` is ``tiny`` up to 16x16, ``small`` up to 32x32 and
    ``ddpmpp`` above.

    Args:
        name: One of :data:`NAMES`.
        size: Height and width of the images.
        image_channels: Channels of the images.
        labels: Classes; 0 for an unconditional network.
        augment_labels: Width of the augmentation labels.

    Returns:
        The configuration.

    Raises:
        InputError: The name is not known, or the images do not fit.
    """
    if name == "auto":
        name = "tiny" if size <= 16 else "small" if size <= 32 else "ddpmpp"
    if name in ("tiny", "small"):
        # As many levels as halvings leave at least 4x4, three at most.
        levels = 1
        while levels < 3 and size % (1 << levels) == 0 and size >> levels >= 4:
            levels += 1
        channels, blocks, mult = (32, 1, (1, 1, 2)) if name == "tiny" else (48, 2, (1, 2, 2))
        config = UNetConfig(
            size,
            image_channels,
            channels=channels,
            channel_mult=mult[:levels],
            blocks=blocks,
            attention=(size >> (levels - 1),),
        )
    elif name == "ddpmpp":
        config = ddpmpp(size, image_channels, channel_mult=(2, 2, 2) if size <= 32 else (1, 2, 2, 2))
    elif name in ("ncsnpp", "ncsnpp-deep"):
        config = ncsnpp(
            size,
            image_channels,
            channel_mult=(2, 2, 2) if size <= 32 else (1, 2, 2, 2),
            blocks=8 if name.endswith("deep") else 4,
        )
    else:
        raise InputError(f"network {name!r} is not known; known: {', '.join(NAMES)}")
    return dataclasses.replace(config, labels=labels, augment_labels=augment_labels)
