from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.svm import SVC

from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.evaluation.confidence import couple, fit_classifier, fit_sigmoid
from atonce.evaluation.digits import CONFIDENT, confidence_judge


def test_coupling_gives_back_consistent_probabilities() -> None:
    """Where r_ij = p_i / (p_i + p_j), the probabilities are p exactly."""
    p = np.random.default_rng(0).dirichlet(np.ones(6), size=50)
    i, j = np.triu_indices(6, 1)
    np.testing.assert_allclose(couple(p[:, i] / (p[:, i] + p[:, j]), 6), p, atol=1e-9)


def test_undecided_pairs_give_undecided_probabilities() -> None:
    np.testing.assert_allclose(couple(np.full((1, 45), 0.5), 10), np.full((1, 10), 0.1), atol=1e-12)


def test_sigmoid_is_recovered() -> None:
    rng = np.random.default_rng(1)
    decided = rng.normal(size=200_000)
    slope, offset = fit_sigmoid(decided, rng.uniform(size=decided.size) < expit(2.5 * decided - 0.7))
    assert (slope, offset) == pytest.approx((2.5, -0.7), abs=0.05)


def test_separable_decisions_keep_a_finite_slope() -> None:
    slope, _ = fit_sigmoid(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True]))
    assert 0 < slope < 10


def noise(n: int = 300) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(n, 64)).clip(-1, 1)


def test_the_judge_knows_digits_and_is_not_sure_of_noise() -> None:
    held_out = open_data("digits", split="test")
    x = held_out.images.double().flatten(1).numpy() / 127.5 - 1
    probabilities = confidence_judge(strict=True)(x)
    assert held_out.labels is not None
    assert (probabilities.argmax(1) == held_out.labels.numpy()).mean() > 0.97
    assert (probabilities.max(1) > CONFIDENT).mean() > 0.8
    assert (confidence_judge(strict=True)(noise()).max(1) > CONFIDENT).mean() < 0.02
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)


@pytest.mark.skipif("probability" not in inspect.signature(SVC).parameters, reason="this scikit-learn has no SVC(probability=)")
def test_agrees_with_libsvm() -> None:
    train, test = (open_data("digits", split=split) for split in ("train", "test"))
    assert train.labels is not None
    x, z = (data.images.double().flatten(1).numpy() / 127.5 - 1 for data in (train, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = SVC(probability=True, random_state=0).fit(x, train.labels.numpy())
    for inputs in (z, (z + z[::-1]) / 2, noise()):
        a, b = theirs.predict_proba(inputs), confidence_judge(strict=True)(inputs)
        assert abs(a - b).mean() < 0.006
        assert (a.max(1) > CONFIDENT).mean() == pytest.approx((b.max(1) > CONFIDENT).mean(), abs=0.02)


def test_a_class_with_too_few_items_is_named() -> None:
    with pytest.raises(InputError, match=r"counts \[6, 6, 2\]"):
        fit_classifier(np.random.default_rng(0).normal(size=(14, 2)), np.repeat([0, 1, 2], [6, 6, 2]))
