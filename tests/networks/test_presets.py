"""Networks by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.networks.presets import NAMES, named


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
