"""Augmentation inside a training step: both passes are told, and interruptions and division of the batch change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.distribution import World
from atonce.core.streams import Stream, normal
from atonce.data.augment import augment
from atonce.networks.unet import UNetConfig
from atonce.training import presets
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.schedule import Stage


class Data:
    """Normal images of standard deviation .5 as a function of the index."""

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        return 0.5 * normal(7, index, (1, 4, 4), Stream.EVALUATE), None


NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), embedding_mult=2)


def engine(preset: str = "ict", microbatch: int | None = None, augment: float = 0.5, **changes: Any) -> Engine:
    network = dataclasses.replace(NETWORK, augment_labels=9 if augment else 0)
    values: dict[str, Any] = {"images": 800, "batch": 8, "network": network, "sigma_data": 0.5, "lr": 1e-3, "augment": augment}
    recipe: Recipe = presets.PRESETS[preset](**values | changes)
    made = Engine(recipe, Data(), World(), Options(precision="fp32", microbatch=microbatch))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():  # so that the labels matter from the first step
        for parameter in made.network.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return made


def snapshot(made: Engine) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.tensors().items()}


@pytest.mark.parametrize("target", ["student", "ema"])
def test_both_passes_are_told_what_was_done(target: str) -> None:
    made, index = engine(target=target, seed=3), torch.arange(40, 56)
    told: list[tuple[Tensor, Tensor]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told.append((args[0], kwargs["augment"]))

    networks = [made.network] if made.target is None else [made.network, made.target]
    assert len(networks) == (2 if target == "ema" else 1)
    for network in networks:
        network.register_forward_pre_hook(note, with_kwargs=True)
    _, t = made.terms(index, Stage(points=1281), torch.float32)
    images, labels = augment(Data().batch(index)[0], 3, index, 0.5)
    assert len(told) == 2
    assert all(torch.equal(each, labels) for _, each in told)
    assert tuple(labels.shape) == (16, 9)
    # What the network sees is the augmented image with the noise of its index.
    level = t[:, None, None, None]
    x = images + level * normal(3, index, (1, 4, 4), Stream.NOISE)
    torch.testing.assert_close(told[0][0], x / (level**2 + 0.25).sqrt())
    assert float((labels @ made.network.map_augment.weight.T).detach().abs().max()) > 0.01


def test_without_augmentation_nothing_is_told() -> None:
    made = engine(augment=0.0)
    seen: list[dict[str, Any]] = []
    made.network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    made.step()
    assert [kwargs.get("augment") for kwargs in seen] == [None, None]


@pytest.mark.parametrize("preset", ["ict", "diffusion"])
def test_it_continues_bit_for_bit(preset: str) -> None:
    straight = engine(preset)
    for _ in range(2):
        straight.step()
    tensors, facts, seen = snapshot(straight), dict(straight.facts()), straight.images_seen
    for _ in range(2):
        straight.step()
    resumed = engine(preset)
    resumed.load(seen, tensors, facts)
    for _ in range(2):
        resumed.step()
    a, b = snapshot(straight), snapshot(resumed)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert not torch.equal(a["network/map_augment.weight"], tensors["network/map_augment.weight"])  # the labels are learnt


def test_accumulation_equals_the_whole_batch() -> None:
    whole, parts = engine(), engine(microbatch=3)
    for _ in range(2):
        whole.step()
        parts.step()
    assert float((whole.flat.gradient - parts.flat.gradient).norm() / whole.flat.gradient.norm()) < 1e-5
