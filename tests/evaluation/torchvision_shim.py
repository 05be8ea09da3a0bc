"""Lets torchvision be imported for parity tests beside a torch it was not built for.

The wheels of torch for the CPU and of torchvision from PyPI do not fit each other: torchvision's compiled operators cannot be
loaded, and its import fails where it gives two of them a second implementation. Where they are not defined, their
schemas are defined here first; nothing that the tests call uses them. Call :func:`prepare` before ``import torch_fidelity`` or
``import torchmetrics.image``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float threshold) -> Tensor",
)


def prepare(*needed: str) -> None:
    """Make torchvision importable; skip the test where a package is missing.

    Args:
        needed: Packages the test needs besides torchvision, for example ``torch_fidelity``.
    """
    for name in ("torchvision", *needed):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed")
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    library = None
    try:  # where the two fit, this defines everything
        torch.ops.load_library(str(next(path for folder in folders for path in folder.glob("_C.*"))))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
    importlib.import_module("torchvision").shim = library  # a library that is collected takes its schemas along
