"""Networks by name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.networks.adm import ADMConfig
from atonce.networks.presets import NAMES, named
from atonce.networks.unet import UNetConfig


@pytest.mark.parametrize(
    ("size", "name"), [(4, "tiny"), (8, "tiny"), (16, "tiny"), (20, "small"), (32, "small"), (64, "ddpmpp")]
)
def test_auto_grows_with_the_images(size: int, name: str) -> None:
    assert named("auto", size, 3, 10, 9) == named(name, size, 3, 10, 9)


def test_labels_and_channels_arrive() -> None:
    for name in NAMES:
        config = named(name, 32, 1, labels=7, augment_labels=9)
        assert (config.size, config.image_channels, config.labels, config.augment_labels) == (32, 1, 7, 9)


def test_the_published_ones() -> None:
    assert named("ddpmpp", 64, 3).channel_mult == (1, 2, 2, 2)
    ncsnpp = named("ncsnpp", 32, 3)
    assert (ncsnpp.embedding, ncsnpp.encoder, ncsnpp.taps, ncsnpp.noise_mult) == ("fourier", "residual", (1, 3, 3, 1), 2)
    assert named("ncsnpp-deep", 32, 3).blocks == 8
    assert named("adm", 64, 3, labels=1000) == ADMConfig(labels=1000)
    lsun = ADMConfig(256, channels=256, channel_mult=(1, 1, 2, 2, 4, 4), blocks=2, scale_shift=False)
    assert named("adm", 256, 3) == lsun
    assert named("adm", 128, 3).attention == (32, 16, 8)
    assert named("adm", 48, 3).attention == (24, 12, 6)  # where the published network has it: on the three lowest levels


@pytest.mark.parametrize("size", [4, 8, 14, 15, 16, 20, 28, 32, 64, 128, 256])
def test_deep_is_twice_the_blocks_and_else_the_same(size: int) -> None:
    for name in ("adm", "ncsnpp"):
        if name == "ncsnpp" and (size < 8 or size % 4):
            continue  # does not fit its three levels
        plain, deep = named(name, size, 3), named(f"{name}-deep", size, 3)
        assert deep == dataclasses.replace(plain, blocks=2 * plain.blocks)


@given(st.integers(4, 32))
def test_adm_fits_every_small_size(size: int) -> None:
    config = named("adm", size, 1)
    assert isinstance(config, ADMConfig)
    assert config.size >> (len(config.channel_mult) - 1) >= 4
    assert all(resolution <= 16 for resolution in config.attention)


def test_fourier_features_by_choice() -> None:
    plain = named("tiny", 8, 1, labels=3)
    assert named("tiny", 8, 1, labels=3, fourier_scale=None) == plain
    assert named("tiny", 8, 1, labels=3, fourier_scale=0.02) == dataclasses.replace(
        plain, embedding="fourier", fourier_scale=0.02
    )
    assert named("ncsnpp", 32, 3, fourier_scale=0.02) == dataclasses.replace(named("ncsnpp", 32, 3), fourier_scale=0.02)
    with pytest.raises(InputError, match=r"'adm' has no Fourier features: fourier_scale=16\.0"):
        named("adm", 8, 1, fourier_scale=16.0)
    with pytest.raises(InputError, match="fourier_scale is 0"):
        named("tiny", 8, 1, fourier_scale=0)


def test_existing_sizes_stay() -> None:
    """Published curves and shipped models depend on these."""
    assert named("tiny", 8, 1) == UNetConfig(8, 1, channels=32, channel_mult=(1, 1), blocks=1, attention=(4,))
    assert named("small", 28, 1) == UNetConfig(28, 1, channels=48, channel_mult=(1, 2, 2), blocks=2, attention=(7,))


@given(st.integers(4, 200), st.sampled_from(["tiny", "small"]))
def test_small_ones_fit_every_size(size: int, name: str) -> None:
    config = named(name, size, 1)
    assert config.size >> (len(config.channel_mult) - 1) >= 4


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [("unet", 8, "'unet' is not known; known: auto, tiny"), ("tiny", 3, "size is 3"), ("ddpmpp", 30, "30x30")],
)
def test_refusals(name: str, size: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        named(name, size, 1)
