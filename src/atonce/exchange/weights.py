"""Weights of a foreign file or folder as a flat state dict, from whichever format it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atonce.core.errors import ModelFileError
from atonce.core.reading_tensors import read_torch_legacy, read_torch_zip
from atonce.exchange.sniff import read_json, sniff_file

_WRAPPED = ("state_dict", "model_state_dict", "ema", "model")  # where training scripts keep the weights among other things


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        ModelFileError: It cannot be read or is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError, OverflowError) as problem:
        text = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise ModelFileError(f"{path} is truncated, damaged or no safetensors file: {text}") from problem


def flat_state(values: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file of torch held: the object itself, or what it keeps under a usual name.

    Args:
        values: The object.
        path: The file, for messages.

    Returns:
        Tensors by name.

    Raises:
        ModelFileError: There is none.
    """
    if isinstance(values, dict):
        inner = next((values[k] for k in _WRAPPED if isinstance(values.get(k), dict)), values)
        state = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if state and len(state) == len(inner):
            return state
        others = ", ".join(str(k)[:40] for k in list(inner)[:3])
        raise ModelFileError(
            f"{path} holds no flat state dict (names and tensors), but {others or 'nothing'}: give the weights"
        )
    raise ModelFileError(f"{path} holds {type(values).__name__}, not a state dict: save the weights alone, as safetensors")


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict of a file of weights, told by its content.

    Args:
        path: The file.

    Returns:
        Tensors by name, and what the file was.

    Raises:
        ModelFileError: It is of no such kind, or damaged.
    """
    found = sniff_file(path)
    if found.format == "safetensors":
        return read_safetensors(path), found.text
    if found.format == "torch-zip":
        return flat_state(read_torch_zip(path), path), found.text
    if found.format == "torch-legacy":
        return flat_state(read_torch_legacy(path), path), found.text
    raise ModelFileError(f"{path} is a {found.text}, not a file of weights: safetensors and files of torch.save are read")


def folder_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """The weights of a network folder of diffusers: safetensors, whole or in shards, before the older ``.bin``.

    Args:
        folder: The folder.
        stem: How its files of weights are called.

    Returns:
        Tensors by name.

    Raises:
        ModelFileError: There are none, or they are damaged.
    """
    for ending in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            whole = folder / f"{stem}{variant}.{ending}"
            index = folder / f"{stem}.{ending}.index{variant}.json"
            if whole.is_file():
                return read_state(whole)[0]
            if index.is_file():
                return _shards(folder, index)
    raise ModelFileError(f"{folder} has no weights: {stem}.safetensors or {stem}.bin is missing")


def _shards(folder: Path, index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(v, str) and Path(v).name == v and v not in ("", "..") for v in places.values()
    ):
        raise ModelFileError(f"{index} is damaged: it names files outside its folder, or none")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        part = read_state(folder / name)[0]
        state |= {key: value for key, value in part.items() if places.get(key) == name}
    if missing := sorted(set(places) - set(state)):
        raise ModelFileError(f"{index} names {len(missing)} tensors that its files do not hold, such as {missing[0][:80]}")
    return state
