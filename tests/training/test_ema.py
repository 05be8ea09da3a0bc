"""Flat parameters and their moving averages."""

from __future__ import annotations

import torch

from atonce.networks.unet import UNet, UNetConfig
from atonce.training.ema import Average
from atonce.training.flat import FlatParameters

NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), embedding_mult=2)


def values() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, -0.3])


def test_a_flat_network_is_the_same_network() -> None:
    plain, network = UNet(NETWORK, 1), UNet(NETWORK, 1)
    flat = FlatParameters(network)
    assert flat.values.numel() == sum(p.numel() for p in plain.parameters())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))
    torch.testing.assert_close(network(*values()), plain(*values()))
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.load_state_dict(UNet(NETWORK, 2).state_dict())
    torch.testing.assert_close(network(*values()), UNet(NETWORK, 2)(*values()))


def test_parameters_and_gradients_are_views() -> None:
    network = UNet(NETWORK, 1)
    flat = FlatParameters(network)
    with torch.no_grad():
        flat.values.zero_()
    assert not any(p.any() for p in network.parameters())
    network.load_state_dict(UNet(NETWORK, 2).state_dict())
    expected = torch.autograd.grad(network(*values()).square().sum(), list(network.parameters()))
    network(*values()).square().sum().backward()
    for view, gradient in zip(flat.views(flat.gradient), expected, strict=True):
        torch.testing.assert_close(view, gradient)
    network(*values()).square().sum().backward()  # a second pass adds
    for view, gradient in zip(flat.views(flat.gradient), expected, strict=True):
        torch.testing.assert_close(view, 2 * gradient)


def test_an_average_moves_by_its_decay() -> None:
    network = UNet(NETWORK, 1)
    flat = FlatParameters(network)
    average = Average(flat)
    start = flat.values.detach().clone()
    with torch.no_grad():
        flat.values.add_(1.0)
    average.update(0.75)
    torch.testing.assert_close(average.values, start + 0.25)
    average.update(0.0)
    assert torch.equal(average.values, flat.values)
    named = average.state_dict()
    assert named.keys() == dict(network.named_parameters()).keys()
    assert {name: value.shape for name, value in named.items()} == {n: p.shape for n, p in network.named_parameters()}


def test_an_average_comes_back() -> None:
    network = UNet(NETWORK, 1)
    flat = FlatParameters(network)
    first, second = Average(flat), Average(flat)
    with torch.no_grad():
        flat.values.add_(torch.randn(flat.values.shape, generator=torch.Generator().manual_seed(0)))
    first.update(0.5)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    second.load_state_dict(saved)
    assert torch.equal(first.values, second.values)
