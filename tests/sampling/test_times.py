"""Time points."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.sampling.times import check_steps, check_times, denoiser_times, restart_times


def test_published_time_points() -> None:
    assert restart_times(1, 80.0, 0.5) == [80.0]
    assert restart_times(2, 80.0, 0.5) == [80.0, 0.821]


@given(st.integers(1, 12), st.floats(0.5, 1000), st.floats(0.01, 5))
def test_restarts_descend_from_the_top(steps: int, sigma_max: float, sigma_data: float) -> None:
    times = restart_times(steps, sigma_max, sigma_data)
    assert len(times) == steps
    assert times[0] == sigma_max
    assert all(a > b > 0 for a, b in pairwise(times)) or steps == 1


def test_restarts_scale_with_the_data() -> None:
    small, large = restart_times(5, 80.0, 0.5), restart_times(5, 160.0, 1.0)
    assert all(math.isclose(2 * a, b) for a, b in zip(small, large, strict=True))


def test_denoiser_times_are_the_grid_of_edm() -> None:
    text = """80, 57.58598472, 40.7855738, 28.3745846, 19.35245298, 12.91008238, 8.40093531, 5.31519452, 3.25682152,
        1.92333984, 1.08817064, 0.58534812, 0.29644228, 0.13951647, 0.05994731, 0.02293452, 0.00752802, 0.002, 0"""
    times = denoiser_times(18, 0.002, 80.0)
    assert len(times) == 19
    assert all(abs(t - float(word)) < 5.1e-9 for t, word in zip(times, text.replace(",", "").split(), strict=True))
    assert denoiser_times(1, 0.002, 80.0) == [80.0, 0.0]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2", None])
def test_steps_must_be_a_whole_number(steps: Any) -> None:
    for call in (lambda: check_steps(steps), lambda: restart_times(steps, 80, 0.5), lambda: denoiser_times(steps, 0.002, 80)):
        with pytest.raises(InputError, match="steps is .*whole number of at least 1"):
            call()


@pytest.mark.parametrize("given_", [[80.0, 1.0], [80.0, 1.0, 0.002], [80, 1, 0], (80.0, 1.0), torch.tensor([80.0, 1.0])])
def test_given_times_with_and_without_their_end(given_: Any) -> None:
    assert check_times(given_, 0.002, 80.0) == [80.0, 1.0]


@pytest.mark.parametrize(
    ("sigmas", "text"),
    [
        ([], "sigmas is empty"),
        ([0.0], "must be above 0.002 and at most 80"),
        ([0.002], "must be above"),
        ([81.0], "at most 80"),
        ([80.0, 0.001], "must be above"),
        ([math.nan], "must be above"),
        ([80.0, math.nan, 1.0], "must be above"),
        ([-1.0], "must be above"),
        ([1.0, 2.0], "must descend"),
        ([2.0, 2.0], "must descend"),
    ],
)
def test_given_times_are_checked(sigmas: list[float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_times(sigmas, 0.002, 80.0)
