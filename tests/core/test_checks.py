"""Checks of numbers: what is right comes back, what is wrong is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atonce.core.checks import numbers, whole
from atonce.core.errors import InputError


def test_whole_numbers_of_any_kind() -> None:
    assert [whole(5, "n"), whole(np.int64(5), "n", 5), whole(-3, "n"), whole(torch.tensor(4), "n", 1, 4)] == [5, 5, -3, 4]
    assert type(whole(np.int64(5), "n")) is int


@pytest.mark.parametrize("value", [5.0, "5", True, None, torch.tensor(2.5), 2, 10])
def test_other_things_are_refused_with_the_limits(value: object) -> None:
    with pytest.raises(InputError, match=r"n is .* must be a whole number of at least 3 and of at most 9"):
        whole(value, "n", 3, 9)


def test_lists_of_numbers() -> None:
    assert numbers((1, 2.5), "x") == [1.0, 2.5]
    assert numbers(torch.tensor([1.0, 0.5]), "x") == [1.0, 0.5]
    assert numbers([], "x") == []


@pytest.mark.parametrize("value", ["80", 5.0, ["a"], ["5"], None, b"12", [None], [[1, 2]], torch.zeros(())])
def test_what_is_no_list_of_numbers_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="x is .* must be a list of numbers"):
        numbers(value, "x")
