from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.score import score_metric, split_scores


def draw(n: int, k: int, seed: int, sharpness: float = 2.0) -> Tensor:
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * logits).softmax(1)


def test_the_ends_of_the_scale() -> None:
    sure_and_varied = torch.eye(5, dtype=torch.float64).repeat(8, 1)
    assert split_scores(sure_and_varied, 1) == [pytest.approx(5.0, rel=1e-12)]
    always_the_same = torch.tensor([[1.0, 0.0, 0.0]]).expand(40, 3)
    unsure = torch.full((40, 3), 1 / 3, dtype=torch.float64)
    assert split_scores(always_the_same, 4) == pytest.approx([1.0] * 4)
    assert split_scores(unsure, 4) == pytest.approx([1.0] * 4)


def test_classes_that_never_occur_do_not_disturb() -> None:
    p = draw(60, 3, 0)
    wider = torch.cat([p, torch.zeros(60, 4, dtype=torch.float64)], 1)
    assert split_scores(wider, 3) == pytest.approx(split_scores(p, 3), rel=1e-12)


@given(st.integers(2, 60), st.integers(2, 8), st.integers(0, 1000))
def test_one_split_does_not_see_the_order_and_stays_in_range(n: int, k: int, seed: int) -> None:
    p = draw(n, k, seed)
    (score,) = split_scores(p, 1)
    assert 1 - 1e-12 <= score <= k
    (turned,) = split_scores(p.flip(0)[:, torch.randperm(k, generator=torch.Generator().manual_seed(seed))], 1)
    assert turned == pytest.approx(score, rel=1e-9)


def test_images_sorted_by_class_are_split_at_random() -> None:
    """Splits in the order of a folder would hold one class each and score 1."""
    sorted_by_class = torch.eye(10, dtype=torch.float64).repeat_interleave(50, 0)
    assert split_scores(sorted_by_class, 10) == pytest.approx([1.0] * 10)
    assert score_metric(sorted_by_class).value > 8.5


def test_the_interval_is_the_spread_of_new_draws() -> None:
    metrics = [score_metric(draw(400, 5, seed), seed=seed) for seed in range(60)]
    values = torch.tensor([m.value for m in metrics])
    halves = torch.tensor([m.interval[1] - m.value for m in metrics if m.interval])
    assert float(halves.mean()) == pytest.approx(2.26 * float(values.std()), rel=0.3)
    inside = [m.interval is not None and m.interval[0] <= values.mean() <= m.interval[1] for m in metrics]
    assert sum(inside) >= 51


def test_the_settings_tell_splits_and_classifier() -> None:
    assert score_metric(draw(105, 3, 0), seed=4, settings="classifier abc").settings == "10 splits of 10, classifier abc"


@pytest.mark.parametrize(
    ("p", "splits", "said"),
    [
        (torch.rand(30), 2, r"\[n, K\]"),
        (draw(5, 3, 0), 6, "at least 6 splits"),
        (torch.randn(30, 3), 2, "sum to 1: apply a softmax"),
        (torch.full((30, 3), math.nan), 2, "apply a softmax"),
    ],
)
def test_bad_input_is_named(p: Tensor, splits: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_scores(p, splits)


def test_too_few_samples_are_named() -> None:
    with pytest.raises(InputError, match="got 19 samples in 10 splits"):
        score_metric(draw(19, 3, 0))
