"""The learnt part of LPIPS: VGG16's convolutions and the weights of the channels, from a local file or the usual places."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions, in groups between which the images shrink by two."""
VARIABLE = "ATONCE_LPIPS_WEIGHTS"
URL = "https://download.pytorch.org/models/vgg16-397923af.pth"

_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers of the convolutions in the published names
_OFFLINE = "the distance effnet-lite0 runs offline"


def learnt(source: str | Path | None) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """VGG16's convolutions and the weight of each channel of the five maps, float32.

    Args:
        source: File (safetensors or a PyTorch file of tensors) with VGG16's convolutions, named as by torchvision
            (``features.0.weight``) or the lpips package (``net.slice1.0.weight``), and the weights of the channels
            (``lin0.model.1.weight``); where these are not in it, torchmetrics' are taken. None: the file that
            ``ATONCE_LPIPS_WEIGHTS`` names, else torchvision's, downloaded (528 MB) or from the cache of ``torch.hub``.

    Returns:
        (weight [O, I, 3, 3], bias [O]) of the 13 convolutions in order, and five tensors [C].

    Raises:
        MissingExtraError: The weights of the channels are nowhere to be had.
        InputError: The file does not exist or the download failed.
        ModelFileError: The file is damaged, holds more than tensors, or has tensors of other shapes.
    """
    source = source or os.environ.get(VARIABLE) or None
    table: dict[str, Tensor] = {}
    if source is not None:
        table = _sorted(_read(Path(source)))
    if not all(f"lin{k}" in table for k in range(5)):
        table |= {key: value for key, value in _sorted(_read(_torchmetrics_file(source))).items() if key.startswith("lin")}
    if source is None:
        table |= _sorted(_download())
    inputs = [3] + [width for group in WIDTHS for width in group]
    expected: dict[str, tuple[int, ...]] = {f"lin{k}": (group[0],) for k, group in enumerate(WIDTHS)}
    for layer, before, after in zip(_LAYERS, inputs, inputs[1:]):
        expected |= {f"{layer}.weight": (after, before, 3, 3), f"{layer}.bias": (after,)}
    name = "the weights of lpips" if source is None else str(source)
    for key, shape in expected.items():
        found = list(table[key].shape) if key in table else "nothing"
        if found != list(shape):
            raise ModelFileError(f"{name}: expected VGG16 with {key} {list(shape)}, found {found}; see {URL}; {_OFFLINE}")
        if not bool(torch.isfinite(table[key]).all()):
            raise ModelFileError(f"{name}: {key} has values that are not finite; {_OFFLINE}")
    convs = [(table[f"{layer}.weight"].float(), table[f"{layer}.bias"].float()) for layer in _LAYERS]
    return convs, [table[f"lin{k}"].float() for k in range(5)]


def _sorted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to ours: ``0.weight`` ... ``28.bias`` for convolutions, ``lin0`` ... ``lin4`` (flat) for channels."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(?:features|net\.slice\d)\.(\d+\.(?:weight|bias))", key):
            out[match[1]] = value
        elif match := re.fullmatch(r"(lin\d)\.model\.\d\.weight", key):
            out[match[1]] = value.flatten()
    return out


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name, without executing anything."""
    if not path.is_file():
        raise InputError(f"the file of LPIPS weights {path} does not exist: get {URL}; {_OFFLINE}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as problem:
        raise ModelFileError(f"cannot read the LPIPS weights {path}: {problem}; {_OFFLINE}") from problem
    except Exception as problem:  # a damaged PyTorch file can fail in any way
        raise ModelFileError(
            f"{path} is damaged or holds more than tensors: nothing of it was executed; {_OFFLINE}"
        ) from problem
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelFileError(f"{path} is not a table of tensors by name; {_OFFLINE}")
    return state


def _torchmetrics_file(source: str | Path | None) -> Path:
    """The package torchmetrics carries the learnt weights of the channels (version 0.1) in its wheel; it is not imported."""
    spec = importlib.util.find_spec("torchmetrics")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / "functional/image/lpips_models/vgg.pth").is_file():
            return path
    holder = f"{source} has no lin0.model.1.weight ... lin4, so that " if source is not None else ""
    raise MissingExtraError(
        f"{holder}distance lpips needs the channel weights in torchmetrics (pip install 'atonce[fid]'), or a file with all "
        f"weights ({VARIABLE}); {_OFFLINE}"
    )


def _download() -> Mapping[str, Tensor]:
    """VGG16 of torchvision, from the cache of torch.hub or its server, held against the checksum in its name."""
    try:
        both = _Announced(sys.stderr)  # standard output is for results
        with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
            state: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
                URL, map_location="cpu", check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as problem:
        reason = getattr(problem, "reason", problem)
        raise InputError(
            f"distance lpips needs VGG16's weights, which cannot be fetched here ({reason}): bring {URL} and name "
            f"the file in {VARIABLE}; {_OFFLINE}"
        ) from problem
    return state


class _Announced:
    """A stream that holds back the line in which torch.hub announces a download until something of it has come.

    Where nothing comes, the error is the only line.

    Args:
        stream: Where all goes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._held = stream, ""

    def write(self, text: str) -> int:
        if text.startswith("Downloading: "):
            self._held = text
        else:
            self._stream.write(self._held + text)
            self._held = ""
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
