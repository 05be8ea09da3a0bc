from __future__ import annotations

import dataclasses

import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.images import from_uint8
from atonce.evaluation.extractors import Extractor, open_extractor, pixels


def test_pixels_are_the_pixels() -> None:
    images = torch.randint(0, 256, (3, 2, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = pixels((2, 4, 5))(images)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.reshape(3, 2, 4, 5).float(), from_uint8(images), rtol=0, atol=1e-6)
    assert pixels((1, 1, 2))(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)).tolist() == [[-1.0, 1.0]]


def test_digests_tell_extractors_apart() -> None:
    assert pixels((1, 8, 8)).digest == pixels((1, 8, 8)).digest
    assert pixels((1, 8, 8)).digest != pixels((1, 4, 16)).digest


def test_names() -> None:
    assert open_extractor("auto", (1, 8, 8)).name == "pixels"
    assert open_extractor("pixels", (3, 8, 8)).dimension == 192
    own = Extractor("mine", "d", 2, lambda x: x.flatten(1)[:, :2].double(), seen_in_training=True)
    assert open_extractor(own, (1, 8, 8)) is own
    assert own.source().seen_in_training
    with pytest.raises(InputError, match="'vgg' is unknown: choose one of auto, pixels"):
        open_extractor("vgg", (1, 8, 8))


def test_only_quantised_images_of_the_right_shape() -> None:
    with pytest.raises(InputError, match="to_uint8"):
        pixels((1, 8, 8))(torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"\[1, 8, 8\], got \[3, 8, 8\]"):
        pixels((1, 8, 8))(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    wrong = dataclasses.replace(pixels((1, 8, 8)), dimension=7)
    with pytest.raises(InputError, match=r"expected \[2, 7\]"):
        wrong(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
