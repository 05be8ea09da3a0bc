from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.evaluation.resampling import (
    RESAMPLES,
    jackknife_error,
    jackknife_interval,
    mean_metric,
    percentile_interval,
    resamples,
    wilson_interval,
)


def test_resamples_depend_on_their_arguments_alone_and_repeat_items() -> None:
    drawn = list(resamples(50, 3, 1))
    assert len(drawn) == RESAMPLES
    assert all(torch.equal(a, b) for a, b in zip(drawn, resamples(50, 3, 1), strict=True))
    assert all(int(rows.min()) >= 0 and int(rows.max()) < 50 for rows in drawn)
    assert len(drawn[0].unique()) < 45  # about 32 of 50
    for other in (resamples(50, 4, 1), resamples(50, 3, 2), resamples(50, 3, 1, first=200)):
        assert not torch.equal(drawn[0], next(other))


@given(st.integers(2, 40), st.floats(-3, 3), st.floats(0.1, 10))
def test_the_jackknife_of_a_mean_is_its_standard_error(n: int, shift: float, scale: float) -> None:
    """For the mean the jackknife is exact: s / sqrt(n), whatever is added and times the scale."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * scale + shift
    left_out = [float((x.sum() - each) / (n - 1)) for each in x]
    assert jackknife_error(left_out) == pytest.approx(float(x.std()) / n**0.5, rel=1e-6)


def test_the_jackknife_interval_uses_students_point_and_its_floor() -> None:
    left_out = [0.0, 2.0] * 5
    half = 2.2621571628 * jackknife_error(left_out)
    assert jackknife_interval(1.0, left_out) == pytest.approx((1.0 - half, 1.0 + half))
    assert jackknife_interval(1.0, left_out, 0.0)[0] == 0.0


def test_quantiles() -> None:
    assert percentile_interval([float(i) for i in range(1001)]) == pytest.approx((25.0, 975.0))


def test_the_bootstrap_of_a_mean_has_the_width_of_its_standard_error() -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = mean_metric(x, 0, 0, count=7)
    assert metric.interval is not None
    assert metric.count == 7
    assert metric.interval[1] - metric.interval[0] == pytest.approx(2 * 1.96 * float(x.std()) / 20, rel=0.2)


def test_wilsons_interval() -> None:
    """Known values: 0 of 10, 5 of 10 and 81 of 263 (Newcombe 1998, table I, method 3)."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_has_a_width(pair: tuple[int, int]) -> None:
    low, high = wilson_interval(*pair)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1
    assert high - low > 0
    mirrored = wilson_interval(pair[1] - pair[0], pair[1])
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_items_that_are_all_alike_are_not_certain() -> None:
    metric = mean_metric(torch.ones(6, dtype=torch.bool), 0, 2)
    assert metric.value == 1.0
    assert metric.interval == pytest.approx((0.60967, 1.0), abs=1e-5)
    assert mean_metric(torch.zeros(6), 0, 2).interval == pytest.approx((0.0, 0.39033), abs=1e-5)
    assert mean_metric(torch.zeros(6), 0, 2, unit="mean count").interval is None
    assert mean_metric(torch.full((6,), 0.3), 0, 2).interval is None  # no share of items
