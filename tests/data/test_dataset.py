"""A set of images: checks, exact statistics, identity, subsets and joining."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atonce.core.errors import DataError
from atonce.data import dataset
from atonce.data.dataset import ImageData, join, require_labels


def images(n=6, c=3, h=4, w=5, seed=0):
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_facts():
    data = ImageData(images(), torch.tensor([0, 2, 1, 0, 2, 2]), name="x")
    assert len(data) == 6
    assert data.shape == (3, 4, 5)
    assert data.num_classes == 3
    assert ImageData(images()).num_classes == 0
    assert ImageData(images(), torch.zeros(6, dtype=torch.int64), ("a", "b")).num_classes == 2
    assert data.without_labels().labels is None


def test_statistics_are_those_of_float64(monkeypatch):
    monkeypatch.setattr(dataset, "_CHUNK", 130)  # several uneven chunks
    data = ImageData(images(7))
    x = data.images.double() / 127.5 - 1
    assert data.statistics() == pytest.approx((x.mean().item(), x.std(correction=0).item()), abs=1e-14)
    for c, found in enumerate(data.channel_statistics()):
        assert found == pytest.approx((x[:, c].mean().item(), x[:, c].std(correction=0).item()), abs=1e-14)


def test_statistics_of_constant_images():
    data = ImageData(torch.full((3, 1, 2, 2), 255, dtype=torch.uint8))
    assert data.statistics() == (1.0, 0.0)


def test_digest_sees_pixels_shape_and_labels_only():
    base = ImageData(images(), torch.arange(6))
    assert base.digest() == ImageData(images(), torch.arange(6), tuple("abcdef"), "other", "elsewhere").digest()
    changed = images()
    changed[5, 2, 3, 4] ^= 1
    others = [
        ImageData(changed, torch.arange(6)),
        ImageData(images(), torch.arange(6).flip(0)),
        ImageData(images()),
        ImageData(images().reshape(6, 3, 5, 4), torch.arange(6)),
    ]
    assert len({base.digest(), *(other.digest() for other in others)}) == 5
    view = ImageData(images().transpose(2, 3), torch.arange(6))
    assert view.digest() == ImageData(view.images.contiguous(), torch.arange(6)).digest()


def test_subset():
    data = ImageData(images(), torch.arange(6), name="x", source="here")
    part = data.subset([4, 1])
    assert torch.equal(part.images, data.images[[4, 1]])
    assert part.labels.tolist() == [4, 1]
    assert part.source == "here; 2 of 6"
    for bad in ([], [6], [-1]):
        with pytest.raises(DataError, match="between 0 and 5"):
            data.subset(bad)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((images().float(),), "uint8"),
        ((images()[0],), r"\[N, C, H, W\]"),
        ((images(0),), "no images"),
        ((images(), torch.arange(5)), "one for each image"),
        ((images(), torch.zeros(6)), "int64"),
        ((images(), torch.arange(6) - 1), "from -1 to 4"),
        ((images(), torch.arange(6), ("a", "b")), "between 0 and 1.*from 0 to 5"),
        ((images(), None, ("a",)), "no labels"),
    ],
)
def test_what_does_not_fit_is_named(arguments, text):
    with pytest.raises(DataError, match=text):
        ImageData(*arguments)


def test_require_labels_names_the_single_class():
    with pytest.raises(DataError, match="no labels.*subfolder"):
        require_labels(ImageData(images(), name="mine"))
    with pytest.raises(DataError, match="mine has the single class 'cat'"):
        require_labels(ImageData(images(), torch.ones(6, dtype=torch.int64), ("dog", "cat"), "mine"))
    with pytest.raises(DataError, match="the single class 0:"):
        require_labels(ImageData(images(), torch.zeros(6, dtype=torch.int64)))
    labels = torch.tensor([0, 1, 1, 0, 0, 0])
    assert torch.equal(require_labels(ImageData(images(), labels)), labels)


def test_join_matches_classes_by_name():
    a = ImageData(images(2), torch.tensor([0, 1]), ("cat", "dog"), "a", "here")
    b = ImageData(images(2, seed=1), torch.tensor([1, 0]), ("ant", "cat"), "b", "there")
    both = join([a, b])
    assert both.label_names == ("ant", "cat", "dog")
    assert both.labels.tolist() == [1, 2, 1, 0]
    assert torch.equal(both.images, torch.cat([a.images, b.images]))
    assert join([a, b.without_labels()]).labels is None
    with pytest.raises(DataError, match="differ in shape"):
        join([a, ImageData(images(2, h=5))])


def test_numpy_images_are_accepted_as_tensors():
    assert len(ImageData(torch.from_numpy(np.zeros((2, 1, 3, 3), np.uint8)))) == 2
