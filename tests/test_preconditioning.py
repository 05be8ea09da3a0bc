"""Preconditionings: the published table, the exact boundary, and the wrong forms that go around."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning

EDM, BOUNDARY = Preconditioning("edm", 0.5, 0.0), Preconditioning("boundary", 0.5, 0.002)

TABLE = [
    # sigma, EDM c_skip and c_out, shifted c_skip and c_out, c_in, c_noise
    (0.002, ".9999840003", ".001999984", "1", "0", "1.999984", "-1.553652025"),
    (0.5, ".5", ".3535533906", ".502004", ".352139177", "1.414213562", "-.1732867951"),
    (0.821, ".2705507656", ".4270390013", ".2715145407", ".4259987114", "1.040289893", "-.04930804238"),
    (80.0, "3.906097418e-5", ".4999902347", "3.906292723e-5", ".4999777349", ".01249975587", "1.095506659"),
]


def is_printed(value: float, text: str) -> bool:
    """Whether a number rounds to the printed one."""
    mantissa, _, exponent = text.partition("e")
    return abs(value - float(text)) <= 0.5000001 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row[0]))
def test_table(row: tuple[Any, ...]) -> None:
    sigma = torch.tensor([row[0]], dtype=torch.float64)
    edm = [float(c) for c in EDM.coefficients(sigma)]
    boundary = [float(c) for c in BOUNDARY.coefficients(sigma)]
    expected_edm, expected_boundary = (row[1], row[2], *row[5:]), (row[3], row[4], *row[5:])
    assert all(map(is_printed, edm, expected_edm)), edm
    # .502004 and .352139177 are .5020040... and .3521391770...: the table drops trailing zeros, half a unit is still met.
    assert all(map(is_printed, boundary, expected_boundary)), boundary


Wrong = Callable[[float], float]
_S, _E = 0.25, 0.002
WRONG: dict[str, tuple[int, Wrong]] = {
    "c_out with the shifted denominator": (1, lambda s: (s - _E) * 0.5 / math.sqrt((s - _E) ** 2 + _S)),
    "c_out without sigma_data": (1, lambda s: (s - _E) / math.sqrt(s**2 + _S)),
    "c_out with the variance of the data": (1, lambda s: (s - _E) * _S / math.sqrt(s**2 + _S)),
    "c_in without the root": (2, lambda s: 1 / (s**2 + _S)),
    "c_skip not shifted": (0, lambda s: _S / (s**2 + _S)),
    "c_noise a thousandfold": (3, lambda s: 250 * math.log(s)),
    "c_noise not a quarter": (3, math.log),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_table_tells_the_wrong_forms(name: str) -> None:
    """Forms found in other repositories: the table must be fine enough to refuse each of them."""
    place, wrong = WRONG[name]
    texts = [(row[0], (row[3], row[4], *row[5:])[place]) for row in TABLE]
    assert not all(is_printed(wrong(sigma), text) for sigma, text in texts)
    ours = BOUNDARY.coefficients(torch.tensor([row[0] for row in TABLE], dtype=torch.float64))[place]
    theirs = torch.tensor([wrong(row[0]) for row in TABLE], dtype=torch.float64)
    assert float((ours - theirs).abs().max()) > 1e-6


@given(st.floats(1e-3, 100), st.floats(0.05, 5))
def test_input_and_target_have_unit_variance(sigma: float, sigma_data: float) -> None:
    """EDM's derivation: Var(c_in x) = 1, and (y - c_skip x) / c_out, what F has to give, has variance 1 as well."""
    level = torch.tensor([sigma], dtype=torch.float64)
    c_skip, c_out, c_in, _ = (float(c) for c in Preconditioning("edm", sigma_data, 0.0).coefficients(level))
    assert math.isclose(c_in**2 * (sigma**2 + sigma_data**2), 1.0, rel_tol=1e-9)
    variance = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2
    assert math.isclose(variance / c_out**2, 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0.002, 0.003, 0.1, 1 / 3])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e20, 1e30])
def test_boundary_is_the_identity_to_the_bit(dtype: torch.dtype, end: float, value: float) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    sigma = torch.full((4,), end, dtype=dtype)
    out = Preconditioning("boundary", 0.5, end)(lambda x, c: torch.full_like(x, value), x, sigma)
    assert torch.equal(out, x)


def test_edm_at_zero_is_the_identity_with_a_finite_gradient() -> None:
    """ln 0 must not reach the network: one NaN there would spread to all weights through 0 times NaN."""
    network = UNet(UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=()))
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sigma = torch.tensor([0.0, 0.7, 0.0], requires_grad=True)
    out = EDM(network, x, sigma)
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert not torch.equal(out[1], x[1])
    out.square().sum().backward()
    gradients = [x.grad, sigma.grad, *(p.grad for p in network.parameters() if p.grad is not None)]
    assert len(gradients) > 10
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_the_formula_term_by_term() -> None:
    calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def network(x: Tensor, c_noise: Tensor, **condition: Any) -> Tensor:
        calls.append((x, c_noise, condition))
        return x.square()

    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.3, 7.0], dtype=torch.float64)
    out = BOUNDARY(network, x, sigma, label=torch.tensor([1, 2]), masks=None)
    c_skip, c_out, c_in, c_noise = (c[:, None, None, None] for c in BOUNDARY.coefficients(sigma))
    torch.testing.assert_close(out, c_skip * x + c_out * (c_in * x) ** 2, rtol=1e-14, atol=1e-14)
    assert torch.equal(calls[0][0], c_in * x)
    assert torch.equal(calls[0][1], c_noise.flatten())
    assert set(calls[0][2]) == {"label", "masks"}


def test_the_network_may_run_in_half_precision() -> None:
    """Only F is rounded; skip path and coefficients keep full precision."""
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    seen: list[torch.dtype] = []

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        seen.extend((x.dtype, c_noise.dtype))
        return torch.zeros_like(x)

    out = BOUNDARY(network, x, torch.tensor([0.5, 0.5]), dtype=torch.bfloat16)
    assert seen == [torch.bfloat16, torch.float32]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, 0.502004 * x, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("score", 0.5, 0.0), "'score' is not known"),
        (("edm", 0.0, 0.0), "sigma_data is 0.0"),
        (("edm", -1.0, 0.0), "sigma_data is -1.0"),
        (("edm", math.nan, 0.0), "sigma_data is nan"),
        (("edm", 0.5, 0.002), "sigma_end is 0.002: the edm preconditioning ends at 0"),
        (("boundary", 0.5, -0.1), "sigma_end is -0.1"),
        (("boundary", 0.5, math.nan), "sigma_end is nan"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Preconditioning(*arguments)


# ---- TrigFlow and the flow: what they are told, and maps to any noise level

TRIG, TRIG_TIME = Preconditioning("trigflow", 0.5, 0.0), Preconditioning("trigflow", 0.5, 0.0, "time")
FLOW = Preconditioning("flow", 0.5, 0.0, "time")
LEVELS = torch.tensor([0.002, 0.3, 0.821, 5.0, 80.0], dtype=torch.float64)


def test_trigflow_is_edm_with_the_sign_turned() -> None:
    """Exactly: f of F is EDM's D of -F, at the same input (Lu and Song 2024, section 3)."""
    edm, trig = EDM.coefficients(LEVELS), TRIG.coefficients(LEVELS)
    for mine, theirs, sign in zip(trig, edm, (1, -1, 1, 1), strict=True):
        torch.testing.assert_close(mine, sign * theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 0.821, 1.526, 80.0])
def test_trigflow_in_its_own_terms(sigma: float) -> None:
    """f = cos t x_t - sin t sigma_data F(x_t / sigma_data, t), at the published angles."""
    printed = {0.002: ".0039999787", 0.5: ".7853981634", 0.821: "1.0237756735", 1.526: "1.2541658537", 80.0: "1.5645464082"}
    level = torch.tensor([sigma], dtype=torch.float64)
    t = TRIG_TIME.c_noise(level)
    assert is_printed(float(t), printed[sigma])
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []

    def network(x: Tensor, c: Tensor) -> Tensor:
        seen.extend((x, c))
        return x.sin()

    x_t = t.cos() * x
    expected = t.cos() * x_t - t.sin() * 0.5 * (x_t / 0.5).sin()
    torch.testing.assert_close(TRIG_TIME(network, x, level), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(seen[0], x_t / 0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("tau", "t"), [(-1.0, ".63432432"), (0.0, "1.10714872"), (0.4, "1.24740265"), (-2.4, ".17948343")])
def test_times_of_the_published_draws(tau: float, t: str) -> None:
    assert is_printed(float(TRIG_TIME.time(torch.tensor([math.exp(tau)], dtype=torch.float64))), t)


@pytest.mark.parametrize(
    ("t", "s", "values"),
    [(0.994, 0.006, (".01207199", "-.49697284", "2.01203578")), (0.9, 0.5, (".60975610", "-.22086305", "2.20863052"))],
)
def test_trigflow_maps_are_imms(t: float, s: float, values: tuple[str, str, str]) -> None:
    """IMM's "simple_edm" on OT-FM states (1 - t) y + t sigma_data z = (1 - t) x with t = sigma / (sigma + sigma_data)."""
    sigma, to = (torch.tensor([0.5 * u / (1 - u)], dtype=torch.float64) for u in (t, s))
    c_skip, c_out, c_in, _ = TRIG_TIME.coefficients(sigma, to)
    theirs = (c_skip * (1 - s) / (1 - t), c_out * (1 - s), c_in / (1 - t))
    assert all(is_printed(float(v), text) for v, text in zip(theirs, values, strict=True)), theirs


def test_the_flow_in_its_own_terms() -> None:
    """z_r = z_t - (t - r) u with z_t = (1 - t) x (Geng et al. 2025, equation 5)."""
    sigma, to = torch.tensor([0.3, 5.0], dtype=torch.float64), torch.tensor([0.1, 0.0], dtype=torch.float64)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told: list[Tensor] = []

    def network(z: Tensor, c: Tensor, second: Tensor) -> Tensor:
        told.extend((c, second))
        return z.cos()

    t, r = sigma / (1 + sigma), to / (1 + to)
    z = (1 - t)[:, None, None, None] * x
    expected = (z - (t - r)[:, None, None, None] * z.cos()) / (1 - r)[:, None, None, None]
    torch.testing.assert_close(replace(FLOW, second=True)(network, x, sigma, to=to), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(told[0], t)
    torch.testing.assert_close(told[1], t - r)


@pytest.mark.parametrize("kind", [TRIG, FLOW], ids=lambda p: p.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_to_where_it_stands_is_the_identity(kind: Preconditioning, dtype: torch.dtype) -> None:
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=dtype)
    out = replace(kind, second=True)(lambda x, c, second: 1e3 + x, x, sigma, to=sigma)
    torch.testing.assert_close(out, x, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_a_clock_or_an_end_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"clock is 'time': the edm preconditioning has none but ln\(sigma\)"):
        Preconditioning("edm", 0.5, 0.0, "time")
    with pytest.raises(InputError, match="clock 'angle' is not known; known: log, time"):
        Preconditioning("trigflow", 0.5, 0.0, "angle")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the trigflow preconditioning ends at 0"):
        Preconditioning("trigflow", 0.5, 0.002)
