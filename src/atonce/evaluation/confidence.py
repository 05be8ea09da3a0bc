"""A support vector classifier that says how sure it is: pairwise Platt sigmoids and pairwise coupling.

One sigmoid for each class against the rest, renormalised, is sure of pure noise about as often as of real digits. Coupled
pairs are not: far from every class all pairs are undecided, and so is the whole.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

from atonce.core.errors import InputError

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ConfidentClassifier:
    """RBF support vector machine, one against one, with probabilities.

    Attributes:
        svc: The fitted machine.
        slopes: Slope of each pair's sigmoid, [K (K - 1) / 2], pairs in the order (0, 1), (0, 2), ...
        offsets: Its offset.
        classes: Number of classes K.
    """

    svc: Any
    slopes: Array
    offsets: Array
    classes: int

    def probabilities(self, x: Array) -> Array:
        """Class probabilities [n, K] of inputs [n, D]."""
        decided = np.asarray(self.svc.decision_function(x)).reshape(len(x), -1)
        return couple(expit(self.slopes * decided + self.offsets), self.classes)


def fit_classifier(x: Array, y: NDArray[np.int64], folds: int = 5) -> ConfidentClassifier:
    """Fit the machine on everything and the sigmoids on decisions of machines that had not seen the item (Platt 1999).

    Args:
        x: Inputs [n, D].
        y: Class numbers [n], each of 0..K - 1 at least ``folds`` times, K at least 3.
        folds: Folds of the cross-validation; taken in the given order, so nothing is random.

    Returns:
        The classifier.

    Raises:
        InputError: A class has too few items.
    """
    counts = np.bincount(y)
    classes = len(counts)
    if classes < 3 or counts.min() < folds:
        raise InputError(f"the classifier needs at least 3 classes with {folds} items each, got counts {counts.tolist()}")
    gamma = 1.0 / (x.shape[1] * x.var())

    def fit(rows: Any) -> Any:
        return SVC(kernel="rbf", C=1.0, gamma=gamma, decision_function_shape="ovo").fit(x[rows], y[rows])

    unseen = np.empty((len(x), classes * (classes - 1) // 2))
    for rest, left_out in StratifiedKFold(folds).split(x, y):
        unseen[left_out] = fit(rest).decision_function(x[left_out])
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    sigmoids = []
    for column, (i, j) in enumerate(pairs):
        rows = (y == i) | (y == j)
        sigmoids.append(fit_sigmoid(unseen[rows, column], y[rows] == i))
    slopes, offsets = np.array(sigmoids).T
    return ConfidentClassifier(fit(slice(None)), slopes, offsets, classes)


def fit_sigmoid(decided: Array, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope a and offset b of p = 1 / (1 + exp(-(a d + b))), by maximum likelihood with Platt's smoothed targets.

    The targets are (n+ + 1)/(n+ + 2) and 1/(n- + 2) instead of 1 and 0 (Platt 1999, section 2.2), so the optimum is finite.

    Args:
        decided: Decision values [n].
        positive: Whether each item is of the first class [n].

    Returns:
        (a, b).
    """
    many, few = int(positive.sum()), int((~positive).sum())
    target = np.where(positive, (many + 1.0) / (many + 2.0), 1.0 / (few + 2.0))

    def loss(ab: Array) -> tuple[float, Array]:
        logit = ab[0] * decided + ab[1]
        error = expit(logit) - target
        return float((np.logaddexp(0.0, logit) - target * logit).sum()), np.array([error @ decided, error.sum()])

    start = np.array([0.0, np.log((many + 1.0) / (few + 1.0))])
    a, b = minimize(loss, start, jac=True, method="BFGS").x
    return float(a), float(b)


def couple(pairwise: Array, classes: int) -> Array:
    """Class probabilities from pairwise ones (Wu, Lin and Weng 2004, their second method, equation 21).

    Minimises the sum over i, j of (r_ji p_i - r_ij p_j)^2 with the p summing to 1: one bordered linear system for each item.

    Args:
        pairwise: r_ij for i < j, [n, K (K - 1) / 2].
        classes: K.

    Returns:
        Probabilities [n, K].
    """
    n = len(pairwise)
    r = np.zeros((n, classes, classes))
    i, j = np.triu_indices(classes, 1)
    clipped = np.clip(pairwise, 1e-7, 1 - 1e-7)
    r[:, i, j], r[:, j, i] = clipped, 1 - clipped
    system = np.ones((n, classes + 1, classes + 1))
    system[:, :classes, :classes] = -r * r.transpose(0, 2, 1)
    diagonal = np.arange(classes)
    system[:, diagonal, diagonal] = (r**2).sum(1)
    system[:, classes, classes] = 0.0
    right = np.zeros((n, classes + 1, 1))
    right[:, classes] = 1.0
    p = np.linalg.solve(system, right)[:, :classes, 0].clip(min=0.0)
    return np.asarray(p / p.sum(1, keepdims=True))
