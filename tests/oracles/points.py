"""A mixture in the plane, a small network for points, and a two-sample test: what trained methods are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from atonce.core.distribution import World
from atonce.core.streams import Stream, normal
from atonce.networks.unet import UNetConfig
from atonce.noise.worlds import Mixture
from atonce.training.engine import Engine
from atonce.training.options import Options
from atonce.training.recipe import Recipe

WORLD = Mixture(
    torch.tensor([[-0.8, -0.4], [0.7, -0.6], [0.1, 0.8]]), torch.tensor([0.2, 0.15, 0.25]), torch.tensor([0.5, 0.2, 0.3])
)
SIGMA_DATA = 0.65
# What the recipe says of the network; the network of points takes its place.
NETWORK = UNetConfig(4, 2, channels=8, channel_mult=(1,), blocks=1, attention=())
SHAPE: dict[str, Any] = {"network": NETWORK, "sigma_data": SIGMA_DATA}


class PointNetwork(nn.Module):
    """F of points [B, 2, 1, 1]: a perceptron told the noise level and a second time by sines and cosines."""

    def __init__(self, seed: int = 0, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        widths = [2 + 24, *[width] * layers, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                bound = layer.in_features**-0.5
                layer.weight.copy_((torch.rand(layer.weight.shape, generator=generator) * 2 - 1) * bound * math.sqrt(3))
                layer.bias.zero_()
            self.layers[-1].weight.mul_(1e-3)

    def forward(self, x: Tensor, c_noise: Tensor, second: Tensor | None = None, **condition: Any) -> Tensor:
        half = torch.arange(1, 7, dtype=c_noise.dtype)
        times = [c_noise.expand(len(x)), torch.zeros_like(c_noise) if second is None else second]
        angles = torch.cat([t[:, None] * half for t in times], 1)
        h = torch.cat([x.flatten(1), angles.sin(), angles.cos()], 1)
        for layer in self.layers[:-1]:
            h = torch.nn.functional.silu(layer(h))
        return self.layers[-1](h)[:, :, None, None]

    def mask_sizes(self) -> list[int]:
        return []


class Points:
    """The world as training data."""

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        first = int(index[0])
        assert torch.equal(index, torch.arange(first, first + len(index)))
        return WORLD.sample(len(index), 7, first).float()[:, :, None, None], None


def exact_teacher() -> Any:
    """The world's denoiser in the place of a trained one."""

    def denoiser(network: None, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        return WORLD.denoiser(x.flatten(1), sigma.double()).to(x.dtype)[:, :, None, None]

    return SimpleNamespace(network=None, config=SimpleNamespace(preconditioning=denoiser))


def trained(recipe: Recipe, monkeypatch: Any, teacher: Any = None) -> Engine:
    """A run of the recipe on the world."""
    monkeypatch.setattr("atonce.training.engine.build", lambda config, seed: PointNetwork(seed))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = Engine(recipe, Points(), World(), Options(precision="fp32"), teacher=teacher)  # type: ignore[arg-type]
        for _ in range(recipe.steps):
            engine.step()
    finally:
        torch.set_num_threads(threads)
    return engine


@torch.no_grad()
def one_step(engine: Engine, n: int) -> Tensor:
    """Samples of the averaged weights by one call [n, 2]."""
    network = PointNetwork()
    network.load_state_dict(engine.weights(next(iter(engine.averages))))
    z = normal(5, torch.arange(n), (2, 1, 1), Stream.SAMPLE)
    sigma = torch.full((n,), engine.recipe.sigma_max)
    return engine.preconditioning(network, sigma[:, None, None, None] * z, sigma).flatten(1)


def data(n: int) -> Tensor:
    """Points of the world that training has not seen [n, 2]."""
    return WORLD.sample(n, 1234).float()


def two_sample(a: Tensor, b: Tensor, permutations: int = 500) -> float:
    """p-value of the hypothesis that two sets of points have one distribution: the energy distance under permutations."""
    both = torch.cat([a, b]).double()
    distance = torch.cdist(both, both)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(len(both)), *(torch.randperm(len(both), generator=generator) for _ in range(permutations))]
    signs = torch.tensor([1.0 / len(a)] * len(a) + [-1.0 / len(b)] * len(b), dtype=torch.float64)

    def energies(orders: Sequence[Tensor]) -> Tensor:
        s = torch.stack([torch.empty_like(signs).scatter_(0, order, signs) for order in orders])
        return -((s @ distance) * s).sum(1)

    values = energies(orders)
    return float((values[1:] >= values[0]).double().mean())
