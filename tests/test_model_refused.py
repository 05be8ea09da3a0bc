"""What sampling refuses: values of the wrong kind, classes that training never saw, more than memory holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning


def make_model(labels: int = 0) -> ConsistencyModel:
    network = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=labels)
    return ConsistencyModel(ModelConfig(network, Preconditioning("boundary", 0.5, 0.002)))


@pytest.mark.parametrize(("dropout", "refused"), [(0.0, True), (0.1, False)])
def test_no_class_is_refused_where_training_never_saw_it(dropout: float, refused: bool) -> None:
    model = make_model(labels=4)
    model.card["recipe"] = {"label_dropout": dropout}
    if refused:
        with pytest.raises(InputError, match="label -1 means no class, and this model was never trained without"):
            model.sample(2, labels=[0, -1])
    else:
        assert model.sample(2, labels=[0, -1]).shape[0] == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sigmas": "80"}, "sigmas is '80', must be a list of numbers"),
        ({"sigmas": 5.0}, "sigmas is 5.0, must be a list of numbers"),
        ({"seeds": [1.5, 2.5]}, "seeds is .* must be whole numbers"),
        ({"seeds": [2**64, 1]}, "seeds is .* must be whole numbers"),
        ({"seeds": "ab"}, "seeds is 'ab', must be whole numbers"),
        ({"labels": 1.5}, "labels is 1.5, must be whole numbers"),
        ({"labels": True}, "labels is True, must be whole numbers"),
        ({"labels": ["a", "b"]}, "labels is .* must be whole numbers"),
        ({"batch": True}, "batch is True"),
        ({"first": 2**63 - 1}, "first is .* must be a whole number"),
        ({"noise": torch.full((2, 1, 8, 8), float("nan"))}, "noise has values that are not finite"),
        ({"noise": [1, 2]}, "noise is list, must be a float tensor"),
    ],
)
def test_wrong_options_of_sampling_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        make_model(labels=4).sample(2, **options)
    assert "\n" not in str(caught.value)


def test_more_images_than_memory_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="would need .* GiB"):
        make_model().sample(10**12)
