from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.teacher import Ends, named_teacher, solver_grid, teacher_metrics


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distance_and_correlation_of_a_few_numbers() -> None:
    answers = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    solutions = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    found = teacher_metrics(Ends(answers, solutions), steps=8)
    assert found["teacher_distance"].value == pytest.approx(0.5**0.5)
    assert found["teacher_correlation"].value == pytest.approx(2 / (4 * 2) ** 0.5)
    assert found["teacher_distance"].settings == "Heun, 8 steps"
    assert found["teacher_distance"].count == 2


@given(st.integers(0, 1000), st.floats(0.1, 10), st.permutations(range(12)))
def test_scale_and_order(seed: int, scale: float, order: list[int]) -> None:
    """The distance scales with the pixels, the correlation does not; the order of the images matters to neither."""
    a, b = draw(12, seed), draw(12, seed) + 0.3 * draw(12, seed + 1)
    one = teacher_metrics(Ends(a, b), steps=8)
    rows = torch.tensor(order)
    other = teacher_metrics(Ends(scale * a[rows], scale * b[rows]), steps=8)
    assert other["teacher_distance"].value == pytest.approx(scale * one["teacher_distance"].value, rel=1e-9)
    assert other["teacher_correlation"].value == pytest.approx(one["teacher_correlation"].value, rel=1e-9)


def test_intervals_hold_the_spread_of_new_draws() -> None:
    found = [teacher_metrics(Ends(draw(60, s), draw(60, s) + 0.5 * draw(60, 500 + s)), steps=8) for s in range(20)]
    for name in ("teacher_distance", "teacher_correlation"):
        values = torch.tensor([each[name].value for each in found])
        intervals = [each[name].interval for each in found]
        assert sum(i is not None and i[0] <= values.mean() <= i[1] for i in intervals) >= 16, name


def test_the_teacher_of_a_card() -> None:
    assert named_teacher({"teacher": "runs/teacher, sha256 91e6018e22e9bb6f"}) == "runs/teacher"
    assert named_teacher({"recipe": {"teacher": "owner/name"}}) == "owner/name"


@pytest.mark.parametrize("card", [None, {}, {"teacher": " "}, {"recipe": {"teacher": None}}, {"recipe": "ict"}, {"teacher": 3}])
def test_no_teacher_on_the_card(card: Any) -> None:
    with pytest.raises(InputError, match="names none: give teacher="):
        named_teacher(card)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        solver_grid(80.0, 0.002, steps=1)
    with pytest.raises(InputError, match="at least 2 images, got 1"):
        teacher_metrics(Ends(draw(1, 0), draw(1, 1)), steps=8)
    with pytest.raises(InputError, match="same image for every noise"):
        teacher_metrics(Ends(draw(1, 0).expand(5, 1, 3, 3), draw(5, 1)), steps=8)
