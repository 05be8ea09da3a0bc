from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.extractors import Extractor, pixels
from atonce.evaluation.gather import gather

IMAGES = torch.randint(0, 256, (10_000, 1, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(first: int, count: int) -> Tensor:
    return IMAGES[first : first + count]


@pytest.mark.parametrize("batch", [999, 3000, 20_000])
def test_image_i_is_in_block_i_mod_k(batch: int) -> None:
    """10,000 images are more than are held before they are spread, so blocks go on where the last lot ended."""
    got = gather(make, len(IMAGES), pixels((1, 1, 2)), batch=batch, blocks=7)
    everything = pixels((1, 1, 2))(IMAGES)
    assert [block.count for block in got.blocks] == [len(everything[k::7]) for k in range(7)]
    for k, block in enumerate(got.blocks):
        torch.testing.assert_close(block.mean(), everything[k::7].mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(block.covariance(), torch.cov(everything[k::7].T), rtol=1e-12, atol=1e-14)
    assert got.features is None
    assert got.images is None


def test_what_is_kept_is_in_order() -> None:
    got = gather(make, 100, pixels((1, 1, 2)), batch=33, keep_features=True, keep_images=True)
    assert got.blocks == ()
    assert got.images is not None
    assert got.features is not None
    assert torch.equal(got.images, IMAGES[:100])
    assert torch.equal(got.features, pixels((1, 1, 2))(IMAGES[:100]))


def test_features_are_not_computed_in_vain() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise AssertionError("nothing asked for features")

    assert gather(make, 10, Extractor("none", "", 1, refuse), batch=4, keep_images=True).images is not None


def test_a_maker_that_gives_something_else_is_named() -> None:
    with pytest.raises(InputError, match="expected 4 uint8 images"):
        gather(lambda first, count: IMAGES[:3], 10, pixels((1, 1, 2)), batch=4, blocks=1)
