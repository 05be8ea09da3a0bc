"""Curricula and decay rates: both published forms, exact steps of the staircases, and their ranges."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.noise.curricula import (
    decay_half_life,
    ect_r,
    ect_stage,
    half_life_to_decay,
    ict_stages,
    mu_ct,
    n_ct,
    n_ict,
)


@given(data=st.data(), s0=st.integers(2, 30), extra=st.integers(0, 400), K=st.integers(1, 10**9))
def test_n_ct_is_the_exact_ceiling(data: st.DataObject, s0: int, extra: int, K: int) -> None:
    s1 = s0 + extra
    k = data.draw(st.integers(0, K))
    n = n_ct(k, K, s0, s1)
    # N is the least whole number whose square reaches the radicand (in whole numbers, with no rounding).
    radicand = Fraction(k, K) * ((s1 + 1) ** 2 - s0**2) + s0**2
    assert n**2 >= radicand > (n - 1) ** 2
    assert n_ct(0, K, s0, s1) == s0
    assert n_ct(K, K, s0, s1) == s1 + 1
    assert n_ct(K + data.draw(st.integers(0, 10**6)), K, s0, s1) == s1 + 1


def test_n_ct_rises_through_every_number() -> None:
    values = [n_ct(k, 20_000, 2, 150) for k in range(20_001)]
    assert values == sorted(values)
    assert set(values) == set(range(2, 152))


def test_the_two_forms_of_mu_differ_where_it_matters() -> None:
    assert mu_ct(0, 800_000, 2, 150, 0.9, form="paper") == pytest.approx(0.9, abs=1e-15)
    assert mu_ct(0, 800_000, 2, 150, 0.9, form="code") == pytest.approx(0.81, abs=1e-15)
    assert mu_ct(0, 800_000, 2, 150, 0.9) == mu_ct(0, 800_000, 2, 150, 0.9, form="code")
    for k in (0, 1, 10_000, 800_000):
        assert mu_ct(k, 800_000, 2, 150, 0.9, "code") < mu_ct(k, 800_000, 2, 150, 0.9, "paper") < 1


@given(s0=st.integers(1, 40), doublings=st.integers(0, 12), K=st.integers(1, 10**7), data=st.data())
def test_n_ict_doubles_in_equal_stages_and_ends_at_s1(s0: int, doublings: int, K: int, data: st.DataObject) -> None:
    s1 = s0 * 2**doublings
    stages = doublings + 1
    if stages > K:
        with pytest.raises(InputError, match="shorter than its"):
            n_ict(0, K, s0, s1)
        return
    length = K // stages
    k = data.draw(st.integers(0, K - 1))
    assert n_ict(k, K, s0, s1) == min(s0 * 2 ** (k // length), s1) + 1
    assert n_ict(K - 1, K, s0, s1) == n_ict(K, K, s0, s1) == n_ict(10 * K, K, s0, s1) == s1 + 1
    assert ict_stages(K, s0, s1) == [(i * length, s0 * 2**i + 1) for i in range(stages)]


@given(s0=st.integers(1, 40), extra=st.integers(0, 3000), K=st.integers(20, 10**6), data=st.data())
def test_ict_stages_are_where_n_ict_steps(s0: int, extra: int, K: int, data: st.DataObject) -> None:
    s1 = s0 + extra
    stages = ict_stages(K, s0, s1)
    assert stages[0] == (0, s0 + 1)
    assert all(a[0] < b[0] < K and a[1] < b[1] <= s1 + 1 for a, b in zip(stages, stages[1:], strict=False))
    k = data.draw(st.integers(0, K - 1))
    assert n_ict(k, K, s0, s1) == [points for first, points in stages if first <= k][-1]
    assert n_ict(K, K, s0, s1) == s1 + 1


def test_stage_length_is_rounded_down() -> None:
    # 12345 / 8 = 1543.1: rounding up would put every boundary later, rounding to a fraction would leave whole numbers.
    assert (n_ict(1542, 12_345), n_ict(1543, 12_345)) == (11, 21)
    assert (n_ict(7 * 1543 - 1, 12_345), n_ict(7 * 1543, 12_345)) == (641, 1281)
    # 1023 / 8 = 127.9: rounding to the nearest would give 128.
    assert (n_ict(126, 1023), n_ict(127, 1023)) == (11, 21)
    # A ratio that is no power of two: log2(100) + 1 = 7.64 stages, the last one capped at s1.
    length = math.floor(100_000 / (math.log2(100) + 1))
    assert ict_stages(100_000, 10, 1000) == [(i * length, min(10 * 2**i, 1000) + 1) for i in range(8)]


def test_shortest_possible_curriculum() -> None:
    assert [n_ict(k, 8) for k in range(9)] == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    with pytest.raises(InputError, match="8 stages"):
        n_ict(0, 7)
    with pytest.raises(InputError, match="8 stages"):
        ict_stages(7)


@pytest.mark.parametrize(("seen", "stage"), [(0, 0), (3_199_999, 0), (3_200_000, 1), (25_599_999, 7), (25_600_000, 8)])
def test_ect_stage_counts_whole_stages(seen: int, stage: int) -> None:
    assert ect_stage(seen, 3_200_000) == stage


@given(
    t=st.floats(1e-4, 200.0),
    stage=st.integers(0, 10),
    q=st.floats(1.5, 16.0),
    k=st.floats(0.0, 20.0),
    b=st.floats(0.0, 5.0),
)
def test_ect_r_stays_between_zero_and_t_and_rises_with_the_stage(t: float, stage: int, q: float, k: float, b: float) -> None:
    level = torch.tensor([t], dtype=torch.float64)
    now, later = float(ect_r(level, stage, q, k, b)), float(ect_r(level, stage + 1, q, k, b))
    assert 0 <= now < t
    assert now <= later < t
    n = 1 + k * math.exp(-b * t) / (1 + math.exp(-b * t))
    assert now == pytest.approx(max(0.0, t - t * n / q ** (stage + 1)), rel=1e-9, abs=1e-12)


def test_ect_r_is_exactly_zero_below_the_threshold() -> None:
    # n(t) = q^(stage + 1): ln 7 at stage 0 and ln(5/3) at stage 1; above zero everywhere from stage 2 (n < 1 + k/2 = 5 < 8).
    for stage, threshold in ((0, math.log(7)), (1, math.log(5 / 3))):
        edge = torch.tensor([threshold * (1 - 1e-9), threshold * (1 + 1e-9)], dtype=torch.float64)
        r = ect_r(edge, stage)
        assert r[0] == 0
        assert 0 < r[1] < 1e-6
    assert bool((ect_r(torch.logspace(-5, 3, 100, dtype=torch.float64), 2) > 0).all())


def test_ect_r_keeps_shape_and_works_in_double() -> None:
    r = ect_r(torch.full((2, 3), 5.0), 7)
    assert r.shape == (2, 3)
    assert r.dtype == torch.float64
    assert bool((r < 5).all())


def test_half_life_and_decay_are_inverse() -> None:
    assert decay_half_life(half_life_to_decay(512, 500_000)) * 512 == pytest.approx(500_000)
    # Doubling the batch squares the decay.
    assert half_life_to_decay(256, 1e5) == pytest.approx(half_life_to_decay(128, 1e5) ** 2)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: n_ct(0, 0, 2, 150), "length K"),
        (lambda: n_ct(-1, 10, 2, 150), "counter k"),
        (lambda: n_ct(0, 10, 1, 150), "s0 is 1"),
        (lambda: n_ct(0, 10, 5, 4), "s1 is 4"),
        (lambda: n_ict(0, 10, 5, 4), "s1 is 4"),
        (lambda: n_ict(0, 10, 0, 4), "s0 is 0"),
        (lambda: n_ict(-5, 100), "counter k"),
        (lambda: ict_stages(100, 8, 4), "s1 is 4"),
        (lambda: mu_ct(0, 10, 2, 5, 1.0), "mu0"),
        (lambda: mu_ct(0, 10, 2, 5, 0.0), "mu0"),
        (lambda: mu_ct(0, 10, 2, 5, 0.9, form="other"), "form"),  # type: ignore[arg-type]
        (lambda: ect_stage(-1, 10), "images_seen"),
        (lambda: ect_stage(1, 0), "images_per_stage"),
        (lambda: ect_r(torch.ones(1), -1), "stage"),
        (lambda: ect_r(torch.ones(1), 0, q=1.0), "q is"),
        (lambda: ect_r(torch.ones(1), 0, k=-1.0), "k = -1"),
        (lambda: ect_r(torch.ones(1), 0, b=math.nan), "b = nan"),
        (lambda: ect_r(torch.ones(1), 60), "collapses"),
        (lambda: ect_r(torch.ones(1), 10**6), "collapses"),
        (lambda: half_life_to_decay(0, 100), "batch"),
        (lambda: half_life_to_decay(1, 0), "half-life"),
        (lambda: decay_half_life(1.0), "decay"),
        (lambda: decay_half_life(0.0), "decay"),
    ],
)
def test_bad_values_are_named(call: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        call()  # type: ignore[operator]


def test_ratio_of_the_ends_is_rounded_down() -> None:
    # s1/s0 = 1.9 counts as 1: one stage as long as the whole, so s1 comes only at the end. The unrounded ratio would give
    # log2(1.9) + 1 = 1.93 stages and move it to the middle.
    assert [n_ict(k, 100, 10, 19) for k in (0, 51, 52, 99, 100)] == [11, 11, 11, 11, 20]
    assert ict_stages(100, 10, 19) == [(0, 11)]
