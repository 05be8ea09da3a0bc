"""Networks from their configurations, and configurations from and to plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from atonce.core.errors import InputError
from atonce.networks.adm import ADM, ADMConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.networks.unet2d import UNet2D, UNet2DConfig

NetworkConfig: TypeAlias = UNetConfig | ADMConfig | UNet2DConfig
Network: TypeAlias = UNet | ADM | UNet2D

ARCHITECTURES: dict[str, type[UNetConfig] | type[ADMConfig] | type[UNet2DConfig]] = {
    "unet": UNetConfig,
    "adm": ADMConfig,
    "unet2d": UNet2DConfig,
}

_LATER = ("second_time", "double_norm")


def build(config: NetworkConfig, seed: int | None = 0) -> Network:
    """The network of a configuration.

    Args:
        config: Its shape.
        seed: Of the initial weights; ``None`` leaves them at zero, for weights that are loaded next.

    Returns:
        The network, in float32 on the CPU.

    Raises:
        InputError: ``config`` is no network configuration.
    """
    match config:
        case UNetConfig():
            return UNet(config, seed)
        case ADMConfig():
            return ADM(config, seed)
        case UNet2DConfig():
            return UNet2D(config, seed)
        case _:
            raise InputError(f"{config!r} is not a network configuration: give a UNetConfig, an ADMConfig or a UNet2DConfig")


def config_to_dict(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as JSON values: ``architecture`` first, then its fields, with lists for tuples.

    Flags that came later are left out while they are off, so that digests of recipes stay what they were.
    """
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))
    values = {k: v for k, v in dataclasses.asdict(config).items() if v or k not in _LATER}
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {"architecture": name, **fields}


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """A configuration from its JSON values; the inverse of :func:`config_to_dict`.

    Args:
        values: Fields by name; lists become tuples, absent fields keep their defaults. Without ``architecture``: a UNetConfig.

    Returns:
        The configuration.

    Raises:
        InputError: The architecture or a field is unknown, or a value is out of its range.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"a network configuration is a mapping of fields to values, not {values!r}")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    name = fields.pop("architecture", "unet")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"network architecture {name!r} is not known; known: {', '.join(ARCHITECTURES)}")
    kind = ARCHITECTURES[name]
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - known):
        raise InputError(f"network fields {', '.join(unknown)} are not known; known: {', '.join(sorted(known))}")
    return kind(**fields)
