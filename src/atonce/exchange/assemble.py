"""From a configuration and foreign weights to a model: nothing is built before its size is known to be theirs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.errors import InputError, ModelFileError
from atonce.model import ConsistencyModel
from atonce.model_config import Kind, ModelConfig
from atonce.networks.build import build
from atonce.networks.unet2d import UNet2D, UNet2DConfig
from atonce.preconditioning import Preconditioning

# More than any known network has; what is above it is a damaged or hostile file, which would fill the memory with modules.
_MOST = {
    "size": 4096,
    "image_channels": 4096,
    "channels": 16_384,
    "blocks": 64,
    "embedding_mult": 64,
    "noise_mult": 64,
    "labels": 1 << 20,
    "augment_labels": 4096,
    "embedding": 65_536,
    "train_steps": 100_000,
}
_MOST_LEVELS = 12


def check_limits(config: Any) -> None:
    """Refuse a network that is larger than any can be.

    Args:
        config: A network configuration.

    Raises:
        InputError: A field is above its limit.
    """
    for name, most in _MOST.items():
        value = getattr(config, name, 0)
        largest = max(value, default=0) if isinstance(value, tuple) else value
        if isinstance(largest, int) and largest > most:
            raise InputError(f"its {name} of {largest} is above {most}, the most that is read")
    widths = getattr(config, "channel_mult", getattr(config, "channels", ()))
    if isinstance(widths, tuple) and (len(widths) > _MOST_LEVELS or max(widths, default=0) > _MOST["channels"]):
        raise InputError(f"it has {len(widths)} levels or widths above the most that is read")


def make(config: Any) -> nn.Module:
    """The network of a configuration, with zeros for weights."""
    return UNet2D(config, None) if isinstance(config, UNet2DConfig) else build(config, None)


def most_values(config: Any) -> int:
    """An upper bound of a network's values, within a small factor: every block as if it joined its widest neighbours.

    Args:
        config: A network configuration.

    Returns:
        Number of values.
    """
    first = config.channels if isinstance(config.channels, int) else config.channels[0]
    mult = getattr(config, "channel_mult", None)
    widths = [first * m for m in mult] if mult else list(config.channels)
    embedding = getattr(config, "embedding", 0)
    noise = first * getattr(config, "noise_mult", 1)
    emb = embedding if isinstance(embedding, int) and embedding else first * getattr(config, "embedding_mult", 4)
    total = noise * (emb + config.labels + config.augment_labels) + emb * (emb + config.labels + 2)
    for level, width in enumerate(widths):
        near = max(widths[max(level - 1, 0) : level + 2])
        block = (
            9 * width * (near + width)
            + 9 * width * width
            + width * (near + width)
            + 2 * emb * width
            + 4 * width * width
            + 20 * near
        )
        total += (2 * config.blocks + 6) * block + 18 * (config.image_channels + width) * near
    return int(total)


def network_with(config: Any, state: Mapping[str, Tensor], where: Path | str) -> nn.Module:
    """The network of a configuration with the given weights, in float32.

    Names and shapes are compared before a network is made that is much larger than the weights.

    Args:
        config: Its configuration.
        state: Weights under our names.
        where: The file, for messages.

    Returns:
        The network.

    Raises:
        ModelFileError: The weights do not fit, or are not finite.
    """
    try:
        check_limits(config)
        # On a device without memory first, unless the network cannot be much larger than the weights: that device is slow.
        small = most_values(config) <= 4 * sum(value.numel() for value in state.values()) + (1 << 20)
        with contextlib.nullcontext() if small else torch.device("meta"):
            network = make(config)
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    except ModelFileError:
        raise
    except InputError as problem:
        raise ModelFileError(f"{where} describes a network that cannot be built: {problem}") from problem
    for text, names in (("missing", wanted.keys() - state.keys()), ("not known to it", state.keys() - wanted.keys())):
        if names:
            some = ", ".join(sorted(map(str, names))[:3])[:200]
            raise ModelFileError(
                f"{where}: the weights do not fit the network: {len(names)} tensors are {text}, such as {some}"
            )
    for name, shape in wanted.items():
        value = state[name]
        if tuple(value.shape) != shape:
            raise ModelFileError(f"{where}: {name} is {list(value.shape)}, the network that it describes needs {list(shape)}")
        if not value.is_floating_point():
            raise ModelFileError(f"{where}: {name} is of type {value.dtype}, weights are floating point numbers")
        if not bool(torch.isfinite(value).all()):
            raise ModelFileError(f"{where}: {name} has values that are not finite: the file is damaged, fetch it again")
    network = network if small else make(config)
    network.load_state_dict({name: state[name].float() for name in wanted})
    return network


def foreign_model(
    network: nn.Module,
    kind: Kind,
    preconditioning: Preconditioning,
    card: Mapping[str, Any],
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    time_points: Mapping[int, tuple[float, ...]] | None = None,
    where: Path | str,
) -> ConsistencyModel:
    """A model around a foreign network.

    Args:
        network: The network; its ``config`` is kept.
        kind: What the call gives.
        preconditioning: How F is used.
        card: Facts: ``name``, ``found`` (what the file was), ...
        sigma_min: Smallest noise level of training.
        sigma_max: Noise level at which samples start.
        time_points: Published time points, by steps.
        where: The file, for messages.

    Returns:
        The model, on the CPU, in float32.

    Raises:
        ModelFileError: The parts do not fit each other.
    """
    shape: Any = network.config
    # Weights of others have no licence that we could know; the card would otherwise say ours.
    facts = {"licence": "unknown", **card}
    try:
        config = ModelConfig(
            shape, preconditioning, kind, sigma_min=sigma_min, sigma_max=sigma_max, time_points=dict(time_points or {})
        )
        return ConsistencyModel(config, network, card=facts)
    except InputError as problem:
        raise ModelFileError(f"{where} does not make a model: {problem}") from problem


def chosen_kind(given: str | None, found: Kind, where: Path | str) -> Kind:
    """The kind that a caller asks for, or the one that was found.

    Args:
        given: ``"consistency"``, ``"denoiser"`` or ``None``.
        found: What the file says, or its default.
        where: The file, for messages.

    Returns:
        The kind.

    Raises:
        InputError: It is another word.
    """
    if given is None:
        return found
    if given not in ("consistency", "denoiser"):
        raise InputError(f"kind={given!r} for {where}: a foreign checkpoint is 'consistency' or 'denoiser'")
    return given  # type: ignore[return-value]


def number(value: Any, name: str, low: float = 0.0, high: float = math.inf) -> float:
    """A number of a foreign configuration.

    Args:
        value: What stands there.
        name: Its name, for messages.
        low: It must be above this ...
        high: ... and at most this.

    Returns:
        The number.

    Raises:
        InputError: It is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise InputError(f"its {name} is {str(value)[:60]!r}, must be a number above {low:g}")
    return float(value)
