"""Networks are differentiated forwards: the same values, the derivative of differences, fused attention everywhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.core.streams import dropout_masks
from atonce.networks.adm import ADMConfig
from atonce.networks.build import NetworkConfig, build, config_from_dict, config_to_dict
from atonce.networks.forward_mode import parts
from atonce.networks.layers import GroupNorm, pixel_norm
from atonce.networks.unet import UNetConfig

UNET = UNetConfig(8, 2, channels=8, channel_mult=(1, 2), blocks=1, attention=(4, 8), labels=3, guidance=True, second_time=True)
ADM = ADMConfig(8, 2, channels=32, channel_mult=(1, 1), blocks=1, attention=(4,), head_channels=16, labels=3, second_time=True)
NETWORKS: dict[str, NetworkConfig] = {
    "ddpm++": UNET,
    "ncsn++": dataclasses.replace(UNET, embedding="fourier", fourier_scale=0.5, encoder="residual", taps=(1, 3, 3, 1)),
    "double": dataclasses.replace(UNET, double_norm=True, attention=()),
    "adm": ADM,
    "adm-shift": dataclasses.replace(ADM, scale_shift=False),
    "adm-double": dataclasses.replace(ADM, double_norm=True),
}


def network_of(config: NetworkConfig, seed: int = 3) -> nn.Module:
    """Weights of order one everywhere, in float64: every part has a say."""
    network = build(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) * value[0].numel() ** -0.5)
            else:
                value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return network


def inputs(config: NetworkConfig, network: nn.Module, n: int = 3) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """Where, in which direction (image, noise level, second time), and what else the network is told."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    at, direction = ([draw(n, 2, 8, 8), draw(n), draw(n)] for _ in range(2))
    told: dict[str, Any] = {"label": torch.tensor([0, -1, 2])}
    if config.guidance:
        told["guidance"] = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    told["masks"] = dropout_masks(0, torch.arange(n), network.mask_sizes(), 0.3)  # type: ignore[operator]
    return at, direction, told


def dual(network: nn.Module, at: list[Tensor], direction: list[Tensor], told: dict[str, Any]) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        x, c, s = (forward_ad.make_dual(a, d) for a, d in zip(at, direction, strict=True))
        pair = parts(network(x, c, second=s, **told))
    assert pair is not None
    return pair


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_derivative_is_that_of_differences(name: str, layout: torch.memory_format) -> None:
    network = network_of(NETWORKS[name]).to(memory_format=layout)  # type: ignore[call-overload]
    at, direction, told = inputs(NETWORKS[name], network)
    at[0], direction[0] = (v.contiguous(memory_format=layout) for v in (at[0], direction[0]))
    with torch.no_grad():
        value, tangent = dual(network, at, direction, told)
        h = 1e-5
        ahead, behind = (
            network(x, c, second=s, **told)
            for x, c, s in ([a + sign * h * d for a, d in zip(at, direction, strict=True)] for sign in (1, -1))
        )
        torch.testing.assert_close(value, network(at[0], at[1], second=at[2], **told), rtol=1e-11, atol=1e-11)
    differences = (ahead - behind) / (2 * h)
    assert float(differences.abs().max()) > 0.1
    torch.testing.assert_close(tangent, differences, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_has_a_say_in_it(name: str) -> None:
    network = network_of(NETWORKS[name])
    at, direction, told = inputs(NETWORKS[name], network)
    with torch.no_grad():
        for place in range(3):
            alone = [d if i == place else torch.zeros_like(d) for i, d in enumerate(direction)]
            assert float(dual(network, at, alone, told)[1].abs().max()) > 1e-3


def test_masks_are_those_of_both() -> None:
    """Dropout is an argument: value and tangent of one pass share it, and another mask gives another derivative."""
    network = network_of(UNET)
    at, direction, told = inputs(UNET, network)
    other = {**told, "masks": dropout_masks(1, torch.arange(3), network.mask_sizes(), 0.3)}  # type: ignore[operator]
    with torch.no_grad():
        first, second, again = (dual(network, at, direction, t)[1] for t in (told, other, told))
    assert torch.equal(first, again)
    assert float((first - second).abs().max()) > 0.01


def test_it_agrees_with_torch_func() -> None:
    network = network_of(UNET)
    at, direction, told = inputs(UNET, network)
    with torch.no_grad():
        value, tangent = torch.func.jvp(lambda x, c, s: network(x, c, second=s, **told), tuple(at), tuple(direction))
        mine = dual(network, at, direction, told)
    torch.testing.assert_close((value, tangent), mine, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_the_value_as_usual() -> None:
    network = network_of(UNET)
    at, direction, told = inputs(UNET, network)
    value, _ = dual(network, at, direction, told)
    mine = torch.autograd.grad(value.square().sum(), list(network.parameters()), allow_unused=True)
    usual = network(at[0], at[1], second=at[2], **told)
    expected = torch.autograd.grad(usual.square().sum(), list(network.parameters()), allow_unused=True)
    assert sum(g is not None for g in expected) > 20
    for a, b in zip(mine, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
def test_attention_is_fused_except_under_a_derivative(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = F.scaled_dot_product_attention

    def spy(*arguments: Any) -> Tensor:
        calls.append(1)
        return fused(*arguments)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    network = network_of(NETWORKS[name])
    at, direction, told = inputs(NETWORKS[name], network)
    with torch.no_grad():
        network(at[0], at[1], second=at[2], **told)
        count = len(calls)
        assert count >= 2
        dual(network, at, direction, told)
        assert len(calls) == count
        # Inside a derivative, what carries no tangent is fused too.
        with forward_ad.dual_level():
            network(at[0], at[1], second=at[2], **told)
    assert len(calls) == 2 * count


def test_a_tangent_of_zero_is_zero() -> None:
    norm = GroupNorm(8).double()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with forward_ad.dual_level(), torch.no_grad():
        pair = parts(norm(forward_ad.make_dual(x, torch.zeros_like(x))))
        # Normalisation forgets scale and mean, so along x itself nothing changes but what eps leaves.
        along = parts(norm(forward_ad.make_dual(x, x + 3.0)))
    assert pair is not None
    assert along is not None
    assert float(pair[1].abs().max()) == 0
    assert float(along[1].abs().max()) < 1e-5


def test_pixel_norm_has_mean_square_one() -> None:
    x = 5 * torch.randn(4, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(4, 1, 1), rtol=1e-4, atol=0)
    assert torch.isfinite(pixel_norm(torch.zeros(1, 4, 1, 1))).all()


def test_double_norm_bounds_what_the_embedding_says() -> None:
    """However large the embedding's weights are, scale and shift have mean square one: that is what keeps training stable."""
    at, c = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 1.0])
    largest: dict[str, float] = {}
    for name in ("adm", "adm-double"):
        network = network_of(dataclasses.replace(NETWORKS[name], labels=0))
        inside: list[Tensor] = []
        for key, module in network.named_modules():
            if key.endswith(".conv1"):  # what it gets was scaled and shifted by the embedding
                module.register_forward_pre_hook(lambda module, given, inside=inside: inside.append(given[0]))
        with torch.no_grad():
            for key, value in network.named_parameters():
                if ".affine." in key:
                    value.mul_(1e6)
            network(at, c.double())
        assert len(inside) > 3
        largest[name] = max(float(x.abs().max()) for x in inside)
    assert largest["adm-double"] < 50, "values of one, times at most the root of the number of channels"
    assert largest["adm"] > 1e4


def test_configurations_say_what_is_new_only_where_it_is_on() -> None:
    plain = dataclasses.replace(UNET, second_time=False)
    assert not {"second_time", "double_norm"} & set(config_to_dict(plain))
    for config in NETWORKS.values():
        assert config_from_dict(config_to_dict(config)) == config
    assert config_to_dict(NETWORKS["adm-double"])["double_norm"] is True


def test_a_second_time_must_be_known_and_starts_without_effect() -> None:
    plain = build(dataclasses.replace(UNET, second_time=False), 0)
    x, c = torch.zeros(1, 2, 8, 8), torch.zeros(1)
    with pytest.raises(InputError, match="no second-time input: only one whose configuration says second_time=True"):
        plain(x, c, second=c)
    network = build(UNET, 0)
    assert torch.equal(network(x + 1, c, second=c + 0.7), network(x + 1, c))
    with pytest.raises(InputError, match="double_norm is True, which normalises scale and shift: set scale_shift=True"):
        dataclasses.replace(NETWORKS["adm-shift"], double_norm=True)
