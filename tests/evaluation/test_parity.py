"""Metrics against implementations that others trust, on the same full-rank float64 features, subsets and splits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from atonce.core.streams import permutation
from atonce.evaluation.frechet import FeatureStatistics, Moments, frechet_distance
from atonce.evaluation.kernel import kernel_metric, squared_mmd, subset
from atonce.evaluation.manifold import precision_recall
from atonce.evaluation.score import score_metric, split_scores

TOLERANCE = 1e-6  # relative


def _trusted(module: str) -> Any:
    """A module of a trusted library; the test is skipped where it is not installed."""
    spec = importlib.util.spec_from_file_location("shim", Path(__file__).with_name("torchvision_shim.py"))
    assert spec is not None
    assert spec.loader is not None
    shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)
    package = module.split(".")[0]
    if package not in _PREPARED:
        shim.prepare(package)
        _PREPARED.append(package)
    return pytest.importorskip(module, reason=f"the package {package} is not installed: pip install 'atonce[fid]'")


_PREPARED: list[str] = []


@pytest.fixture(scope="module")
def fidelity() -> Callable[[str], Any]:
    """``fidelity("fid")`` is the module of that metric in torch-fidelity."""
    return lambda name: _trusted(f"torch_fidelity.metric_{name}")


@pytest.fixture(scope="module")
def torchmetrics() -> Callable[[str], Any]:
    return lambda name: _trusted(f"torchmetrics.image.{name}")


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    """Skewed, correlated, of full rank."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return (x + 0.3 * x**2) @ mixing + shift


def moments(x: Tensor) -> Moments:
    statistics = FeatureStatistics(x.shape[1])
    for part in x.split(97):
        statistics.update(part)
    return statistics.moments()


SIZES = [(64, 8), (260, 64), (1024, 256)]


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_frechet_equals_scipy(n: int, d: int) -> None:
    a, b = features(n, d, 0), features(n + 11, d, 1, 0.1)
    s1, s2 = np.cov(a.numpy().T), np.cov(b.numpy().T)
    overlap = np.trace(scipy.linalg.sqrtm(s1 @ s2).real)
    expected = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(s1) + np.trace(s2) - 2 * overlap
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_frechet_equals_torch_fidelity(fidelity: Callable[[str], Any], n: int, d: int) -> None:
    module = fidelity("fid")
    a, b = features(n, d, 2), features(n + 11, d, 3, 0.1)
    sides = [module.fid_features_to_statistics(side) for side in (a, b)]
    expected = module.fid_statistics_to_metric(*sides, False)[module.KEY_METRIC_FID]
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=TOLERANCE)


def test_frechet_equals_torchmetrics(torchmetrics: Callable[[str], Any]) -> None:
    module = torchmetrics("fid")
    a, b = features(260, 64, 4), features(300, 64, 5, 0.1)
    expected = float(module._compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T)))
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=TOLERANCE)


def test_kernel_distance_equals_torch_fidelity(fidelity: Callable[[str], Any]) -> None:
    module = fidelity("kid")
    x, y = features(260, 64, 0), features(260, 64, 1, 0.2)
    # One subset of everything: its order does not matter, so the choice is the same.
    whole = module.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=260, verbose=False)
    assert squared_mmd(x, y) == pytest.approx(whole[module.KEY_METRIC_KID_MEAN], rel=TOLERANCE)


def test_the_mean_over_subsets_equals_torch_fidelity(fidelity: Callable[[str], Any]) -> None:
    module = fidelity("kid")
    x, y = features(300, 16, 0), features(400, 16, 1, 0.2)
    mine = kernel_metric(x, y, subsets=20, size=100, seed=5)
    parts = [(x[subset(300, 100, 5, i, 0)], y[subset(400, 100, 5, i, 1)]) for i in range(20)]
    values = [module.kernel_mmd(a.numpy(), b.numpy(), kid_kernel="poly") for a, b in parts]
    assert mine.value == pytest.approx(float(np.mean(values)), rel=TOLERANCE)


def test_kernel_distance_equals_torchmetrics(torchmetrics: Callable[[str], Any]) -> None:
    module = torchmetrics("kid")
    x, y = features(128, 32, 0), features(128, 32, 1, 0.2)
    assert squared_mmd(x, y) == pytest.approx(float(module.poly_mmd(x, y)), rel=TOLERANCE)


@pytest.mark.parametrize(("n", "splits"), [(4, 1), (1003, 10)])
def test_inception_score_equals_torch_fidelity(fidelity: Callable[[str], Any], n: int, splits: int) -> None:
    module = fidelity("isc")
    logits = 3 * features(n, 40, 0)
    expected = module.isc_features_to_metric(logits, splits=splits, shuffle=False)[module.KEY_METRIC_ISC_MEAN]
    assert float(np.mean(split_scores(logits.softmax(1), splits))) == pytest.approx(expected, rel=TOLERANCE)


def test_the_score_of_shuffled_splits_equals_torch_fidelity(fidelity: Callable[[str], Any]) -> None:
    module = fidelity("isc")
    logits = 3 * features(500, 20, 1)
    order = permutation(7, (1 << 24) - 2, 500)
    expected = module.isc_features_to_metric(logits[order], splits=10, shuffle=False)
    mine = score_metric(logits.softmax(1), seed=7)
    assert mine.value == pytest.approx(expected[module.KEY_METRIC_ISC_MEAN], rel=TOLERANCE)
    assert mine.interval is not None
    # 2.262157: Student's 97.5 % point of 9 degrees of freedom; their deviation divides by the number of splits.
    half = 2.2621571628 * expected[module.KEY_METRIC_ISC_STD] / 3
    assert mine.interval[1] - mine.value == pytest.approx(half, rel=TOLERANCE)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("save_memory", [False, True])
def test_precision_and_recall_equal_torch_fidelity(fidelity: Callable[[str], Any], k: int, save_memory: bool) -> None:
    module = fidelity("prc")
    x, y = features(260, 8, 0, 0.6), features(240, 8, 1)
    theirs = module.prc_features_to_metric(x, y, prc_neighborhood=k, save_cpu_ram=save_memory, verbose=False)
    mine = precision_recall(x, y, k=k)
    assert mine["precision"].value == pytest.approx(theirs["precision"], rel=TOLERANCE)
    assert mine["recall"].value == pytest.approx(theirs["recall"], rel=TOLERANCE)
    assert 0.1 < mine["precision"].value < 0.99  # a case where the numbers say something
