"""The published networks: parameter counts, and name for name and shape for shape the layouts of the public checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atonce.networks.adm import ADM, ADMConfig, Resample
from atonce.networks.adm_names import openai_names, to_openai
from atonce.networks.build import Network, NetworkConfig, build
from atonce.networks.layers import Conv
from atonce.networks.presets import named
from atonce.networks.unet import UNetConfig, ddpmpp, ncsnpp

IMAGENET = ADMConfig(labels=1000)
LSUN = ADMConfig(256, channels=256, channel_mult=(1, 1, 2, 2, 4, 4), blocks=2, scale_shift=False)


def on_meta(config: NetworkConfig) -> Network:
    with torch.device("meta"):
        return build(config, seed=None)


def total(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ddpmpp(), 55_732_739),
        (ddpmpp(augment_labels=9), 55_733_891),
        (ddpmpp(augment_labels=9, labels=10), 55_735_299),
        (ddpmpp(blocks=8), 96_947_715),
        (ncsnpp(), 56_395_523),
        (ncsnpp(augment_labels=9), 56_397_827),
        (ncsnpp(blocks=8), 97_610_499),
        (named("ddpmpp", 32, 3), 55_732_739),
        (named("ncsnpp", 32, 3), 56_395_523),
        (named("ncsnpp-deep", 32, 3), 97_610_499),
        (IMAGENET, 295_899_267),
        (named("adm", 64, 3, labels=1000), 295_899_267),
        (LSUN, 526_304_771),
        (named("adm", 256, 3), 526_304_771),
    ],
    ids=lambda value: None if isinstance(value, UNetConfig | ADMConfig) else str(value),
)
def test_published_parameter_counts(config: NetworkConfig, count: int) -> None:
    assert sum(p.numel() for p in on_meta(config).parameters()) == count


@pytest.mark.parametrize(
    ("file", "config", "tensors", "values"),
    [
        ("edm-cifar10-ddpmpp-uncond", ddpmpp(augment_labels=9), 425, 55_733_923),
        ("edm-cifar10-ncsnpp-cond", ncsnpp(augment_labels=9, labels=10), 434, 56_400_931),
        ("edm-ffhq-afhq64-ddpmpp", ddpmpp(64, channel_mult=(1, 2, 2, 2), augment_labels=9), 553, 61_805_619),
        ("edm-imagenet64-adm", IMAGENET, 553, 295_899_315),
    ],
)
def test_the_layouts_of_edm(layout, file: str, config: NetworkConfig, tensors: int, values: int) -> None:
    """Ours, below ``model.``, and the resampling filters that EDM stores wherever a step up or down is, and nothing else."""
    theirs = layout(file)
    assert (len(theirs), total(theirs)) == (tensors, values)
    network = on_meta(config)
    expected = {f"model.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    taps = len(config.taps) if isinstance(config, UNetConfig) else 2
    for name, module in network.named_modules():
        if isinstance(module, Resample) or (isinstance(module, Conv) and module.resample):
            expected[f"model.{name}.resample_filter"] = (1, 1, taps, taps)
    assert expected == theirs


@pytest.mark.parametrize(
    ("file", "config", "tensors", "values"),
    [("openai-adm-imagenet64", IMAGENET, 541, 295_899_267), ("openai-adm-lsun256", LSUN, 566, 526_304_771)],
)
def test_the_layouts_of_openai(layout, file: str, config: ADMConfig, tensors: int, values: int) -> None:
    theirs = layout(file)
    assert (len(theirs), total(theirs)) == (tensors, values)
    state: dict[str, Tensor] = on_meta(config).state_dict()
    assert {name: tuple(value.shape) for name, value in to_openai(state, config).items()} == theirs
    names = openai_names(config)
    assert list(names) == list(theirs)  # the order too
    assert sorted(names.values()) == sorted(state)  # one to one, nothing left over


def test_both_forms_of_the_imagenet_network_are_one(layout) -> None:
    """EDM's and OpenAI's files describe the same network: the same sizes under our one name."""
    edm, openai = layout("edm-imagenet64-adm"), layout("openai-adm-imagenet64")
    for theirs, ours in openai_names(IMAGENET).items():
        a, b = openai[theirs], edm[f"model.{ours}"]
        assert a == (b[::-1] if theirs == "label_emb.weight" else b), theirs


def test_without_a_seed_nothing_is_drawn() -> None:
    config = named("adm", 8, 1)
    assert isinstance(config, ADMConfig)
    assert not any(p.any() for name, p in ADM(config, seed=None).named_parameters() if "norm" not in name)
    assert not any(p.any() for name, p in build(ncsnpp(8), None).named_parameters() if "norm" not in name)
