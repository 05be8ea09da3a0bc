"""Flat parameters and their moving averages; rates, names and decays."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from atonce.core.errors import InputError
from atonce.networks.unet import UNet, UNetConfig
from atonce.training.ema import SIGMA_REL_MAX, Average, Rate, decay_at, gamma_of, name_of, parse_rate, sigma_rel_of
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


RATES = st.one_of(
    st.builds(Rate, st.just("decay"), st.floats(0, 1, exclude_max=True)),
    st.builds(Rate, st.just("half-life"), st.floats(1, 2.0**50)),
    st.builds(Rate, st.just("power"), st.floats(1e-6, SIGMA_REL_MAX)),
)


def shares(rate: Rate, steps: int, batch: int = 1, rampup: float = 0.0) -> NDArray[np.float64]:
    """What the weights after each step, and before the first, count in the average of the last step: float64 [steps + 1]."""
    result = np.zeros(steps + 1)
    result[0] = 1.0
    for step in range(1, steps + 1):
        beta = decay_at(rate, batch=batch, images_seen=step * batch, rampup=rampup)
        result *= beta
        result[step] += 1 - beta
    return result


class TestRate:
    def test_names(self) -> None:
        assert name_of(Rate("decay", 0.9999)) == "0.9999"
        assert name_of(Rate("decay", 0.5 ** (512 / 500_000))) == "0.99929"  # as f"{decay:g}"
        assert name_of(Rate("decay", 0.99999996)) == "0.99999996"
        assert name_of(Rate("half-life", 500_000)) == name_of(Rate("half-life", 500_000.0)) == "half-life-500000"
        assert name_of(Rate("half-life", 12_345_678)) == "half-life-12345678"
        assert name_of(Rate("power", 0.05)) == "power-0.05"
        assert name_of(Rate("power", 1e-5)) == "power-1e-05"

    @pytest.mark.parametrize(
        ("value", "rate"),
        [
            (0.9999, Rate("decay", 0.9999)),
            (0, Rate("decay", 0.0)),
            ("0.9999", Rate("decay", 0.9999)),
            ("half-life-500000", Rate("half-life", 5e5)),
            ("half-life-5e5", Rate("half-life", 5e5)),
            (" power-0.1 ", Rate("power", 0.1)),
        ],
    )
    def test_parsing(self, value: float | str, rate: Rate) -> None:
        assert parse_rate(value) == rate

    @given(RATES)
    def test_a_name_is_the_rate_again(self, rate: Rate) -> None:
        again = parse_rate(name_of(rate))
        if rate.kind != "decay" or float(f"{rate.value:g}") == rate.value:
            assert again == rate
        assert name_of(again) == name_of(rate)
        assert Rate(**json.loads(json.dumps(dataclasses.asdict(rate)))) == rate

    @pytest.mark.parametrize(
        "value",
        [1, 1.0, -0.1, math.nan, math.inf, True, "", "fast", "power-", "power-0.3", "power-0", "power--0.1", "power-nan", "1e9",
         "half-life-0", "half-life-inf", "half-life-1e16", "half-life-2 weeks", None, (0.9,)],
    )  # fmt: skip
    def test_what_is_accepted_is_said_in_one_line(self, value: float | str) -> None:
        with pytest.raises(
            InputError, match="such as 0.9999, 'half-life-IMAGES' .* 'power-SIGMA_REL' .* at most 0.2887"
        ) as caught:
            parse_rate(value)
        assert repr(value) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "value", "message"),
        [
            ("fast", 0.5, "is 'fast', must be one of decay, half-life, power"),
            ("decay", 1.0, "kind decay is 1.0, must be at least 0 and below 1"),
            ("half-life", 0.5, "kind half-life is 0.5, must be a number of images from 1"),
            ("power", 0.29, r"kind power is 0.29, must be a sigma_rel from 1e-06 to 0.288675 \(the uniform average\)"),
            ("power", "0.1", "is '0.1', must be a number"),
            ("decay", True, "is True, must be a number"),
        ],
    )
    def test_ranges(self, kind: str, value: float, message: str) -> None:
        with pytest.raises(InputError, match=message):
            Rate(kind, value)  # type: ignore[arg-type]


class TestGamma:
    def test_known_values(self) -> None:
        # gamma = 0: variance of the uniform distribution. gamma = 1: 2 tau has mean 2/3 and second moment 1/2.
        assert sigma_rel_of(0) == pytest.approx(12**-0.5)
        assert sigma_rel_of(1) == pytest.approx((1 / 2 - 4 / 9) ** 0.5)
        assert gamma_of(SIGMA_REL_MAX) == pytest.approx(0, abs=1e-12)
        assert gamma_of(18**-0.5) == pytest.approx(1)
        assert [gamma_of(s) for s in (0.05, 0.1)] == pytest.approx([16.97, 6.94], abs=5e-3)  # Karras et al. 2024

    @given(st.floats(1e-6, SIGMA_REL_MAX))
    def test_it_is_the_largest_root_of_the_cubic(self, sigma_rel: float) -> None:
        gamma = gamma_of(sigma_rel)
        assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-12)
        t = sigma_rel**-2
        assert gamma == pytest.approx(np.roots([1, 7, 16 - t, 12 - t]).real.max(), rel=1e-6, abs=1e-6)

    def test_the_bound_is_where_later_weights_stop_counting_more(self) -> None:
        with pytest.raises(InputError, match="0.288675"):
            gamma_of(0.2887)
        grid = np.linspace(0, 100, 2001)
        widths = np.array([sigma_rel_of(g) for g in grid])
        assert (np.diff(widths) < 0).all()
        assert widths[0] == pytest.approx(SIGMA_REL_MAX)


class TestDecay:
    def test_half_lives(self) -> None:
        assert decay_at(Rate("half-life", 5e5), batch=512, images_seen=512) == pytest.approx(0.9992904691, abs=5e-11)
        assert decay_at(Rate("half-life", 5e7), batch=4096, images_seen=4096) == pytest.approx(0.9999432190, abs=5e-11)
        for decay, steps in ((0.9999, 6931.1), (0.9993, 989.9), (0.99993, 9901.8), (0.99997, 23104.6)):
            beta = decay_at(Rate("half-life", steps * 128), batch=128, images_seen=128)
            assert math.log(beta) == pytest.approx(math.log(decay), rel=0.05 / steps)  # their last digit

    def test_after_a_half_life_half_is_left(self) -> None:
        assert shares(Rate("half-life", 640), 10, batch=64)[0] == pytest.approx(0.5)
        assert shares(Rate("half-life", 640), 20, batch=64)[1:11].sum() == pytest.approx(0.25)

    def test_ramp_up_caps_the_half_life(self) -> None:
        rate, batch = Rate("half-life", 500_000), 512
        for seen in (512, 51_200, 1_024_000):
            beta = decay_at(rate, batch=batch, images_seen=seen, rampup=0.05)
            assert batch * math.log(0.5) / math.log(beta) == pytest.approx(0.05 * seen)
        free = decay_at(rate, batch=batch, images_seen=512)
        assert decay_at(rate, batch=batch, images_seen=10_000_384, rampup=0.05) == free  # from 20 half-lives on
        assert decay_at(Rate("decay", free), batch=batch, images_seen=10_000_384, rampup=0.05) == free
        assert decay_at(Rate("decay", free), batch=batch, images_seen=51_200, rampup=0.05) == pytest.approx(0.5**0.2)

    def test_ramp_up_forgets_the_first_weights_of_a_short_run(self) -> None:
        rate = Rate("half-life", 500_000)
        assert shares(rate, 200, batch=512)[0] > 0.8
        assert shares(rate, 200, batch=512, rampup=0.05)[0] < 1e-8

    @given(RATES, st.integers(1, 4096), st.integers(1, 10**7), st.floats(0, 1))
    def test_every_decay_is_in_its_range(self, rate: Rate, batch: int, steps: int, rampup: float) -> None:
        beta = decay_at(rate, batch=batch, images_seen=batch * steps, rampup=rampup)
        assert 0 <= beta < 1
        assert beta <= decay_at(rate, batch=batch, images_seen=batch * steps)
        if rate.kind == "power":
            assert beta == decay_at(rate, batch=batch, images_seen=batch * steps)  # no cap
        if rate.kind == "decay" and not rampup:
            assert beta == rate.value

    @pytest.mark.parametrize(("batch", "seen", "rampup"), [(0, 1, 0), (2, 1, 0), (1, 1, -0.1), (1, 1, 1.1), (1, 1, math.nan)])
    def test_bad_input(self, batch: int, seen: int, rampup: float) -> None:
        with pytest.raises(InputError, match="must be"):
            decay_at(Rate("decay", 0.9), batch=batch, images_seen=seen, rampup=rampup)


class TestPower:
    def test_the_first_steps_by_hand(self) -> None:
        rate = Rate("power", 18**-0.5)  # gamma = 1: decays 0, 1/4, 4/9, 9/16; shares 1, 3, 5, 7 sixteenths
        decays = [decay_at(rate, batch=32, images_seen=32 * step) for step in (1, 2, 3, 4)]
        assert decays == pytest.approx([0, 1 / 4, 4 / 9, 9 / 16])
        np.testing.assert_allclose(shares(rate, 4), np.array([0, 1, 3, 5, 7]) / 16, rtol=1e-12)

    @pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, SIGMA_REL_MAX])
    @pytest.mark.parametrize("steps", [1, 2, 7, 500])
    def test_shares_are_the_integrals_of_the_profile(self, sigma_rel: float, steps: int) -> None:
        cumulative = (np.arange(steps + 1) / steps) ** (gamma_of(sigma_rel) + 1)
        np.testing.assert_allclose(shares(Rate("power", sigma_rel), steps), [0, *np.diff(cumulative)], rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
    def test_the_width_is_the_one_asked_for(self, sigma_rel: float) -> None:
        steps = 1000
        weight = shares(Rate("power", sigma_rel), steps, batch=64)
        middle = (np.arange(steps + 1) - 0.5) / steps
        mean = weight @ middle
        assert weight.sum() == pytest.approx(1)
        gamma = gamma_of(sigma_rel)
        assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-5)
        # Within a step the time is uniform: its variance 1/12 is what the middles leave out.
        assert (weight @ (middle - mean) ** 2 + 1 / 12 / steps**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)

    def test_the_recursion_of_the_average_is_the_weighted_sum(self) -> None:
        network = UNet(NETWORK, 1)
        flat = FlatParameters(network)
        average, rate = Average(flat), Rate("power", 0.1)
        generator = torch.Generator().manual_seed(0)
        iterates = [flat.values.detach().clone()]
        for step in range(1, 41):
            with torch.no_grad():
                flat.values.add_(0.1 * torch.randn(flat.values.shape, generator=generator))
            iterates.append(flat.values.detach().clone())
            average.update(decay_at(rate, batch=16, images_seen=16 * step))
            if step == 1:
                assert torch.equal(average.values, flat.values)  # the initial weights have no share
        expected = torch.from_numpy(shares(rate, 40)) @ torch.stack(iterates).double()
        torch.testing.assert_close(average.values.double(), expected, rtol=1e-5, atol=1e-6)

    def test_weights_that_never_move_stay(self) -> None:
        flat = FlatParameters(UNet(NETWORK, 1))
        for rate in (Rate("power", 0.05), Rate("half-life", 300), Rate("decay", 0.9)):
            average = Average(flat)
            for step in range(1, 20):
                average.update(decay_at(rate, batch=16, images_seen=16 * step, rampup=0.05))
            assert torch.equal(average.values, flat.values)

    @given(st.floats(0.01, SIGMA_REL_MAX), st.integers(1, 200))
    def test_the_shares_scale_with_the_run(self, sigma_rel: float, steps: int) -> None:
        short, long = (shares(Rate("power", sigma_rel), n) for n in (steps, 2 * steps))
        np.testing.assert_allclose(long[1:].reshape(-1, 2).sum(1), short[1:], rtol=1e-7, atol=1e-12)
