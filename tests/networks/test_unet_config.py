"""Which configurations of the U-Net run, and how wrong ones are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.core.streams import dropout_masks
from atonce.networks.presets import named
from atonce.networks.unet import UNet, UNetConfig

DDPMPP = UNetConfig(size=8, image_channels=2, channels=8, channel_mult=(1, 2, 2), blocks=2, attention=(4,))


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("tiny", 8, 1), ("tiny", 12, 3), ("tiny", 28, 1), ("small", 28, 1), ("small", 32, 3), ("tiny", 64, 3), ("auto", 9, 1)],
)
def test_sizes_and_channels(name: str, size: int, channels: int) -> None:
    """``small`` once failed for want of a group size: its skip connections give 144 channels."""
    network = UNet(named(name, size, channels))
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    out = network(x, torch.zeros(1))
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())


@st.composite
def configs(draw: st.DrawFn) -> UNetConfig:
    levels = draw(st.integers(1, 3))
    size = draw(st.integers(2 if levels > 1 else 4, 4)) << (levels - 1)
    return UNetConfig(
        size=size,
        image_channels=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from([4, 8, 12, 36, 48])),
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        blocks=draw(st.integers(1, 2)),
        attention=tuple(draw(st.sets(st.sampled_from([size, size // 2, 16]), max_size=2))),
        embedding=draw(st.sampled_from(["positional", "fourier"])),
        encoder=draw(st.sampled_from(["standard", "residual"])),
        taps=draw(st.sampled_from([(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])),
        labels=draw(st.sampled_from([0, 3])),
        augment_labels=draw(st.sampled_from([0, 2])),
        noise_mult=draw(st.integers(1, 2)),
        embedding_mult=draw(st.integers(1, 4)),
        guidance=draw(st.booleans()),
        dropout_resolution=draw(st.sampled_from([0, size])),
    )


@settings(max_examples=25)
@given(configs())
def test_any_admissible_configuration_runs(config: UNetConfig) -> None:
    network = UNet(config)
    masks = dropout_masks(0, torch.arange(2), network.mask_sizes(), 0.25)
    x = torch.randn(2, config.image_channels, config.size, config.size, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([-1, 2]) if config.labels else None
    augment = torch.ones(2, config.augment_labels) if config.augment_labels else None
    out = network(x, torch.tensor([-1.5, 1.0]), label, augment, masks=masks)
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert set(network.state_dict()) == set(UNet(config, seed=1).state_dict())


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 3}, "size"),
        ({"size": 8.0}, "size"),
        ({"size": True}, "size"),
        ({"image_channels": 0}, "image_channels"),
        ({"channels": 0}, "channels"),
        ({"channels": 6}, "channels"),
        ({"channels": "8"}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"embedding_mult": 0}, "embedding_mult"),
        ({"noise_mult": 0}, "noise_mult"),
        ({"labels": -1}, "labels"),
        ({"augment_labels": -1}, "augment_labels"),
        ({"head_channels": -1}, "head_channels"),
        ({"head_channels": 5}, "head_channels"),
        ({"head_channels": 64}, "head_channels"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
        ({"channel_mult": [1, 2]}, "channel_mult"),
        ({"channel_mult": 2}, "channel_mult"),
        ({"attention": (0,)}, "attention"),
        ({"attention": 16}, "attention"),
        ({"taps": (1, 2, 1)}, "taps"),
        ({"taps": ()}, "taps"),
        ({"embedding": "sine"}, "embedding"),
        ({"encoder": "skip"}, "encoder"),
        ({"fourier_scale": 0.0}, "fourier_scale"),
        ({"fourier_scale": math.nan}, "fourier_scale"),
        ({"guidance": 1}, "guidance is 1, must be true or false"),
        ({"dropout_resolution": -1}, "dropout_resolution"),
        ({"dropout_resolution": 1}, "dropout_resolution is 1, below the lowest resolution 2"),
        ({"size": 10}, "10x10 do not fit 3 levels"),
        ({"size": 4}, "4x4 do not fit 3 levels: the size must be a multiple of 4 and at least 8"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field) as caught:
        dataclasses.replace(DDPMPP, **changes)
    assert "\n" not in str(caught.value)
