"""The small trained model of the Learn tab: a network for points in the plane, evaluated exactly as the page does it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from atonce.preconditioning import Preconditioning
from atonce.studio.learn_world import SIGMA_DATA, SIGMA_MIN

WIDTH, DEPTH = 64, 3
FOLDER = Path(__file__).parent / "assets"
WEIGHTS, RECORD = FOLDER / "learn-model.safetensors", FOLDER / "learn-model.json"
PRECONDITIONING = Preconditioning("boundary", SIGMA_DATA, SIGMA_MIN)


class PlaneNetwork(nn.Module):
    """F: three hidden layers of 64 units with SiLU; its input is the scaled point and the network's own time.

    Args:
        generator: Draws the initial weights; the last layer begins at zero, so that f begins as c_skip x.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes = [4, *[WIDTH] * DEPTH, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                bound = (3.0 / layer.in_features) ** 0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            last.weight.zero_()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """F(x, c_noise).

        Args:
            x: Scaled points [B, 2].
            time: c_noise = ln(sigma) / 4, [B].

        Returns:
            [B, 2].
        """
        h = torch.cat([x, time[:, None], time[:, None] ** 2], 1)
        for layer in self.layers[:-1]:
            h = nn.functional.silu(layer(h))
        out: Tensor = self.layers[-1](h)
        return out


def trained() -> PlaneNetwork:
    """The network that comes with the package, in float64."""
    network = PlaneNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    return network.double().requires_grad_(False)


def answer(network: PlaneNetwork, x: Tensor, sigma: Tensor) -> Tensor:
    """f(x, sigma): what the model makes of points in one call.

    Args:
        network: F.
        x: Points [B, 2].
        sigma: Their noise levels [B].

    Returns:
        [B, 2].
    """
    return PRECONDITIONING(network, x, sigma)


def record() -> dict[str, Any]:
    """How the model was trained, and how far its answers are from the exact ones."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def packed() -> list[dict[str, Any]]:
    """The weights as the page takes them.

    Returns:
        For each layer ``rows``, ``columns``, and ``weight`` (row by row) and ``bias`` as base64 of little-endian float32.
    """
    tensors = load_file(WEIGHTS)
    layers = []
    for i in range(DEPTH + 1):
        weight, bias = tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]
        rows, columns = weight.shape
        layers.append({"rows": rows, "columns": columns, "weight": _base64(weight), "bias": _base64(bias)})
    return layers


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().astype("<f4").tobytes()).decode()
