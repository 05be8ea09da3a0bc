"""Fidelity and variety apart: precision and recall, density and coverage over k-nearest-neighbour manifolds."""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.core.records import Metric
from atonce.evaluation.neighbours import distance_blocks, radii
from atonce.evaluation.resampling import mean_metric


def inside(x: Tensor, y: Tensor, y_radii: Tensor) -> Tensor:
    """Which rows of ``x`` [n, D] lie within the radius [m] of any row of ``y`` [m, D], border included: bool [n]."""
    return torch.cat([(block <= y_radii[None, :]).any(1) for _, block in distance_blocks(x, y)])


def precision_recall(samples: Tensor, reference: Tensor, *, k: int = 3, seed: int = 0) -> dict[str, Metric]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2; k = 3 as there).

    Precision is the share of samples inside the manifold of the reference (the union of balls that reach from each item to its
    k-th nearest other item), recall the share of the reference inside the manifold of the samples. Intervals: bootstrap over
    the items whose membership is averaged, the manifolds held fixed.

    Args:
        samples: Features [n, D], n > k.
        reference: Features [m, D], m > k; take as many as there are samples to follow the paper.
        k: Neighbours that span the manifold.
        seed: Of the resampling.

    Returns:
        ``precision`` and ``recall``.
    """
    precision = inside(samples, reference, radii(reference, k))
    recall = inside(reference, samples, radii(samples, k))
    settings = f"k={k}, {samples.shape[0]} against {reference.shape[0]}"
    return {
        "precision": mean_metric(precision, seed, 2, settings),
        "recall": mean_metric(recall, seed, 3, settings),
    }


def density_coverage(samples: Tensor, reference: Tensor, *, k: int = 5, seed: int = 0) -> dict[str, Metric]:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5; k = 5 as there).

    Density counts for each sample how many balls of the reference it lies in, over k: 1 in expectation where the distributions
    agree, and it may exceed 1. Coverage is the share of the reference's balls that hold a sample. Intervals as in
    :func:`precision_recall`.

    Args:
        samples: Features [n, D].
        reference: Features [m, D], m > k.
        k: Neighbours that span the manifold.
        seed: Of the resampling.

    Returns:
        ``density`` and ``coverage``.
    """
    reach = radii(reference, k)
    depth, closest = [], torch.full((reference.shape[0],), torch.inf, dtype=torch.float64)
    for _, block in distance_blocks(samples, reference):
        depth.append((block < reach[None, :]).sum(1).to(torch.float64) / k)
        closest = torch.minimum(closest, block.min(0).values)
    settings = f"k={k}, {samples.shape[0]} against {reference.shape[0]}"
    return {
        "density": mean_metric(torch.cat(depth), seed, 4, settings, unit="mean count"),
        "coverage": mean_metric(closest < reach, seed, 5, settings),
    }
