"""Which way is advised: what fits, what is known, what was measured, what is shorter."""

from __future__ import annotations

import dataclasses

import pytest

from atonce.planning.advice import reasons, runner_up_reason, sureness
from atonce.planning.candidates import recipe_of
from atonce.planning.predict import predict
from atonce.planning.routes import Route, order, route_of
from atonce.planning.wish import Wish


@pytest.fixture
def way(measurement):
    def made(*methods: str, images: int = 80_000, size: int = 8, limit: float | None = None, taught: bool = False) -> Route:
        runs = []
        for method in methods:
            recipe = recipe_of(method, images=images, batch=90, network="tiny", settings={}, taught=taught)
            runs.append(predict(recipe, measurement(), Wish(price=1.0, watts=100.0), network="tiny", settings={}))
        return route_of(runs, size, limit, None)

    return made


def names(*routes: Route) -> list[str]:
    return [route.name for route in order(routes)]


def test_a_route_sums_its_runs(way) -> None:
    both, first, second = way("diffusion", "cd"), way("diffusion"), way("cd")
    assert both.time.value == pytest.approx(first.time.value + second.time.value)
    assert both.money.value == pytest.approx(both.time.value / 3600)
    assert both.energy.value == pytest.approx(both.time.value * 100 / 3.6e6)
    assert both.images == 160_000
    assert both.name == "diffusion + cd"


def test_what_fits_comes_first(way) -> None:
    late = way("ict", images=200_000, limit=1000.0)
    assert late.late == pytest.approx(late.time.value - 1000)
    assert not late.fits
    assert names(late, way("ct", images=40_000, limit=1000.0)) == ["ct", "ict"]


def test_what_is_surely_worse_in_our_table_comes_later(way) -> None:
    assert names(way("ct"), way("ict")) == ["ict", "ct"]
    assert names(way("ct", images=90_000), way("ict", images=50_000)) == ["ict", "ct"]  # a little more is not better
    assert names(way("ct", images=90_000), way("ict", images=900)) == ["ct", "ict"]  # far too little is


def test_where_distances_cannot_be_told_apart_the_shorter_way_wins(way) -> None:
    assert names(way("diffusion", "cd"), way("ict")) == ["ict", "diffusion + cd"]


def test_what_nobody_has_done_at_this_size_comes_later(way) -> None:
    assert names(way("ict", images=200_000, size=28), way("diffusion", "cd", images=200_000, size=28))[0] == "diffusion + cd"
    unknown = way("ict", size=512)
    assert unknown.known == ()
    assert unknown.share == 0
    assert not unknown.supported


def test_reasons_name_numbers_and_sources(way) -> None:
    chosen, others = way("ict"), [way("diffusion", "cd"), way("ct")]
    first, second = reasons(chosen, others)
    assert first.startswith("measured by us on digits (8x8), 80,000 images, one step: ict ")
    assert "against cd " in first
    assert "as many as those of the least known run: ict on digits" in second
    assert "there is no teacher yet" in reasons(others[0], [chosen])[1]
    assert "in our table" in runner_up_reason(chosen, others[1])
    assert "no run of it is known" in runner_up_reason(chosen, way("ict", images=9000))


def test_sureness_says_what_it_rests_on(way) -> None:
    known = {"random": False, "stand_in": True, "name": "digits", "size": 8}
    time, method = sureness(way("ict"), **known)
    assert (time.grade, time.why) == ("high", "measured here with batches of 90")
    assert (method.grade, "our own table on the same data" in method.why) == ("medium", True)
    assert sureness(way("ict"), **{**known, "name": "leaves"})[1].grade == "low"
    assert "untrained teacher" in sureness(way("diffusion", "cd"), **known)[0].why
    assert "random images" in sureness(way("ict"), **{**known, "random": True})[0].why
    chosen = way("ict")
    runs = [
        dataclasses.replace(run, measurement=dataclasses.replace(run.measurement, quartiles=(0.7, 1.3))) for run in chosen.runs
    ]
    noisy = sureness(dataclasses.replace(chosen, runs=tuple(runs)), **known)[0]
    assert noisy.grade == "medium"
    assert "other work" in noisy.why


def test_json(way) -> None:
    values = way("ict").to_json()
    assert values["supported"]
    assert values["known"][0]["source"] == "measured"
    assert values["runs"] == [{"method": "ict", "network": "tiny", "batch": 90, "images": 80_000}]


def test_of_two_networks_the_one_with_a_known_budget_is_advised(way) -> None:
    """A larger network gets fewer images in the same time; that with a fair part of them is behind one that has them all."""
    large, small = way("diffusion", "cd", images=30_000), way("diffusion", "cd", images=90_000)
    assert (large.supported, small.supported) == (False, True)
    assert order([large, small])[0] is small
    assert small.title == "diffusion + cd (tiny)"
    assert "against" not in reasons(small, [large])[0]  # the same line of the table is no rival
