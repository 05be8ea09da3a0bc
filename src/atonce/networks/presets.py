"""Networks by name, sized to the data."""

from __future__ import annotations

import dataclasses

from atonce.core.errors import InputError
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig
from atonce.networks.unet import UNetConfig, ddpmpp, ncsnpp

NAMES = ("auto", "tiny", "small", "ddpmpp", "ncsnpp", "ncsnpp-deep", "adm", "adm-deep")


def named(
    name: str,
    size: int,
    image_channels: int,
    labels: int = 0,
    augment_labels: int = 0,
    fourier_scale: float | None = None,
) -> NetworkConfig:
    """The network called ``name`` for images of the given shape.

    ``tiny`` and ``small`` are DDPM++ shapes for a CPU, ``ddpmpp`` and ``ncsnpp`` the published ones for 32x32 (a level more
    above that), ``adm`` the published ones of ImageNet-64, ImageNet-128 and LSUN-256 and a smaller one up to 32x32.
    ``ncsnpp-deep`` and ``adm-deep`` have twice the blocks (iCT-deep). ``auto`` is ``tiny`` up to 16x16, ``small`` up to 32x32
    and ``ddpmpp`` above.

    Args:
        name: One of :data:`NAMES`.
        size: Height and width of the images.
        image_channels: Channels of the images.
        labels: Classes; 0 for an unconditional network.
        augment_labels: Width of the augmentation labels.
        fourier_scale: Embed the noise level by Fourier features of this scale (NCSN++: 16, iCT: 0.02), whatever the name says.

    Returns:
        The configuration.

    Raises:
        InputError: The name is not known, the images do not fit, or the network has no Fourier features.
    """
    config: NetworkConfig
    if name == "auto":
        name = "tiny" if size <= 16 else "small" if size <= 32 else "ddpmpp"
    if name in ("tiny", "small"):
        levels = _levels(size)
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
    elif name in ("adm", "adm-deep"):
        config = _adm(size, image_channels, deep=name.endswith("deep"))
    else:
        raise InputError(f"network {name!r} is not known; known: {', '.join(NAMES)}")
    if fourier_scale is not None:
        if not isinstance(config, UNetConfig):
            raise InputError(f"network {name!r} has no Fourier features: fourier_scale={fourier_scale} does not apply to it")
        config = dataclasses.replace(config, embedding="fourier", fourier_scale=fourier_scale)
    return dataclasses.replace(config, labels=labels, augment_labels=augment_labels)


def _levels(size: int) -> int:
    """As many levels as halvings leave at least 4x4, three at most."""
    levels = 1
    while levels < 3 and size % (1 << levels) == 0 and size >> levels >= 4:
        levels += 1
    return levels


def _adm(size: int, image_channels: int, deep: bool) -> ADMConfig:
    """The published ADM for images of this size, or a smaller one in its style.

    Sources: Song et al. 2023 (ImageNet-64, LSUN-256); Dhariwal & Nichol 2021 (ImageNet-128).
    """
    if size <= 32:
        levels = _levels(size)
        config = ADMConfig(
            size,
            image_channels,
            channels=64 if size <= 16 else 128,
            channel_mult=(1, 2, 2)[:levels],
            blocks=2 if size <= 16 else 3,
            attention=tuple(size >> level for level in range(levels) if size >> level <= 16),
        )
    else:
        config = ADMConfig(size, image_channels)
        if size > 64:
            mult = (1, 1, 2, 3, 4) if size <= 128 else (1, 1, 2, 2, 4, 4)
            config = dataclasses.replace(config, channels=256, channel_mult=mult, blocks=2, scale_shift=size <= 128)
        # On the three lowest levels: 32, 16 and 8 at the published sizes.
        levels = len(config.channel_mult)
        config = dataclasses.replace(config, attention=tuple(size >> level for level in range(levels - 3, levels)))
    return dataclasses.replace(config, blocks=2 * config.blocks) if deep else config
