"""Searches for time points, on metrics whose best choice is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.core.streams import Stream, uniform
from atonce.noise.karras import karras_grid
from atonce.sampling.search import Found, coordinate, golden, scan, ternary

FIRST = 80.0
SEARCHES = {"ternary": ternary, "golden": golden, "scan": scan}


def levels(count: int, low: float = 0.1, high: float = 20.0) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def valley(*targets: float):
    """Sum over the points of the squared distance in ln sigma: separable, so greedy and joint searches agree."""
    asked = []

    def metric(sigmas):
        asked.append(sigmas)
        return sum(math.log(s / t) ** 2 for s, t in zip(sigmas[1:], targets, strict=False))

    metric.asked = asked
    return metric


def by_index(values: list[float], grid: list[float]):
    """A metric of two time points that takes these values, the first at the largest level of the grid."""
    place = dict(zip(sorted(grid, reverse=True), values, strict=True))
    return lambda sigmas: place[sigmas[1]]


def indices(found: Found, grid: list[float]) -> list[int]:
    """Which positions a search of two steps asked for, counted from 1 over the descending grid; 0 is the first point."""
    ordered = sorted(grid, reverse=True)
    return [ordered.index(evaluation.sigmas[1]) + 1 for evaluation in found.curve]


# ---- ternary, as published


def test_the_probes_of_the_ternary_search_are_the_published_ones() -> None:
    """N = 18, indices 0 to 17, by hand for a valley at 11, where the published CIFAR-10 model restarts.

    [0, 17]: 5, 11 -> [5, 17]; 9, 13 -> [9, 17] since f(9) = f(13) is no gain; 11, 14 -> [9, 14]; 10, 12 -> tie, [10, 14];
    11, 12 -> [10, 12]; survivors 10, 11, 12.
    """
    grid = [float(s) for s in karras_grid(18)[1:-1]]
    values = [abs(i - 11.0) for i in range(1, 17)]
    found = ternary(by_index(values, grid), FIRST, grid)
    assert indices(found, grid) == [5, 11, 9, 13, 14, 10, 12]
    assert found.evaluations == 7
    assert found.sigmas == (FIRST, pytest.approx(0.585348, abs=1e-6))  # the published second time point
    assert found.value == 0.0


@pytest.mark.parametrize(("best", "count"), [(b, c) for c in range(1, 9) for b in range(1, c + 1)])
def test_the_last_comparison_is_of_what_is_left_of_the_bracket(best: int, count: int) -> None:
    """Every minimum of every small grid; a search that answers with an earlier probe misses those at the ends."""
    grid = levels(count) if count > 1 else [1.0]
    found = ternary(by_index([abs(i - best) + 0.01 * i for i in range(1, count + 1)], grid), FIRST, grid)
    assert found.sigmas[1] == sorted(grid, reverse=True)[best - 1]


def test_a_tie_keeps_the_side_of_the_larger_index() -> None:
    """As published: [l, m2] only where m1 is strictly better. On a flat metric the bracket walks to the end of the grid."""
    grid = levels(4)
    found = ternary(lambda sigmas: 1.0, FIRST, grid)
    assert indices(found, grid) == [1, 3, 2, 4]  # [0, 5]: 1, 3 -> [1, 5]; 2, 3 -> [2, 5]; 3, 4 -> [3, 5]; survivors 3, 4


# ---- known answers of all


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("count", [3, 7, 36, 40])
@pytest.mark.parametrize("target", [0.05, 0.13, 0.9, 4.0, 19.0, 60.0])
def test_a_quadratic_in_ln_sigma_gives_the_nearest_level(name: str, count: int, target: float) -> None:
    grid = levels(count)
    found = SEARCHES[name](valley(target), FIRST, grid)
    assert found.sigmas == (FIRST, min(grid, key=lambda s: abs(math.log(s / target))))
    assert found.method == name
    assert found.value == min(evaluation.value for evaluation in found.curve)


@pytest.mark.parametrize("name", SEARCHES)
def test_separable_points_are_found_each(name: str) -> None:
    grid, targets = levels(25), (6.0, 1.1, 0.3)
    found = SEARCHES[name](valley(*targets), FIRST, grid, 4)
    assert found.sigmas == (FIRST, *(min(grid, key=lambda s: abs(math.log(s / t))) for t in targets))


def test_the_order_of_the_grid_does_not_matter() -> None:
    grid = levels(20)
    for search in SEARCHES.values():
        assert search(valley(2.0), FIRST, grid) == search(valley(2.0), FIRST, grid[::-1])


def test_a_scan_sees_every_choice_once() -> None:
    found = scan(valley(2.0, 0.5), FIRST, levels(6), 3)
    assert found.evaluations == math.comb(6, 2)
    assert len({evaluation.sigmas for evaluation in found.curve}) == math.comb(6, 2)
    assert all(a > b for e in found.curve for a, b in itertools.pairwise(e.sigmas))


def test_greedy_alone_is_not_enough_where_points_depend_on_each_other() -> None:
    """The best of three steps is (80, 5, 0.5), the best of two (80, 1): coordinate descent undoes the greedy choice."""

    def metric(sigmas):
        if len(sigmas) == 2:
            return math.log(sigmas[1]) ** 2
        return math.log(sigmas[1] / 5) ** 2 + math.log(sigmas[2] / 0.5) ** 2

    grid = levels(41)
    best = scan(metric, FIRST, grid, 3)
    assert golden(metric, FIRST, grid, 3).sigmas == best.sigmas
    assert ternary(metric, FIRST, grid, 3).value > best.value + 1


def test_a_start_beside_the_greedy_choice_is_gone_on_from_where_it_is_better() -> None:
    """Two valleys of three steps; the greedy choice lies in the shallow one, the start in the deep one."""

    def metric(sigmas):
        if len(sigmas) == 2:
            return math.log(sigmas[1]) ** 2
        near = [math.log(sigmas[1] / a) ** 2 + math.log(sigmas[2] / b) ** 2 for a, b in ((1, 0.5), (12, 4))]
        return min(near[0], near[1] - 1)

    grid = levels(41)
    best = scan(metric, FIRST, grid, 3)
    assert golden(metric, FIRST, grid, 3).value > best.value + 0.5
    assert golden(metric, FIRST, grid, 3, start=(FIRST, 9.0, 3.0)).sigmas == best.sigmas
    assert golden(metric, FIRST, grid, 3, start=(FIRST, 19.0, 0.1)).value > best.value + 0.5
    assert golden(valley(1.0), FIRST, grid, 2, start=(FIRST, 9.0)) == golden(valley(1.0), FIRST, grid, 2)


def test_coordinate_descent_from_a_bad_start_finds_a_valley_with_a_slope_across() -> None:
    """A quadratic with a cross term, whose minimum is known: u = ln 4, v = ln 0.5."""

    def metric(sigmas):
        u, v = math.log(sigmas[1] / 4), math.log(sigmas[2] / 0.5)
        return u * u + v * v + u * v

    grid = levels(121)
    found = coordinate(metric, (FIRST, 19.0, 0.12), grid)
    assert found.sigmas[1] == pytest.approx(4, rel=0.06)
    assert found.sigmas[2] == pytest.approx(0.5, rel=0.06)
    assert found.evaluations < 0.02 * math.comb(121, 2)


def test_a_valley_beside_another_is_found_by_the_coarse_scan() -> None:
    """Two valleys; the thirds of the ternary search end in the wrong one, the coarse scan looks at both."""
    grid = levels(41)

    def metric(sigmas):
        u = math.log(sigmas[1])
        return min(2 * (u - math.log(11)) ** 2 - 1, 0.5 * (u - math.log(0.4)) ** 2)

    assert golden(metric, FIRST, grid).value == scan(metric, FIRST, grid).value
    assert ternary(metric, FIRST, grid).value > -0.5


@pytest.mark.parametrize("seed", range(8))
def test_noise_costs_little(seed: int) -> None:
    """Noise of 0.05 on a valley 3.5 high: what is found is, without the noise, within 0.15 of the best."""
    grid = levels(60)
    noise = dict(zip(grid, uniform(seed, torch.arange(1), 60, Stream.EVALUATE)[0].tolist(), strict=True))
    clean = valley(1.5)
    found = golden(lambda s: clean(s) + 0.05 * noise[s[1]], FIRST, grid)
    assert clean(found.sigmas) < 0.15


# ---- cost


@pytest.mark.parametrize("target", [0.1, 0.3, 1.0, 5.0, 20.0])
def test_golden_section_costs_a_third_of_the_scan_at_most(target: float) -> None:
    for count in (36, 40, 60, 100):
        assert golden(valley(target), FIRST, levels(count)).evaluations <= count // 3
    assert golden(valley(target), FIRST, levels(1000)).evaluations <= 20


@pytest.mark.parametrize("search", [ternary, golden, scan])
def test_nothing_is_measured_twice(search) -> None:
    metric = valley(5.0, 1.0)
    found = search(metric, FIRST, levels(30), 3)
    assert len(metric.asked) == len(set(metric.asked)) == found.evaluations
    assert [evaluation.sigmas for evaluation in found.curve] == metric.asked


def test_what_is_known_is_not_measured_again() -> None:
    """An interrupted search: the same calls again, with the values that were there, give the same result."""
    grid = levels(40)
    whole = golden(valley(1.7, 0.4), FIRST, grid, 3)
    for done in (0, 1, 5, whole.evaluations):
        metric = valley(1.7, 0.4)
        known = {evaluation.sigmas: evaluation.value for evaluation in whole.curve[:done]}
        assert golden(metric, FIRST, grid, 3, known=known) == whole
        assert metric.asked == [evaluation.sigmas for evaluation in whole.curve[done:]]


def test_the_callback_sees_the_curve_as_it_grows() -> None:
    told = []
    found = golden(valley(2.0), FIRST, levels(30), callback=told.append)
    assert tuple(told) == found.curve


# ---- properties


@given(st.lists(st.integers(1, 100), min_size=2, max_size=50), st.data())
def test_where_there_is_one_valley_all_searches_agree(steps: list[int], data) -> None:
    """Strictly falling, then strictly rising, with the valley anywhere, ends included."""
    bottom = data.draw(st.integers(0, len(steps)))
    values, down = [], float(sum(steps[:bottom]))
    for i in range(len(steps) + 1):
        values.append(down)
        down += 0 if i == len(steps) else (-steps[i] if i < bottom else steps[i])
    grid = levels(len(values))
    metric = by_index(values, grid)
    best = scan(metric, FIRST, grid)
    assert best.value == min(values)
    assert golden(metric, FIRST, grid).sigmas == best.sigmas
    assert ternary(metric, FIRST, grid).sigmas == best.sigmas
    start = data.draw(st.sampled_from(grid))
    assert coordinate(metric, (FIRST, start), grid).sigmas == best.sigmas


@given(st.integers(2, 5), st.integers(5, 30), st.randoms(use_true_random=False))
def test_any_metric_ends_with_the_best_that_was_seen(steps: int, count: int, random) -> None:
    """Even a metric without any order: it ends, asks nothing twice, and descending time points are all it asks for."""
    table: dict[tuple[float, ...], float] = {}

    def metric(sigmas):
        assert sigmas not in table
        assert sigmas[0] == FIRST
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        table[sigmas] = random.random()
        return table[sigmas]

    grid = levels(count)
    for search in (ternary, golden, lambda m, f, g, k: coordinate(m, (f, *g[:-(k):-1]), g)):
        table.clear()
        found = search(metric, FIRST, grid, steps)
        assert found.value == min(value for sigmas, value in table.items() if len(sigmas) == steps)
        assert found.evaluations == len(table)


# ---- bad input


@pytest.mark.parametrize("search", SEARCHES.values())
@pytest.mark.parametrize(
    ("grid", "steps", "said"),
    [
        (levels(5), 1, "steps is 1: a search needs at least 2"),
        (levels(5), 2.0, "steps is 2.0"),
        ([], 2, "the grid has 0 noise levels"),
        ([1.0], 3, "the grid has 1 noise levels: 3 steps need at least 2"),
        ([1.0, 80.0], 2, "below the first point, 80"),
        ([0.0, 1.0], 2, "must be above 0"),
        ([float("nan"), 1.0], 2, "must be above 0"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(search, grid, steps, said) -> None:
    with pytest.raises(InputError, match=said):
        search(valley(1.0), FIRST, grid, steps)


def test_a_value_that_is_no_number_stops_the_search() -> None:
    with pytest.raises(InputError, match=r"time points 80, .* is nan, must be a finite number"):
        golden(lambda sigmas: math.nan, FIRST, levels(9))


def test_a_coarse_scan_and_a_start_must_be_possible() -> None:
    with pytest.raises(InputError, match="coarse is 0"):
        golden(valley(1.0), FIRST, levels(9), coarse=0)
    with pytest.raises(InputError, match="they must descend"):
        coordinate(valley(1.0), (FIRST, 1.0, 2.0), levels(9))
    with pytest.raises(InputError, match="at least 2"):
        coordinate(valley(1.0), (FIRST,), levels(9))
