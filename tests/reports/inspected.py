"""Models and data for the tests of the inspection: tiny, made in a moment, and some of them exactly known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atonce.data.dataset import ImageData
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.reports.inspection_material import Material

S = 0.5  # standard deviation of the world that the exact models know: N(0, S^2) in each pixel


def unet(channels: int = 1, labels: int = 0, size: int = 8, **changes: Any) -> UNetConfig:
    return UNetConfig(
        size=size, image_channels=channels, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=labels, **changes
    )


class Zero(nn.Module):
    """F = 0: under EDM's preconditioning the exact denoiser of N(0, S^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.a.to(x.dtype) * x


class Exact(Zero):
    """The F with which EDM's preconditioning gives the exact consistency function of N(0, S^2), S x / sqrt(S^2 + sigma^2)."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
        root = (sigma**2 + S**2).sqrt()
        return (x * (sigma / (root + S)) + self.a * x).to(x.dtype)


def known(kind: Any, size: int = 8) -> ConsistencyModel:
    """The exact model of N(0, S^2), a consistency model or a denoiser."""
    config = ModelConfig(unet(size=size), Preconditioning("edm", S, 0.0), kind=kind, clip=None)
    return ConsistencyModel(config, Zero() if kind == "denoiser" else Exact())


def untrained(kind: Any = "consistency", channels: int = 1, labels: int = 0, size: int = 8, **config: Any) -> ConsistencyModel:
    """A network as it begins, with weights that are not all zero."""
    network = unet(channels, labels, size, **config.pop("network", {}))
    model = ConsistencyModel(ModelConfig(network, Preconditioning("edm", S, 0.0), kind=kind, **config))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def images(n: int, channels: int = 1, size: int = 8, labels: int = 0, seed: int = 0) -> ImageData:
    """Pictures that follow N(0, S^2) in each pixel, up to rounding and the range."""
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * S
    pixels = (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return ImageData(pixels, torch.arange(n) % labels if labels else None, name="made")


def material(n: int = 300, channels: int = 1, size: int = 8, labels: int = 0, unseen: bool = True) -> Material:
    """Training and held-out images of that kind."""
    training = images(n, channels, size, labels)
    return Material(training, images(80, channels, size, labels, seed=1) if unseen else training, unseen, None)
