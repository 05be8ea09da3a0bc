"""Small models of every kind, whose outputs are of ordinary size and depend on everything they are told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning

Make = Callable[..., ConsistencyModel]


def make_model(channels: int = 1, classes: int = 0, card: dict[str, Any] | None = None, **changes: Any) -> ConsistencyModel:
    maps = changes.get("kind") == "flow_map"
    network = UNetConfig(
        *(8, channels, 8, (1, 2), 1, (4,)),
        labels=classes,
        second_time=maps,
    )
    net = UNet(network, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    usual = Preconditioning("flow", 0.5, 0.0, "time", True) if maps else Preconditioning("boundary", 0.5, 0.002)
    changes.setdefault("preconditioning", usual)
    return ConsistencyModel(ModelConfig(network, **changes), net, card=card)


@pytest.fixture(scope="session")
def make() -> Make:
    return make_model


@pytest.fixture(scope="session")
def model() -> ConsistencyModel:
    """Grey, without classes."""
    return make_model()


@pytest.fixture(scope="session")
def colour() -> ConsistencyModel:
    """Red, green and blue."""
    return make_model(3)


@pytest.fixture(scope="session")
def classes() -> ConsistencyModel:
    """Three classes, never trained without."""
    return make_model(1, 3, labels=("cat", "dog", "owl"))


@pytest.fixture(scope="session")
def dropped() -> ConsistencyModel:
    """Three classes, trained without a class too."""
    return make_model(1, 3, {"recipe": {"label_dropout": 0.1}})


@pytest.fixture(scope="session")
def denoiser() -> ConsistencyModel:
    return make_model(kind="denoiser", preconditioning=Preconditioning("edm", 0.5, 0.0))


class WorldModel:
    """What a model is to an edit, with the exact consistency function of normal images: class k has the mean means[k]."""

    kind = "consistency"
    sigma_min, sigma_max, sigma_data, sigma_end = 0.002, 80.0, 0.5, 0.002
    shape = (1, 4, 4)
    device = torch.device("cpu")

    def __init__(
        self, means: tuple[float, ...] = (0.0,), std: float = 0.3, clip: tuple[float, float] | None = (-1.0, 1.0)
    ) -> None:
        self.means, self.std, self.clip = torch.tensor(means), std, clip
        self.labels = [str(k) for k in range(len(means))] if len(means) > 1 else None
        self.config = SimpleNamespace(network=SimpleNamespace(labels=len(self.labels or []), guidance=False), guidance=None)
        self.card: dict[str, Any] = {}

    def __call__(self, x: Tensor, sigma: float | Tensor, label: Tensor | None = None, *, guidance: None = None) -> Tensor:
        mean = self.means[torch.zeros(len(x), dtype=torch.int64) if label is None else label].to(x)[:, None, None, None]
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return mean + (x - mean) * torch.sqrt((self.std**2 + self.sigma_end**2) / (self.std**2 + level**2))


@pytest.fixture(scope="session")
def world() -> type[WorldModel]:
    return WorldModel
