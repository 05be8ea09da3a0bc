"""A model that is a denoiser, with a network for which everything is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.noise.worlds import Gaussian
from atonce.preconditioning import Preconditioning
from atonce.sampling.ode import Churn

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
SHAPE = (1, 8, 8)


def unit(n: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


class Zero(nn.Module):
    """F = 0: under EDM's preconditioning the exact denoiser of N(0, sigma_data^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.a.to(x.dtype) * x


def denoiser(clip: tuple[float, float] | None = None) -> ConsistencyModel:
    config = ModelConfig(NETWORK, Preconditioning("edm", 0.5, 0.0), kind="denoiser", clip=clip)
    return ConsistencyModel(config, Zero())


def test_the_denoiser_is_the_exact_one() -> None:
    x = 3.0 * unit(2)
    torch.testing.assert_close(denoiser()(x, 3.0), Gaussian(0.0, 0.5).denoiser(x, 3.0).float())


@pytest.mark.parametrize(
    ("sampler", "gain", "calls"), [("auto", 0.00659530796, 35), ("heun", 0.00659530796, 35), ("euler", 0.0052878930, 18)]
)
def test_eighteen_steps_of_the_denoiser(sampler: Any, gain: float, calls: int) -> None:
    seen: list[dict[str, Any]] = []
    x = denoiser().sample(4, 18, seed=3, sampler=sampler, callback=seen.append)
    z = normal(3, torch.arange(4), SHAPE, Stream.SAMPLE, 0)
    torch.testing.assert_close(x, 80.0 * gain * z, rtol=1e-6, atol=1e-7)
    assert seen[-1]["calls"] == calls
    assert len(seen) == 18
    assert seen[-1]["done"] == 4


def test_denoiser_options() -> None:
    model = denoiser()
    torch.testing.assert_close(model.sample(2, 1), model(80.0 * normal(0, torch.arange(2), SHAPE, Stream.SAMPLE, 0), 80.0))
    torch.testing.assert_close(model.sample(2, sigmas=[80.0, 1.0, 0.0]), model.sample(2, sigmas=[80.0, 1.0]))
    assert float(denoiser((-0.25, 0.25)).sample(4, 3).abs().max()) == 0.25
    with pytest.raises(InputError, match="sampler 'restart' does not fit a denoiser model; possible: auto, heun, euler"):
        model.sample(1, sampler="restart")
    with pytest.raises(InputError, match="this is a denoiser model, only flow maps can"):
        model(unit(1), 1.0, to=0.5)


def test_churn() -> None:
    model, churn = denoiser(), Churn(4.0, 0.05, 80.0, 1.05)
    x = model.sample(6, 18, seed=3, churn=churn)
    assert torch.equal(x[2:5], model.sample(3, 18, seed=3, first=2, churn=churn))
    assert torch.equal(model.sample(6, 18, seed=3, churn=Churn()), model.sample(6, 18, seed=3))
    assert not torch.equal(x, model.sample(6, 18, seed=3))
