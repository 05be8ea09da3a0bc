from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation import neighbours
from atonce.evaluation.manifold import density_coverage, precision_recall
from atonce.evaluation.resampling import mean_metric


def draw(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_by_hand_on_a_line() -> None:
    """Reference 0, 1, 3 with k = 1: balls of radius 1, 1, 2. Samples 0.5, 4.9, 9, 9.5: radii 4.4, 4.1, 0.5, 0.5."""
    got = precision_recall(line(0.5, 4.9, 9.0, 9.5), line(0.0, 1.0, 3.0), k=1)
    assert got["precision"].value == 0.5  # 0.5 and 4.9 (in the ball of 3)
    assert got["recall"].value == 1.0
    got = density_coverage(line(0.5, 4.9, 9.0, 9.5), line(0.0, 1.0, 3.0), k=1)
    assert got["density"].value == pytest.approx((2 + 1) / 4)  # 0.5 lies in the balls of 0 and 1, 4.9 in that of 3
    assert got["coverage"].value == 1.0


def test_the_border_counts_for_precision_and_not_for_density() -> None:
    """Sample 5 lies exactly on the border of the ball of 3 (the reference has mean 0, so the arithmetic is exact)."""
    assert precision_recall(line(5.0, 50.0), line(-4.0, 0.0, 1.0, 3.0), k=1)["precision"].value == 0.5
    assert density_coverage(line(5.0, 50.0), line(-4.0, 0.0, 1.0, 3.0), k=1)["density"].value == 0.0


def test_equal_sets_and_distant_sets() -> None:
    x = draw(100, 0)
    for metric in (precision_recall(x, x) | density_coverage(x, x)).values():
        assert metric.value >= 0.9
    for metric in (precision_recall(x, x + 100) | density_coverage(x, x + 100)).values():
        assert metric.value == 0.0


def test_one_mode_has_precision_without_recall() -> None:
    two_modes = torch.cat([draw(100, 0), draw(100, 1, 50.0)])
    one_mode = draw(200, 2)
    got = precision_recall(one_mode, two_modes) | density_coverage(one_mode, two_modes)
    assert got["precision"].value > 0.85
    assert got["recall"].value == pytest.approx(0.5, abs=0.08)
    assert got["coverage"].value == pytest.approx(0.5, abs=0.08)


def test_density_is_one_for_equal_distributions() -> None:
    assert density_coverage(draw(1500, 0), draw(1500, 1))["density"].value == pytest.approx(1.0, abs=0.08)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(53, 0, 0.5), draw(47, 1)
    whole = precision_recall(x, y) | density_coverage(x, y)
    monkeypatch.setattr(neighbours, "CHUNK_VALUES", 100)
    assert precision_recall(x, y) | density_coverage(x, y) == whole


def test_the_interval_is_that_of_a_share() -> None:
    """300 of 1000: the binomial 95 % interval is 0.3 ± 0.0284."""
    metric = mean_metric(torch.arange(1000) < 300, seed=0, step=2)
    assert metric.interval is not None
    assert metric.interval == pytest.approx((0.2716, 0.3284), abs=0.006)
    assert metric == mean_metric(torch.arange(1000) < 300, seed=0, step=2)


def test_k_must_fit() -> None:
    with pytest.raises(InputError, match=r"between 1 and the number of samples minus one \(2\), got 3"):
        precision_recall(draw(9, 0), draw(3, 1))


@given(st.floats(0.01, 100), st.permutations(range(40)), st.integers(0, 1000))
def test_scale_and_order(scale: float, order: list[int], seed: int) -> None:
    """Neither the unit of the features nor the order of the samples matters."""
    x, y = (torch.randn(40, 3, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64) for i in (0, 1))
    rows = torch.tensor(order)
    one = precision_recall(x, y) | density_coverage(x, y)
    other = precision_recall(scale * x[rows], scale * y) | density_coverage(scale * x[rows], scale * y)
    assert {k: m.value for k, m in other.items()} == pytest.approx({k: m.value for k, m in one.items()}, rel=1e-9)
