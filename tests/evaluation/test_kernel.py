from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.kernel import kernel_metric, squared_mmd, subset


def draw(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_unbiased_on_equal_distributions_and_positive_on_others() -> None:
    """Over many pairs of small sets the mean is near 0 where they agree: the biased estimate would be about 0.5 off."""
    same = torch.tensor([squared_mmd(draw(20, 2 * s), draw(20, 2 * s + 1)) for s in range(300)])
    assert abs(float(same.mean())) < 4 * float(same.std()) / 300**0.5
    assert float(same.min()) < 0
    assert squared_mmd(draw(200, 0), draw(200, 1, 1.0)) > 1.0


@given(st.integers(0, 1000))
def test_symmetric(seed: int) -> None:
    x, y = draw(12, seed), draw(15, seed + 1, 0.3)
    assert squared_mmd(x, y) == pytest.approx(squared_mmd(y, x), rel=1e-9, abs=1e-12)


@given(st.permutations(range(12)), st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(order: list[int], seed: int) -> None:
    x, y = draw(12, seed), draw(15, seed + 1, 0.3)
    assert squared_mmd(x[torch.tensor(order)], y) == pytest.approx(squared_mmd(x, y), rel=1e-9, abs=1e-12)


def test_subsets_repeat_nothing_and_depend_on_the_arguments_alone() -> None:
    first = subset(100, 40, 7, 3, 0)
    assert len(set(first.tolist())) == 40
    assert torch.equal(first, subset(100, 40, 7, 3, 0))
    for other in (subset(100, 40, 8, 3, 0), subset(100, 40, 7, 4, 0), subset(100, 40, 7, 3, 1)):
        assert not torch.equal(first, other)


def test_the_interval_is_the_spread_of_new_draws() -> None:
    metrics = [kernel_metric(draw(160, 2 * s, 0.5), draw(160, 2 * s + 1), subsets=40, size=40, seed=s) for s in range(30)]
    values = torch.tensor([m.value for m in metrics])
    intervals = [m.interval for m in metrics if m.interval is not None]
    assert sum(low <= values.mean() <= high for low, high in intervals) >= 26
    half = sum(high - low for low, high in intervals) / 60
    assert half == pytest.approx(1.96 * float(values.std()), rel=0.35)


def test_small_sets_halve_the_subsets() -> None:
    assert "subsets of 15" in kernel_metric(draw(30, 0), draw(50, 1)).settings


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="at least 2 samples on each side, got 1 and 9"):
        squared_mmd(draw(1, 0), draw(9, 0))
    with pytest.raises(InputError, match="features must be"):
        squared_mmd(draw(5, 0), torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="at least 20, got 3"):
        kernel_metric(draw(9, 0), draw(9, 1), subsets=3)
    with pytest.raises(InputError, match="at least 4 samples on each side, got 3"):
        kernel_metric(draw(3, 0), draw(9, 1))
