"""Where samples come from: what is asked of a model, what is checked before, and which classes they are of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import atonce
from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.data import limits
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.evaluation.gather import CHUNK, share
from atonce.evaluation.samples import CELL, Sampling, open_samples, same_classes
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


def test_classes_of_other_names_are_not_matched_by_their_place() -> None:
    """As many classes are not the same classes: a place counts only where one side has plain numbers for names."""
    labels = torch.tensor([0, 1, 2])
    assert same_classes(labels, NAMES, ("eel", "fox", "gnu")) is None
    assert same_classes(labels, NAMES, ("2", "1", "0")) is None  # numbers in another order
    for numbers in (("0", "1", "2"), ("000", "001", "002")):
        for one, other in ((NAMES, numbers), (numbers, NAMES)):
            found = same_classes(labels, one, other)
            assert found is not None
            assert found.tolist() == [0, 1, 2]
    made = open_samples(MODEL, 6, data(("eel", "fox", "gnu")), Sampling())
    assert made.labels is None
    assert made.others == "the classes of the model (3: cat, dog, owl) are not those of animals (3: eel, fox, gnu)"
    given = open_samples(data(("eel", "fox", "gnu")), 6, data(), Sampling())
    assert given.labels is None
    assert given.others == "the classes of the images (3: eel, fox, gnu) are not those of animals (3: cat, dog, owl)"
    for fine in (open_samples(MODEL, 6, data(), Sampling()), open_samples(data(), 6, data(), Sampling())):
        assert fine.others is None


@pytest.mark.parametrize("n", [40, 200])
def test_a_model_makes_the_same_images_together_whatever_is_asked(n: int) -> None:
    """The gallery's digits in float32: to the bit the same in any batch and in the ranges of any number of processes."""
    model, digits = atonce.load("digits"), open_data("digits", split="all")
    expected = open_samples(model, n, digits, Sampling(steps=2, seed=3)).make(0, n)
    assert torch.equal(expected[:64], to_uint8(model.sample(min(n, 64), 2, 3)))
    for batch in (1, 7, 64):
        found = open_samples(model, n, digits, Sampling(steps=2, seed=3, batch=batch))
        made = torch.cat([found.make(first, min(batch, n - first)) for first in range(0, n, batch)])
        assert torch.equal(made, expected), batch
        for size in (2, 3):  # each process opens its own
            parts = []
            for begin, end in (share(n, CHUNK, rank, size) for rank in range(size)):
                own = open_samples(model, n, digits, Sampling(steps=2, seed=3, batch=batch))
                parts += [own.make(first, min(batch, end - first)) for first in range(begin, end, batch)]
            assert torch.equal(torch.cat(parts), expected), (batch, size)


def test_a_model_is_asked_for_whole_cells_and_for_each_once() -> None:
    asked: list[tuple[int, int, int, list[int]]] = []

    class Sampler:
        labels = list(NAMES)

        def sample(self, n: int, *, first: int, batch: int, labels: torch.Tensor, **options: Any) -> torch.Tensor:
            asked.append((first, n, batch, labels[-2:].tolist()))
            return torch.arange(first, first + n).reshape(n, 1, 1, 1).expand(n, 1, 8, 8) / 1000

    found = open_samples(Sampler(), 130, data(), Sampling(labels=[0] * 129 + [2]))
    assert found.floats is not None
    made = torch.cat([found.floats(first, min(7, 130 - first), None) for first in range(0, 130, 7)])
    assert torch.equal(made[:, 0, 0, 0], torch.arange(130) / 1000)
    assert asked == [(0, 64, 64, [0, 0]), (64, 64, 64, [0, 0]), (128, 64, 64, [2, 2])]
    assert CELL % CHUNK == 0


def test_a_model_that_gives_another_number_of_images_is_named() -> None:
    class Short:
        def sample(self, n: int, **options: Any) -> torch.Tensor:
            return torch.zeros(n - 1, 1, 8, 8)

    with pytest.raises(InputError, match="the model gave 9 images where 10 were asked for"):
        open_samples(Short(), 10, data(), Sampling()).make(0, 10)


def test_numbers_of_samples_that_no_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: 8 << 30)
    for asked in (Sampling(), Sampling(labels="balanced"), Sampling(labels=1)):
        with pytest.raises(InputError, match="labels of 100,000,000,000 samples would need .*: make fewer samples"):
            open_samples(MODEL, 100_000_000_000, data(), asked)
    with pytest.raises(InputError, match="n must be at most 2\\^40 samples"):
        open_samples(make(PLAIN), 10**20, data(), Sampling())


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
        ({"labels": ["cat", "dog"]}, "labels must be whole numbers, one or one for each sample, got \\['cat', 'dog'\\]"),
        ({"labels": [0.0] * 10}, "labels must be whole numbers, got torch.float32"),
        ({"labels": [True] * 10}, "labels must be whole numbers, got torch.bool"),
        ({"labels": {"cat"}}, "labels must be whole numbers"),
        ({"labels": [2**70] * 10}, "labels must be whole numbers"),
        ({"sigmas": "80"}, "sigmas is '80', must be a list of numbers"),
        ({"sigmas": 80.0}, "sigmas is 80.0, must be a list of numbers"),
        ({"guidance": "2"}, "guidance is .*must be a list of numbers"),
        ({"steps": 2.0}, "steps is 2.0, must be a whole number"),
        ({"seed": "3"}, "seed is '3', must be a whole number"),
        ({"ema": 0.9}, "ema must be a name, got 0.9"),
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
