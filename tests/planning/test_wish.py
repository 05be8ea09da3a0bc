"""What may be wished for."""

from __future__ import annotations

from typing import Any

import pytest

from atonce.core.errors import InputError
from atonce.planning.wish import Wish


def test_deadline_and_budget_limit_together() -> None:
    assert Wish().limit is None
    assert Wish(deadline=7200.0).limit == 7200.0
    assert Wish(budget=5.0, price=2.5).limit == 7200.0  # two hours of 2.5 each
    assert Wish(budget=5.0, price=2.5, deadline=600.0).limit == 600.0
    assert Wish(budget=5.0, price=0.0).limit is None  # what costs nothing is not limited by money


def test_short_runs_get_the_settings_of_short_runs() -> None:
    assert Wish().short
    assert Wish(deadline=3600.0).short
    assert not Wish(deadline=10 * 86400.0).short
    assert not Wish(images=409_600_000).short


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": 0}, "images is 0, must be a whole number of at least 1"),
        ({"images": -3}, "images is -3"),
        ({"images": 10**15}, "of at most 1,000,000,000,000"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"images": 10, "batch": 64}, "images is 10, must be at least one batch (64)"),
        ({"network": "huge"}, "network is 'huge', must be one of auto, tiny"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"deadline": -5.0}, "deadline is -5, must be above 0 seconds"),
        ({"deadline": float("nan")}, "deadline is nan"),
        ({"budget": 20.0}, "budget is 20, which says nothing without the price of a device hour: give --price"),
        ({"budget": -1.0, "price": 2.0}, "budget is -1"),
        ({"budget": 0.0, "price": 2.0}, "budget is 0, must be above 0 USD"),
        ({"price": -2.5}, "price is -2.5, must be at least 0 USD an hour"),
        ({"price": 1e9}, "price is 1e+09, more than makes sense here"),
        ({"watts": 0.0}, "watts is 0"),
        ({"seconds": 0.0}, "seconds of the probes is 0"),
    ],
)
def test_absurd_wishes_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Wish(**wrong)
    assert said in str(caught.value)
