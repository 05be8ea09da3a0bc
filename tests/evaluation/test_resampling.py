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
