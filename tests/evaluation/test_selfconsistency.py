from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.evaluation.selfconsistency import consistency_gap, gap_metrics, gap_norms

GRID = [0.002, 0.1, 1.0, 10.0, 80.0]


def data(n: int = 64) -> Tensor:
    return 0.5 * torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_identity_moves_by_the_noise() -> None:
    """f(x) = x: the gap is (σ_{i+1} - σ_i) E|z|, and |z| has mean √2 Γ(19/2)/Γ(9) in 18 dimensions."""
    gap = consistency_gap(lambda x, sigma: x, data(4000), GRID)
    length = math.sqrt(2) * math.gamma(9.5) / math.gamma(9)
    expected = [(high - low) * length for low, high in zip(GRID, GRID[1:])]
    assert gap.gaps == pytest.approx(expected, rel=0.01)
    for value, truth, error in zip(gap.gaps, expected, gap.errors, strict=True):
        assert abs(value - truth) < 4 * error


def test_a_constant_answer_has_no_gap() -> None:
    assert consistency_gap(lambda x, sigma: torch.zeros_like(x), data(), GRID).gaps == (0.0,) * 4


def test_the_exact_function_on_gaussian_data() -> None:
    """f = a(σ) x with a = √((s²+ε²)/(s²+σ²)): the gap is |(a'-a) y + (a'σ' - aσ) z|, computed here in the open."""
    a = lambda sigma: math.sqrt((0.25 + 0.002**2) / (0.25 + sigma**2))
    y = data(50)
    gap = consistency_gap(lambda x, sigma: a(sigma) * x, y, GRID, seed=5)
    z = normal(5, torch.arange(50), (2, 3, 3), Stream.EVALUATE).double()
    for i, (low, high) in enumerate(zip(GRID, GRID[1:])):
        vector = (a(high) - a(low)) * y + (a(high) * high - a(low) * low) * z
        assert gap.gaps[i] == pytest.approx(float(vector.flatten(1).norm(dim=1).mean()), rel=1e-9)
    assert gap.samples == 50


def test_a_finer_grid_has_smaller_gaps() -> None:
    a = lambda sigma: math.sqrt(0.25 / (0.25 + sigma**2))
    widest = [
        max(consistency_gap(lambda x, s: a(s) * x, data(), torch.linspace(0.1, 3, count).tolist()).gaps) for count in (5, 9, 17)
    ]
    assert widest[0] > 1.4 * widest[1] > 1.4 * 1.4 * widest[2]


def test_batches_and_shards_do_not_matter() -> None:
    f = lambda x, sigma: torch.tanh(x / (1 + sigma))
    whole = consistency_gap(f, data(), GRID)
    assert consistency_gap(f, data(), GRID, batch=7).gaps == pytest.approx(whole.gaps, rel=1e-12)
    parts = [consistency_gap(f, data()[rows], GRID, first=rows.start) for rows in (slice(0, 20), slice(20, 64))]
    joined = [(20 * one + 44 * other) / 64 for one, other in zip(parts[0].gaps, parts[1].gaps)]
    assert joined == pytest.approx(whole.gaps, rel=1e-12)
    assert consistency_gap(f, data(), GRID, seed=1).gaps != whole.gaps


@pytest.mark.parametrize("grid", [[1.0], [1.0, 0.5], [0.0, 1.0], [1.0, 1.0]])
def test_a_bad_grid_is_named(grid: list[float]) -> None:
    with pytest.raises(InputError, match="ascending"):
        consistency_gap(lambda x, sigma: x, data(), grid)


def test_bad_data_are_named() -> None:
    with pytest.raises(InputError, match="uint8"):
        consistency_gap(lambda x, sigma: x, torch.zeros(4, 1, 2, 2, dtype=torch.uint8), GRID)


def test_the_gap_as_metrics() -> None:
    f = lambda x, sigma: torch.tanh(x / (1 + sigma))
    norms = gap_norms(f, data(), GRID)
    curve = consistency_gap(f, data(), GRID)
    assert norms.mean(0).tolist() == pytest.approx(curve.gaps)
    found, note = gap_metrics(norms, 18, GRID)
    mean, largest = found["consistency_gap"], found["consistency_gap_largest"]
    assert mean.value == pytest.approx(sum(curve.gaps) / 4 / 18**0.5)
    assert largest.value == pytest.approx(max(curve.gaps) / 18**0.5)
    place = curve.gaps.index(max(curve.gaps))
    assert note == f"the consistency gap is largest between sigma {GRID[place]:.3g} and {GRID[place + 1]:.3g}"
    assert mean.interval is not None
    assert mean.interval[0] < mean.value < mean.interval[1]
    assert (mean.count, mean.settings) == (64, "4 intervals from 0.002 to 80")
