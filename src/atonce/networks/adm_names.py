"""OpenAI's names and orders of an ADM U-Net's weights, and ours.

OpenAI numbers the blocks through and keeps the step up as the last part of a decoder block; it stores labels as rows of a
table, and the channels of attention as all of q, then k, then v, where ours (EDM's) run over (head, channel, q|k|v).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.networks.adm import ADM, ADMBlock, ADMConfig
from atonce.networks.layers import Conv, GroupNorm

_PARTS = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


def openai_names(config: ADMConfig) -> dict[str, str]:
    """Our parameter name for each of OpenAI's, in the order of OpenAI's files.

    Args:
        config: The network.

    Returns:
        Names by names, one to one.

    Raises:
        InputError: The network has inputs that OpenAI's has not, or is too narrow for its 32 groups.
    """
    return _names(_skeleton(config))


def from_openai(state: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """The weights of an OpenAI checkpoint under our names, in our order of channels. Values are not changed.

    Args:
        state: OpenAI's flat state dict; attention weights may be of 1x1 or of length-1 convolutions.
        config: The network that it holds.

    Returns:
        A state dict of ``ADM(config)``.

    Raises:
        InputError: A tensor is missing, left over or of another shape, or :func:`openai_names` refuses the network.
    """
    skeleton = _skeleton(config)
    names = _names(skeleton)
    _check_names(state, names)
    shapes = {name: value.shape for name, value in to_openai(skeleton.state_dict(), config).items()}
    out: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        value = state[theirs]
        if value.dim() == 3 and len(shapes[theirs]) == 4:
            value = value[..., None]
        if value.shape != shapes[theirs]:
            raise InputError(f"{theirs} is {_size(value.shape)}, the network needs {_size(shapes[theirs])}")
        if ".qkv." in theirs:
            value = value.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1).contiguous()
        elif theirs == "label_emb.weight":
            value = value.T.contiguous()
        out[ours] = value
    return out


def to_openai(state: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """Our weights under OpenAI's names and in OpenAI's order of channels: the inverse of :func:`from_openai`, bit for bit.

    Args:
        state: A state dict of ``ADM(config)``.
        config: The network.

    Returns:
        OpenAI's flat state dict.

    Raises:
        InputError: A tensor is missing or left over, or :func:`openai_names` refuses the network.
    """
    names = openai_names(config)
    _check_names(state, names.values())
    out: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        value = state[ours]
        if ".qkv." in theirs:
            value = value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1).contiguous()
        elif theirs == "label_emb.weight":
            value = value.T.contiguous()
        out[theirs] = value
    return out


def _skeleton(config: ADMConfig) -> ADM:
    if config.augment_labels or config.guidance:
        raise InputError("a network with augmentation labels or a guidance input has no counterpart in OpenAI's checkpoints")
    with torch.device("meta"):
        network = ADM(config, seed=None)
    if any(module.groups != 32 for module in network.modules() if isinstance(module, GroupNorm)):
        raise InputError(
            f"network channels is {config.channels}: OpenAI's networks normalise in 32 groups, so widths must be "
            "multiples of 32 and at least 128"
        )
    return network


def _names(network: ADM) -> dict[str, str]:
    names: dict[str, str] = {}

    def layer(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")})

    def place(theirs: str, part: int, ours: str, module: nn.Module) -> int:
        """Name one of our modules from the given part of one of their blocks on; returns the next free part."""
        if not isinstance(module, ADMBlock):
            layer(f"{theirs}.{part}", ours)
            return part + 1
        for mine, its in _PARTS.items():
            layer(f"{theirs}.{part}.{its}", f"{ours}.{mine}")
        if isinstance(module.skip, Conv):
            layer(f"{theirs}.{part}.skip_connection", f"{ours}.skip")
        if module.heads:
            for mine, its in _ATTENTION.items():
                layer(f"{theirs}.{part + 1}.{its}", f"{ours}.{mine}")
        return part + (2 if module.heads else 1)

    layer("time_embed.0", "map_layer0")
    layer("time_embed.2", "map_layer1")
    if network.map_label is not None:
        names["label_emb.weight"] = "map_label.weight"
    for index, (name, module) in enumerate(network.enc.items()):
        place(f"input_blocks.{index}", 0, f"enc.{name}", module)
    index, part = -1, 0
    for name, module in network.dec.items():
        if "_in" in name:
            part = place("middle_block", part, f"dec.{name}", module)
        else:
            if "_block" in name:
                index, part = index + 1, 0
            part = place(f"output_blocks.{index}", part, f"dec.{name}", module)
    layer("out.0", "out_norm")
    layer("out.2", "out_conv")
    return names


def _check_names(state: Iterable[str], expected: Iterable[str]) -> None:
    given, wanted = set(state), set(expected)
    for text, found in (("missing", wanted - given), ("not known to it", given - wanted)):
        if found:
            some = ", ".join(sorted(found)[:3])
            raise InputError(f"these weights do not fit the network: {len(found)} tensors are {text}, for example {some}")


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a single value"
