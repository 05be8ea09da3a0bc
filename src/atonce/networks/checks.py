"""Checks that the configurations of all networks share; a wrong field is named with its range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from atonce.core.errors import InputError


def check_whole(config: Any, lowest: Mapping[str, int]) -> None:
    """The named fields are whole numbers of at least the given value.

    Args:
        config: A network configuration.
        lowest: The lowest value by field.

    Raises:
        InputError: One is not.
    """
    for name, low in lowest.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise InputError(f"network {name} is {value!r}, must be a whole number of at least {low}")


def check_tuples(config: Any, names: Iterable[str]) -> None:
    """The named fields are tuples of positive whole numbers.

    Args:
        config: A network configuration.
        names: Fields.

    Raises:
        InputError: One is not.
    """
    for name in names:
        values = getattr(config, name)
        if not isinstance(values, tuple) or not all(isinstance(v, int) and v >= 1 for v in values):
            raise InputError(f"network {name} is {values!r}, must be a tuple of whole numbers of at least 1")


def check_flags(config: Any, names: Iterable[str]) -> None:
    """The named fields are true or false.

    Args:
        config: A network configuration.
        names: Fields.

    Raises:
        InputError: One is not.
    """
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise InputError(f"network {name} is {getattr(config, name)!r}, must be true or false")


def check_shape(config: Any) -> None:
    """Size, levels, width, heads and the resolution of dropout fit each other.

    Args:
        config: A network configuration whose single fields are checked already.

    Raises:
        InputError: They do not.
    """
    levels = len(config.channel_mult)
    if not levels:
        raise InputError("network channel_mult is empty: give at least one level")
    if config.size % (1 << (levels - 1)) or config.size >> (levels - 1) < 2:
        raise InputError(
            f"images of {config.size}x{config.size} do not fit {levels} levels: the size must be a multiple of "
            f"{1 << (levels - 1)} and at least {2 << (levels - 1)}; use fewer levels (channel_mult) or resize the images"
        )
    if config.channels % 4:
        raise InputError(f"network channels is {config.channels}, must be a multiple of 4")
    # The lowest level always has attention, between encoder and decoder.
    widths = [
        config.channels * m
        for i, m in enumerate(config.channel_mult)
        if i == levels - 1 or config.size >> i in config.attention
    ]
    if config.head_channels and any(width % config.head_channels for width in widths):
        raise InputError(
            f"network head_channels is {config.head_channels}, must divide the width of every level with attention ({widths})"
        )
    if 0 < config.dropout_resolution < config.size >> (levels - 1):
        raise InputError(
            f"network dropout_resolution is {config.dropout_resolution}, below the lowest resolution "
            f"{config.size >> (levels - 1)}: no block would have dropout; give 0 for dropout in every block"
        )


def check_inputs(config: Any, **given: object) -> None:
    """Refuse an input that would be ignored: a guidance scale or a second time for a network that knows none.

    Args:
        config: A network configuration.
        given: Inputs, or ``None``, by the name of the flag that says that the network has them.

    Raises:
        InputError: One is given and the network has no input for it.
    """
    for name, value in given.items():
        if value is not None and not getattr(config, name):
            word, taken = {"guidance": ("guidance", "a scale")}.get(name, ("second-time", "one"))
            raise InputError(f"this network has no {word} input: only one whose configuration says {name}=True takes {taken}")
