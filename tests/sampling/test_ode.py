"""ODE solvers as functions, deterministic and with churn; their order of accuracy is in tests/oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.sampling.ode import Churn, euler_step, integrate
from atonce.sampling.times import denoiser_times

X = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
SHAPE = (1, 3, 3)


def denoiser(x: Tensor, sigma: float) -> Tensor:
    return x * 0.25 / (0.25 + sigma**2)


def draw(index: Tensor, seed: int = 4) -> Callable[[int], Tensor]:
    """Noise as the sampler gives it: a function of seed, index and step."""
    return lambda step: normal(seed, index, SHAPE, Stream.SAMPLE, step)


def test_one_step_by_hand() -> None:
    s, r = 2.0, 1.0
    slope = (X - denoiser(X, s)) / s
    end = X + (r - s) * slope
    torch.testing.assert_close(integrate(denoiser, X, [s, r], order=1)[0], end)
    torch.testing.assert_close(euler_step(denoiser(X, s), X, s, r), end)
    half = X + (r - s) * (slope + (end - denoiser(end, r)) / r) / 2
    torch.testing.assert_close(integrate(denoiser, X, [s, r], order=2)[0], half)


def test_a_step_to_zero_gives_the_denoiser() -> None:
    for order in (1, 2):
        x, calls = integrate(denoiser, X, [2.0, 0.0], order=order)
        torch.testing.assert_close(x, denoiser(X, 2.0))
        assert calls == 1


def test_callback() -> None:
    seen: list[dict[str, Any]] = []
    _, calls = integrate(denoiser, X, [4.0, 2.0, 0.0], order=2, callback=seen.append)
    assert [(info["step"], info["sigma"], info["calls"]) for info in seen] == [(0, 4.0, 2), (1, 2.0, 3)]
    assert calls == 3
    assert torch.equal(seen[0]["x0"], denoiser(X, 4.0))


def test_no_interval_no_call() -> None:
    for churn in (None, Churn(40.0)):
        x, calls = integrate(denoiser, X, [2.0], churn=churn, noise=lambda i: X)
        assert torch.equal(x, X)
        assert calls == 0


def test_down_is_the_way_back_from_up() -> None:
    levels = [float(s) for s in torch.linspace(0.5, 2.0, 2001)]
    top, _ = integrate(denoiser, X, levels)
    torch.testing.assert_close(integrate(denoiser, top, levels[::-1])[0], X, rtol=1e-7, atol=0)


# ---- churn


@pytest.mark.parametrize("order", [1, 2])
def test_one_step_with_churn_by_hand(order: int) -> None:
    """Two levels and S_churn = .5 give gamma = .25: 2 is raised to 2.5, and the denoiser is asked there."""
    asked: list[float] = []

    def listening(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return denoiser(x, sigma)

    z = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    seen: list[dict[str, Any]] = []
    x, _ = integrate(listening, X, [2.0, 1.0], order, seen.append, churn=Churn(0.5, S_noise=1.1), noise=lambda i: z)
    raised = X + 1.5 * 1.1 * z  # 2.5^2 - 2^2 = 1.5^2
    slope = (raised - denoiser(raised, 2.5)) / 2.5
    end = raised - 1.5 * slope
    if order == 2:
        end = raised - 1.5 * (slope + end - denoiser(end, 1.0)) / 2
    torch.testing.assert_close(x, end, rtol=1e-14, atol=1e-14)
    assert asked == [2.5, 1.0][:order]
    assert seen[0]["sigma"] == 2.0
    assert torch.equal(seen[0]["x0"], denoiser(raised, 2.5))


def test_gamma() -> None:
    """EDM's cap, its band with both ends inside, and its count: the levels above 0."""
    assert Churn(40.0, 0.05, 50.0, 1.003).gamma(50.0, 256) == 40.0 / 256
    assert Churn(40.0, 0.05, 50.0, 1.003).gamma(0.05, 256) == 40.0 / 256
    assert Churn(40.0, 0.05, 50.0).gamma(math.nextafter(50.0, 51.0), 256) == 0
    assert Churn(40.0, 0.05, 50.0).gamma(math.nextafter(0.05, 0.0), 256) == 0
    assert Churn(40.0).gamma(1e9, 18) == math.sqrt(2) - 1
    assert Churn(math.sqrt(2)).gamma(80.0, 4) == math.sqrt(2) / 4
    assert Churn().gamma(80.0, 4) == 0


@given(
    st.lists(st.floats(1e-3, 200.0), min_size=1, max_size=30, unique=True),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.one_of(st.none(), st.builds(Churn, st.floats(0, 100), st.just(0.01), st.floats(0.01, 200.0), st.floats(0.5, 1.5))),
)
def test_calls_and_levels_of_any_grid(levels: list[float], closing: bool, order: int, churn: Churn | None) -> None:
    """n intervals: n calls with Euler; with Heun 2 n, and 2 n - 1 down to 0. Noise is asked for in the band alone."""
    grid = [*sorted(levels, reverse=True), *([0.0] if closing else [])]
    n = len(grid) - 1
    asked: list[float] = []
    drawn: list[int] = []
    seen: list[dict[str, Any]] = []

    def listening(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return denoiser(x, sigma)

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.full_like(X, 0.5)

    x, calls = integrate(listening, X, grid, order, seen.append, churn=churn, noise=noise)
    assert calls == len(asked) == (n if order == 1 else 2 * n - (closing and n > 0))
    assert [info["step"] for info in seen] == list(range(n))
    assert [info["sigma"] for info in seen] == grid[:-1]
    assert bool(torch.isfinite(x).all())
    gammas = [0.0 if churn is None else churn.gamma(sigma, len(levels)) for sigma in grid[:-1]]
    assert drawn == [i for i, gamma in enumerate(gammas) if gamma > 0]
    first_calls = asked if order == 1 else asked[::2]
    assert first_calls == [sigma * (1 + gamma) for sigma, gamma in zip(grid, gammas, strict=False)]
    assert all(sigma > 0 for sigma in asked)


@given(st.integers(1, 12), st.sampled_from([1, 2]), st.floats(0, 30), st.booleans())
def test_the_closing_zero_changes_nothing_before_it(n: int, order: int, amount: float, band: bool) -> None:
    grid = denoiser_times(n, 0.002, 80.0)
    churn = Churn(amount, 0.05, 50.0) if band else Churn(amount)
    x = 80.0 * torch.ones(2, *SHAPE, dtype=torch.float64)
    before, _ = integrate(denoiser, x, grid[:-1], order, churn=churn, noise=draw(torch.arange(2)))
    states: list[Tensor] = []

    def listening(x: Tensor, sigma: float) -> Tensor:
        states.append(x)
        return denoiser(x, sigma)

    end, _ = integrate(listening, x, grid, order, churn=churn, noise=draw(torch.arange(2)))
    assert states[-1].shape == x.shape
    if churn.gamma(grid[-2], n) == 0:
        assert torch.equal(states[-1], before)
    else:
        gamma = churn.gamma(grid[-2], n)
        added = grid[-2] * math.sqrt(gamma**2 + 2 * gamma) * draw(torch.arange(2))(n - 1).double()
        torch.testing.assert_close(states[-1], before + added, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, denoiser(states[-1], grid[-2] * (1 + churn.gamma(grid[-2], n))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("churn", [Churn(), Churn(0.0, 0.05, 50.0, 1.003), Churn(40.0, 100.0, 200.0)])
def test_no_churn_is_the_deterministic_path_to_the_bit(order: int, churn: Churn) -> None:
    def never(step: int) -> Tensor:
        raise AssertionError("no noise is needed")

    grid = denoiser_times(7, 0.002, 80.0)
    x = 80.0 * draw(torch.arange(3))(0)
    plain, calls = integrate(denoiser, x, grid, order)
    with_churn, calls_with_churn = integrate(denoiser, x, grid, order, churn=churn, noise=never)
    assert torch.equal(plain, with_churn)
    assert calls == calls_with_churn
    if churn.S_churn == 0:
        assert torch.equal(plain, integrate(denoiser, x, grid, order, churn=churn)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2])
def test_the_result_is_a_function_of_seed_index_and_step(order: int, dtype: torch.dtype) -> None:
    """Again the same, over any split of the batch too, to the bit; another seed gives another image."""
    grid, churn = denoiser_times(9, 0.002, 80.0), Churn(20.0, 0.05, 50.0, 1.003)

    def images(first: int, last: int, seed: int = 4) -> Tensor:
        noise = draw(torch.arange(first, last), seed)
        x = 80.0 * draw(torch.arange(first, last))(0).to(dtype)
        return integrate(denoiser, x, grid, order, churn=churn, noise=lambda i: noise(i + 1))[0]

    whole = images(0, 7)
    assert whole.dtype == dtype
    assert torch.equal(whole, images(0, 7))
    assert torch.equal(whole, torch.cat([images(0, 1), images(1, 5), images(5, 7)]))
    other = images(0, 7, seed=5)
    assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Churn(-1.0), "S_churn is -1.0, must be a finite number of at least 0"),
        (lambda: Churn(math.inf), "S_churn is inf"),
        (lambda: Churn(math.nan), "S_churn is nan"),
        (lambda: Churn(1.0, -0.1), "S_min is -0.1 and S_max inf: 0 <= S_min <= S_max must hold"),
        (lambda: Churn(1.0, 2.0, 1.0), "S_min is 2.0 and S_max 1.0"),
        (lambda: Churn(1.0, math.nan), "S_min is nan"),
        (lambda: Churn(1.0, 0.0, math.nan), "S_max nan"),
        (lambda: Churn(1.0, S_noise=0.0), "S_noise is 0.0, must be a finite number above 0"),
        (lambda: Churn(1.0, S_noise=math.nan), "S_noise is nan"),
        (lambda: integrate(denoiser, X, [2.0, 1.0], order=3), r"order is 3, must be 1 \(Euler\) or 2 \(Heun\)"),
        (lambda: integrate(denoiser, X, [2.0, 0.0, 0.0]), "noise level 1 is 0, must be a finite number above 0"),
        (lambda: integrate(denoiser, X, [2.0, -1.0]), "noise level 1 is -1, .*only the last may be 0"),
        (lambda: integrate(denoiser, X, [math.nan, 1.0]), "noise level 0 is nan"),
        (lambda: integrate(denoiser, X, [2.0, 1.0], churn=Churn(4.0)), "churn with S_churn = 4 needs noise"),
        (
            lambda: integrate(denoiser, X, [1.0, 2.0], churn=Churn(4.0), noise=lambda i: X),
            "noise level 0 is 1 and the next one 2: with churn they must descend",
        ),
        (
            lambda: integrate(denoiser, X, [2.0, 1.0], churn=Churn(4.0), noise=lambda i: X[:, :1]),
            r"the noise of step 0 has shape \[1, 1\], must be that of the state, \[1, 2\]",
        ),
    ],
)
def test_refusals(call: Callable[[], object], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
