from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.classes import chance_variation, class_accuracy, class_balance, frechet_per_class
from atonce.evaluation.frechet import FeatureStatistics, frechet_distance

NAMES = ("a", "b", "c", "d")
EVEN = torch.full((4,), 0.25)


def classes(n: int, seed: int, shares: Tensor = EVEN) -> Tensor:
    return torch.multinomial(shares, n, replacement=True, generator=torch.Generator().manual_seed(seed))


def test_shares_of_a_few_samples() -> None:
    found = class_balance(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 0.25, 0.0, 0.25]), NAMES)
    assert found["class_largest_deviation"].value == pytest.approx(0.25)
    assert found["class_total_variation"].value == pytest.approx((0 + 1 / 12 + 1 / 6 + 1 / 4) / 2)
    assert [found[f"class_share:{name}"].value for name in NAMES] == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0])
    assert found["class_largest_deviation"].interval is None  # too few to leave blocks out


def test_one_class_only_is_as_far_as_it_gets() -> None:
    found = class_balance(torch.zeros(100, dtype=torch.int64), EVEN, NAMES)
    assert found["class_total_variation"].value == pytest.approx(0.75)
    # A class that was not found may still have a share of up to z^2 / (n + z^2), z = 1.96 (Wilson).
    assert found["class_total_variation"].interval == pytest.approx((0.75 - 3.8415 / 103.8415, 0.75), abs=1e-5)
    assert found["class_largest_deviation"].interval == pytest.approx((0.75 - 3.8415 / 103.8415, 0.75), abs=1e-5)
    assert [found[f"class_share:{name}"].interval for name in NAMES[:2]] == [
        pytest.approx((1 - 3.8415 / 103.8415, 1.0), abs=1e-5),
        pytest.approx((0.0, 3.8415 / 103.8415), abs=1e-5),
    ]


@given(st.permutations(range(4)), st.integers(0, 100))
def test_names_of_classes_do_not_matter(order: list[int], seed: int) -> None:
    predicted, shares = classes(200, seed), torch.tensor([0.1, 0.2, 0.3, 0.4])
    turned = torch.empty(4)
    turned[torch.tensor(order)] = shares
    one, other = class_balance(predicted, shares, NAMES), class_balance(torch.tensor(order)[predicted], turned, NAMES)
    for name in ("class_largest_deviation", "class_total_variation"):
        assert other[name].value == pytest.approx(one[name].value, rel=1e-6)
        assert other[name].interval == pytest.approx(one[name].interval, rel=1e-6)


def test_intervals_hold_the_spread_of_new_draws() -> None:
    """Away from kinks: no class is as frequent as in the data, and one deviates most."""
    shares = torch.tensor([0.5, 0.29, 0.11, 0.1])
    found = [class_balance(classes(1000, seed, shares), EVEN, NAMES) for seed in range(40)]
    for name in ("class_largest_deviation", "class_total_variation", "class_share:a"):
        metrics = [each[name] for each in found]
        values = torch.tensor([metric.value for metric in metrics])
        intervals = [metric.interval for metric in metrics if metric.interval is not None]
        assert sum(low <= values.mean() <= high for low, high in intervals) >= 34, name
        width = sum(high - low for low, high in intervals) / 40
        assert width == pytest.approx(4 * float(values.std()), rel=0.35), name


def test_what_chance_gives() -> None:
    values = [class_balance(classes(500, seed), EVEN, NAMES)["class_total_variation"].value for seed in range(100)]
    assert chance_variation(EVEN, 500) == pytest.approx(sum(values) / 100, rel=0.15)


def test_many_classes_are_not_listed() -> None:
    found = class_balance(torch.arange(50) % 30, torch.full((30,), 1 / 30), [str(i) for i in range(30)])
    assert set(found) == {"class_largest_deviation", "class_total_variation"}


def test_the_class_that_was_asked_for() -> None:
    asked = torch.arange(100) % 4
    found = class_accuracy(torch.where(torch.arange(100) < 80, asked, (asked + 1) % 4), asked, settings="classifier x")
    assert found.value == pytest.approx(0.8)
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(0.8 - 1.96 * math.sqrt(0.8 * 0.2 / 100), abs=0.03)
    assert found.settings == "classifier x"


def features(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def statistics(x: Tensor) -> FeatureStatistics:
    found = FeatureStatistics(3)
    found.update(x)
    return found


def test_each_class_is_compared_with_its_own() -> None:
    """Samples that are right as a whole but of swapped classes: far in every class, near in the whole."""
    x, y = features(400, 0), features(400, 1)
    own = torch.arange(400) % 2
    x[own == 1] += 5
    y[own == 1] += 5
    right, _ = frechet_per_class(x, own, y, own, ("a", "b"))
    swapped, _ = frechet_per_class(x, 1 - own, y, own, ("a", "b"))
    assert right["frechet_class_mean"].value < 0.1
    assert swapped["frechet_class_mean"].value == pytest.approx(75, rel=0.05)
    expected = frechet_distance(statistics(x[own == 0]), statistics(y[own == 0]))
    assert right["frechet_class:a"].value == pytest.approx(expected, rel=1e-9)
    assert right["frechet_class:a"].count == 200


def test_mean_and_worst() -> None:
    own = torch.arange(900) % 3
    x = features(900, 0) + own[:, None]
    y = features(900, 1)
    found, notes = frechet_per_class(x, own, y, own, ("a", "b", "c"), "classes asked for")
    values = [found[f"frechet_class:{name}"].value for name in "abc"]
    assert found["frechet_class_mean"].value == pytest.approx(sum(values) / 3)
    assert found["frechet_class_worst"].value == max(values) == values[2]
    assert "the class with the largest distance is c" in notes
    halves = [m.interval[1] - m.value for m in (found[f"frechet_class:{name}"] for name in "abc") if m.interval]
    mean = found["frechet_class_mean"]
    assert mean.interval is not None
    assert mean.interval[1] - mean.value == pytest.approx(math.sqrt(sum(h * h for h in halves)) / 3)
    assert mean.settings == "3 classes, classes asked for"


@given(st.permutations(range(60)))
def test_the_order_of_samples_does_not_matter(order: list[int]) -> None:
    x, y, own = features(60, 0), features(60, 1), torch.arange(60) % 2
    rows = torch.tensor(order)
    one, _ = frechet_per_class(x, own, y, own, ("a", "b"))
    other, _ = frechet_per_class(x[rows], own[rows], y, own, ("a", "b"))
    assert other["frechet_class_mean"].value == pytest.approx(one["frechet_class_mean"].value, rel=1e-9)


def test_an_empty_class_is_told() -> None:
    own = torch.zeros(60, dtype=torch.int64)
    found, notes = frechet_per_class(features(60, 0), own, features(60, 1), torch.arange(60) % 2, ("a", "b"))
    assert "frechet_class:b" not in found
    assert "no distance of class b: 0 samples and 30 images of the data, 2 are needed" in notes
    with pytest.raises(InputError, match="no class has 2 samples"):
        frechet_per_class(features(3, 0), torch.arange(3), features(60, 1), torch.arange(60) % 2, ("a", "b", "c"))


def test_few_samples_are_told() -> None:
    own = torch.arange(6) % 2
    _, notes = frechet_per_class(features(6, 0), own, features(60, 1), torch.arange(60) % 2, ("a", "b"))
    assert any("a class of 3 samples in 3 dimensions is singular" in note for note in notes)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="classes from 0 to 3"):
        class_balance(torch.tensor([4]), EVEN, NAMES)
    with pytest.raises(InputError, match="0 predictions"):
        class_balance(torch.tensor([], dtype=torch.int64), EVEN, NAMES)
    with pytest.raises(InputError, match="3 predictions are compared with 2 labels"):
        class_accuracy(torch.zeros(3), torch.zeros(2))
