from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, Moments, frechet_distance, frechet_metric
from atonce.evaluation.gather import block_of


def draw(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def statistics(x: Tensor, *cuts: int) -> FeatureStatistics:
    out = FeatureStatistics(x.shape[1])
    for part in x.tensor_split(list(cuts)):
        out.update(part)
    return out


def blocks(x: Tensor, k: int = BLOCKS) -> list[FeatureStatistics]:
    of = block_of(torch.arange(len(x)), k)
    return [statistics(x[of == i]) for i in range(k)]


def test_statistics_of_a_few_numbers() -> None:
    s = statistics(torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]]))
    assert s.count == 3
    assert s.mean().tolist() == [3.0, 1.0]
    assert s.covariance().tolist() == [[4.0, 3.0], [3.0, 3.0]]


@given(st.integers(2, 60), st.integers(1, 6), st.lists(st.integers(0, 60), max_size=5), st.sampled_from([0.0, 1.0, 1e6]))
def test_batches_do_not_matter(n: int, d: int, cuts: list[int], shift: float) -> None:
    x = draw(n, d, n * 7 + d, shift)
    s = statistics(x, *sorted(min(c, n) for c in cuts))
    exact = x - x[0]  # the same covariance, without the shift
    torch.testing.assert_close(s.covariance(), torch.cov(exact.T).reshape(d, d), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(s.mean(), exact.mean(0) + x[0], rtol=1e-12, atol=1e-12)


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_merging_in_any_order_agrees(order: list[int], seed: int) -> None:
    parts = [statistics(draw(5 + 3 * i, 4, seed + i, shift=100.0 * i)) for i in range(6)]
    left, right = FeatureStatistics(4), FeatureStatistics(4)
    for i in range(6):
        left = left.merge(parts[i])
        right = parts[order[i]].merge(right)
    assert left.count == right.count
    torch.testing.assert_close(left.mean(), right.mean(), rtol=1e-12, atol=0)
    assert float((left.covariance() - right.covariance()).norm() / left.covariance().norm()) < 1e-12


def test_merge_leaves_its_arguments_alone() -> None:
    a, b = statistics(draw(9, 3, 0)), statistics(draw(7, 3, 1))
    before = (a.count, a.mean(), a.covariance())
    a.merge(b)
    assert a.count == before[0]
    assert torch.equal(a.mean(), before[1])
    assert torch.equal(a.covariance(), before[2])


def test_taking_out_is_the_inverse_of_merging() -> None:
    a, b = statistics(draw(200, 3, 0, 50.0)), statistics(draw(9, 3, 1, 40.0))
    rest = a.merge(b).without(b)
    assert rest.count == a.count
    torch.testing.assert_close(rest.mean(), a.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(rest.covariance(), a.covariance(), rtol=1e-9, atol=1e-9)


def test_a_large_mean_does_not_cancel() -> None:
    x = draw(500, 3, 0)
    torch.testing.assert_close(statistics(x + 1e7, 100, 300).covariance(), torch.cov(x.T), rtol=1e-6, atol=1e-7)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_distance_is_symmetric_nonnegative_and_zero_on_equals(d: int, seed: int) -> None:
    a, b = statistics(draw(40, d, seed)), statistics(draw(30, d, seed + 1, 0.5, 2.0))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)


@given(st.floats(-5, 5), st.integers(0, 1000))
def test_a_shift_adds_its_square(shift: float, seed: int) -> None:
    x = draw(50, 3, seed)
    assert frechet_distance(statistics(x), statistics(x + shift)) == pytest.approx(3 * shift**2, rel=1e-7, abs=1e-9)


@given(st.floats(0.01, 100), st.permutations(range(40)), st.integers(0, 1000))
def test_scale_and_order(scale: float, order: list[int], seed: int) -> None:
    """The distance is of the squared unit of the features, and the order of the samples is nothing to it."""
    x, y = draw(40, 3, seed), draw(30, 3, seed + 1, 0.5, 2.0)
    distance = frechet_distance(statistics(x), statistics(y))
    turned = frechet_distance(statistics(scale * x[torch.tensor(order)]), statistics(scale * y))
    assert turned == pytest.approx(scale**2 * distance, rel=1e-8)


def test_the_interval_is_the_spread_of_new_draws() -> None:
    """Over 60 draws the jackknife's standard error is that of the values, within its own noise."""
    reference = Moments(torch.zeros(5, dtype=torch.float64), 1.2 * torch.eye(5, dtype=torch.float64))
    metrics = [frechet_metric(blocks(draw(500, 5, seed, 0.3)), reference) for seed in range(60)]
    values = torch.tensor([m.value for m in metrics])
    halves = torch.tensor([(m.interval[1] - m.interval[0]) / 2 for m in metrics if m.interval])
    assert len(halves) == 60
    assert float(halves.mean()) == pytest.approx(2.06 * float(values.std()), rel=0.3)
    inside = [m.interval is not None and m.interval[0] <= values.mean() <= m.interval[1] for m in metrics]
    assert sum(inside) >= 52
    assert all(m.interval and m.interval[0] <= m.value <= m.interval[1] for m in metrics)


def test_metric_equals_the_distance_of_the_whole() -> None:
    x, reference = draw(300, 4, 0), statistics(draw(400, 4, 1)).moments()
    assert frechet_metric(blocks(x), reference).value == pytest.approx(frechet_distance(statistics(x), reference), rel=1e-9)


def test_no_interval_from_too_few_samples() -> None:
    reference = statistics(draw(400, 2, 1)).moments()
    assert frechet_metric(blocks(draw(30, 2, 0)), reference).interval is None


def test_bad_input_is_named() -> None:
    s = FeatureStatistics(3)
    with pytest.raises(InputError, match=r"\[B, 3\], got \[4, 2\]"):
        s.update(torch.zeros(4, 2))
    with pytest.raises(InputError, match="not finite"):
        s.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(InputError, match="at least 2 samples, got 0"):
        s.covariance()
    with pytest.raises(InputError, match="3 and 2"):
        s.merge(FeatureStatistics(2))
    with pytest.raises(InputError, match="5 and 2 features"):
        frechet_distance(statistics(draw(9, 5, 0)), statistics(draw(9, 2, 0)))
    with pytest.raises(InputError, match=r"\[D, D\]"):
        Moments(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(InputError, match="not finite"):
        frechet_distance(Moments(torch.zeros(1), torch.full((1, 1), torch.nan)), Moments(torch.zeros(1), torch.ones(1, 1)))
