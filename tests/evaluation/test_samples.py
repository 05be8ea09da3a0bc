"""Where samples come from: what is asked of a model, what is checked before, and which classes they are of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.data.dataset import ImageData
from atonce.evaluation.samples import Sampling, open_samples, same_classes
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.model_files import model_identity
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning

NAMES = ("cat", "dog", "owl")
PLAIN = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())
LABELLED = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=3)


def make(network: UNetConfig = LABELLED, **changes: Any) -> ConsistencyModel:
    names = NAMES if network.labels else None
    config = ModelConfig(network, Preconditioning("boundary", 0.5, 0.002), labels=names, **changes)
    net = UNet(network, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return ConsistencyModel(config, net, {"0.9": UNet(network, 1).state_dict()}, card={"name": "animals"})


def data(names: tuple[str, ...] | None = NAMES) -> ImageData:
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData(images, torch.arange(30) % 3 if names else None, names, "animals")


MODEL = make()


def test_labels_that_are_drawn_are_those_the_model_draws_itself() -> None:
    found = open_samples(MODEL, 20, data(), Sampling(seed=5))
    assert found.floats is not None
    assert torch.equal(torch.cat([found.floats(0, 7, None), found.floats(7, 13, None)]), MODEL.sample(20, seed=5, batch=7))
    assert found.labels is not None
    assert found.labels.unique().tolist() == [0, 1, 2]
    assert found.conditions()["labels"] == "drawn uniformly"
    assert torch.equal(found.make(0, 20), to_uint8(MODEL.sample(20, seed=5, labels=found.labels)))


def test_what_is_asked_goes_to_the_model_and_into_the_record() -> None:
    asked = Sampling(steps=2, seed=3, labels=1, sigmas=(80.0, 1.0, 0.5), ema="0.9", sampler="restart")
    found = open_samples(MODEL, 6, data(), asked)
    expected = MODEL.sample(6, seed=3, labels=1, sigmas=(80.0, 1.0, 0.5), ema="0.9")
    assert torch.equal(found.make(0, 6), to_uint8(expected))
    told = found.conditions()
    assert (told["steps"], told["calls"], told["sigmas"], told["ema"]) == (3, 3, (80.0, 1.0, 0.5), "0.9")
    assert (told["labels"], told["sampler"], told["guidance"]) == ("all 1", "restart", None)


def test_a_closing_end_is_no_step() -> None:
    found = open_samples(MODEL, 6, data(), Sampling(sigmas=(80.0, 1.0, 0.002)))
    assert found.conditions()["steps"] == 2


def test_a_scale_that_is_fixed_in_the_weights_is_told() -> None:
    found = open_samples(make(guidance=Guidance("fixed", (1.5,))), 4, data(), Sampling())
    assert found.conditions()["guidance"] == 1.5


def test_balanced_labels_are_as_often_and_in_no_order() -> None:
    found = open_samples(MODEL, 30, data(), Sampling(labels="balanced"))
    assert found.labels is not None
    assert found.labels.bincount().tolist() == [10, 10, 10]
    assert found.labels[:6].tolist() not in ([0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0])
    assert found.conditions()["labels"] == "balanced"


def test_given_labels_have_a_digest_of_their_own() -> None:
    words = [open_samples(MODEL, 3, data(), Sampling(labels=labels)).classes for labels in ([0, 1, 2], [0, 1, 2], [0, 1, 1])]
    assert words[0] == words[1] != words[2]
    assert words[0] is not None
    assert words[0].startswith("given, sha256 ")
    assert open_samples(MODEL, 3, data(), Sampling(labels=-1)).classes == "no class"


def test_classes_are_matched_by_name() -> None:
    labels = torch.tensor([0, 1, 2, -1])
    assert same_classes(labels, NAMES, ("owl", "cat", "dog", "eel")) is not None
    found = same_classes(labels, NAMES, ("owl", "cat", "dog", "eel"))
    assert found is not None
    assert found.tolist() == [1, 2, 0, -1]
    by_number = same_classes(labels, NAMES, ("0", "1", "2"))
    assert by_number is not None
    assert by_number.tolist() == labels.tolist()
    assert same_classes(labels, NAMES, ("0", "1")) is None
    assert same_classes(None, NAMES, NAMES) is None
    assert same_classes(labels, NAMES, ()) is None


def test_the_labels_of_a_folder_are_read(tmp_path: Path) -> None:
    images = data().images
    for i, name in enumerate(("owl", "owl", "cat")):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(images[i, 0].numpy()).save(tmp_path / name / f"{i}.png")
    found = open_samples(tmp_path, 10, data(), Sampling())
    assert found.count == 3
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == [0, 2, 2]
    assert found.conditions()["labels"] == "of the images"
    flat = open_samples(images, 10, data(), Sampling())
    assert flat.labels is None
    assert flat.count == 10


def test_labels_for_given_images() -> None:
    found = open_samples(data().images, 4, data(), Sampling(labels=[0, 1, 2, 0]))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(InputError, match="label 3 is out of range: there are 3 classes, 0 to 2"):
        open_samples(data().images, 2, data(), Sampling(labels=[0, 3]))


def test_the_model_is_told_by_the_checksum_of_its_weights(tmp_path: Path) -> None:
    save_file(MODEL.network.state_dict(), tmp_path / "weights.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    assert model_identity(MODEL) == f"animals, sha256 {digest[:16]}"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"guidance": 2.0}, "not trained with guidance"),
        ({"sigmas": (0.5, 80.0)}, "must descend"),
        ({"ema": "0.5"}, "ema '0.5' is not in this model; present: 0.9"),
        ({"sampler": "heun"}, "does not fit a consistency model"),
        ({"labels": [0, 1]}, "one for each of 10 samples"),
        ({"labels": 3}, "label 3 is out of range"),
        ({"labels": 0.5}, "whole numbers"),
        ({"labels": "even"}, "labels='even' cannot be used: give numbers of classes or 'balanced'"),
    ],
)
def test_bad_requests_are_named_before_anything_is_sampled(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_samples(MODEL, 10, data(), Sampling(**asked))


def test_bad_models_and_images_are_named() -> None:
    with pytest.raises(InputError, match="unconditional"):
        open_samples(make(PLAIN), 10, data(), Sampling(labels=1))
    with pytest.raises(InputError, match="names no classes"):
        open_samples(make(PLAIN), 10, data(), Sampling(labels="balanced"))
    with pytest.raises(InputError, match=r"makes images \[1, 8, 8\], the data are \[1, 4, 4\]"):
        open_samples(MODEL, 10, ImageData(torch.zeros(5, 1, 4, 4, dtype=torch.uint8)), Sampling())
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        Sampling(steps=0)
