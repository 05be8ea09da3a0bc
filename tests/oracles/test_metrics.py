"""Metrics against published vectors and independent implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel as sklearn_kernel
from sklearn.neighbors import NearestNeighbors

from atonce.evaluation.frechet import FeatureStatistics, Moments, frechet_distance
from atonce.evaluation.kernel import kernel_metric, squared_mmd, subset
from atonce.evaluation.manifold import density_coverage, precision_recall
from atonce.evaluation.score import split_scores


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return (x + 0.3 * x**2) @ mixing + shift


def moments(x: torch.Tensor) -> Moments:
    statistics = FeatureStatistics(x.shape[1])
    statistics.update(x)
    return statistics.moments()


def tensor(rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_frechet_vectors() -> None:
    other = Moments(tensor([1.0, 2.0]), tensor([[2.0, 0.5], [0.5, 1.0]]))
    standard = Moments(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert frechet_distance(standard, other) == pytest.approx(5.247842043, abs=1e-9)
    skewed = Moments(torch.zeros(2, dtype=torch.float64), tensor([[1.5, 0.2], [0.2, 0.8]]))
    assert frechet_distance(skewed, other) == pytest.approx(5.065666663, abs=1e-9)


def test_frechet_of_diagonal_gaussians_in_closed_form() -> None:
    a, b = tensor([0.1, 2.0, 5.0]), tensor([3.0, 0.5, 1.0])
    zero = torch.zeros(3, dtype=torch.float64)
    expected = float((a.sqrt() - b.sqrt()).square().sum()) + 3 * 0.25
    assert frechet_distance(Moments(zero, a.diag()), Moments(zero + 0.5, b.diag())) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(200, 5), (400, 64), (1200, 300)])
def test_frechet_equals_scipy(n: int, d: int) -> None:
    a, b = features(n, d, 0), features(n + 17, d, 1, 0.1)
    s1, s2 = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_directions_without_variance() -> None:
    """Constant features, and fewer samples than features: the distance is that of the subspace that varies."""
    a, b = features(300, 6, 0), features(300, 6, 1)
    wide = lambda x: torch.cat([x, torch.full((300, 4), 0.7, dtype=torch.float64)], 1) @ rotation
    rotation = torch.linalg.qr(features(10, 10, 5)).Q
    assert frechet_distance(moments(wide(a)), moments(wide(b))) == pytest.approx(
        frechet_distance(moments(a), moments(b)), rel=1e-9
    )
    few = features(20, 50, 3)
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0.0, abs=1e-10)


def test_kernel_vector() -> None:
    x, y = tensor([[0, 1], [1, 0], [2, 1]]), tensor([[1, 1], [0, 0], [1, 2]])
    assert squared_mmd(x, y) == pytest.approx(-4.1666666667, abs=1e-9)


def test_kernel_equals_sklearn_kernel_and_sums_by_hand() -> None:
    x, y = features(60, 16, 0), features(75, 16, 1, 0.2)
    k = lambda a, b: sklearn_kernel(a.numpy(), b.numpy(), degree=3, gamma=1 / 16, coef0=1)
    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    off = lambda m: sum(m[i, j] for i, j in itertools.permutations(range(len(m)), 2)) / (len(m) * (len(m) - 1))
    assert squared_mmd(x, y) == pytest.approx(off(xx) + off(yy) - 2 * xy.mean(), rel=1e-9)


def test_kernel_metric_is_the_mean_over_its_subsets() -> None:
    x, y = features(300, 8, 0), features(400, 8, 1)
    got = kernel_metric(x, y, subsets=20, size=50, seed=4)
    values = [squared_mmd(x[subset(300, 50, 4, i, 0)], y[subset(400, 50, 4, i, 1)]) for i in range(20)]
    assert got.value == pytest.approx(float(np.mean(values)), rel=1e-12)


def reference_manifold(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage by neighbour searches of scikit-learn, item by item."""

    def reach(a: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1).fit(a).kneighbors(a)[0][:, k]

    distances = np.linalg.norm(x[:, None] - y[None], axis=2)
    return {
        "precision": float((distances <= reach(y)[None]).any(1).mean()),
        "recall": float((reach(x)[None] >= distances.T).any(1).mean()),
        "density": float((distances < reach(y)[None]).sum(1).mean() / k),
        "coverage": float((distances.min(0) < reach(y)).mean()),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_equal_a_plain_neighbour_search(k: int) -> None:
    x, y = features(210, 6, 0, 0.4), features(190, 6, 1)
    expected = reference_manifold(x.numpy(), y.numpy(), k)
    got = precision_recall(x, y, k=k) | density_coverage(x, y, k=k)
    assert {name: metric.value for name, metric in got.items()} == pytest.approx(expected, rel=1e-12)
    assert 0.1 < expected["precision"] < 1  # a case where the numbers are not trivial


def test_inception_score_vector() -> None:
    p = tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.25, 0.5, 0.25]])
    assert split_scores(p, 1) == [pytest.approx(1.2467337681, abs=1e-10)]
