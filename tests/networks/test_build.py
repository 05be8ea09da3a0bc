"""Networks from configurations, and configurations from and to plain values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.networks.adm import ADM, ADMConfig
from atonce.networks.build import NetworkConfig, build, config_from_dict, config_to_dict
from atonce.networks.unet import UNet, UNetConfig

UNET = UNetConfig(8, 1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), labels=3, guidance=True)
SMALL_ADM = ADMConfig(8, 1, channels=64, channel_mult=(1,), blocks=1, attention=(), scale_shift=False, noise_scale=1000.0)


@pytest.mark.parametrize(("config", "kind"), [(UNET, UNet), (SMALL_ADM, ADM)])
def test_build_makes_the_network_of_the_configuration(config: NetworkConfig, kind: type) -> None:
    network = build(config, seed=5)
    assert type(network) is kind
    assert network.config is config
    same = kind(config, 5).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("config", [UNET, SMALL_ADM, UNetConfig(), ADMConfig()])
def test_through_json_and_back(config: NetworkConfig) -> None:
    values = config_to_dict(config)
    assert next(iter(values)) == "architecture"
    read = json.loads(json.dumps(values))
    assert read == values  # lists already
    assert config_from_dict(read) == config


def test_what_is_absent_has_its_default() -> None:
    """So files that were written before a field existed stay readable."""
    assert config_from_dict({"size": 16, "channel_mult": [1, 2]}) == UNetConfig(16, channel_mult=(1, 2))
    assert config_from_dict({"architecture": "adm"}) == ADMConfig()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"architecture": "dit"}, "architecture 'dit' is not known; known: unet, adm"),
        ({"architecture": None}, "architecture None is not known"),
        ({"architecture": ["unet"]}, "is not known; known: unet, adm"),
        ({"depth": 3, "size": 8}, "fields depth are not known; known: attention, "),
        ({"architecture": "adm", "taps": [1, 1]}, "fields taps are not known; known: .*scale_shift"),
        ({"architecture": "unet", "scale_shift": True}, "fields scale_shift are not known"),
        ({"size": "8"}, "size is '8'"),
        ({"channel_mult": 2}, "channel_mult is 2"),
        ([("size", 8)], "mapping"),
    ],
)
def test_wrong_values_are_named(values: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        config_from_dict(values)
    assert "\n" not in str(caught.value)


def test_what_is_no_configuration() -> None:
    with pytest.raises(InputError, match="'tiny' is not a network configuration"):
        build("tiny")  # type: ignore[arg-type]
