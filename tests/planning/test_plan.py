"""A plan from measurements that are made up: what is advised, what fits, what is refused. The probe itself: test_probe.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce
from atonce.core.errors import InputError
from atonce.data.dataset import ImageData
from atonce.planning import plan as planning
from atonce.planning.charts import plan_figure
from atonce.planning.material import random_images, stand_in
from atonce.planning.plan import Plan, plan, usual_network
from atonce.planning.wish import Wish

MIB = 2**20


@pytest.fixture
def digits() -> ImageData:
    from atonce.data.sources import open_data

    return open_data("digits")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, measurement) -> list[dict[str, Any]]:
    """Probes that answer at once; what they were asked for. An image takes 10 ms, with "small" 100 ms, besides 0.1 s a step."""
    found: list[dict[str, Any]] = []

    def instead(recipe, data, **options):
        found.append({"recipe": recipe, **options})
        assert data.exists()
        if options["teacher"] is not None:
            assert atonce.ConsistencyModel.from_pretrained(options["teacher"]).kind == "denoiser"
        slow = 10 if recipe.network == "small" else 1
        return measurement(steps=(0.2 * slow, 1.0 * slow), quartiles=(0.98 * slow, 1.02 * slow))

    monkeypatch.setattr(planning, "measure", instead)
    monkeypatch.setattr(planning, "available_memory", lambda device: 8 << 30)
    return found


def sizes(made: Plan) -> dict[str, int]:
    return {run.method: run.images for run in made.predictions}


def test_without_a_limit_a_modest_budget_from_data(asked, digits: ImageData) -> None:
    made = plan(Wish(), digits)
    assert [each["recipe"].method for each in asked] == ["ict", "ct", "ect", "diffusion", "cd"]
    assert set(sizes(made).values()) == {2_000_000}
    assert made.advised.name == "ict"  # its distance and that of cd cannot be told apart, and it is one run
    assert made.fits
    assert made.runner_up is not None
    assert made.runner_up[0] == "diffusion + cd (tiny)"
    assert "measured by us on digits (8x8)" in made.reasons[0]
    assert {each.about: each.grade for each in made.sure}["method"] == "medium"
    assert not made.shortfalls
    assert made.advised.runs[0].network == "tiny"


def test_a_deadline_is_kept_and_shared_by_two_runs(asked, digits: ImageData) -> None:
    made = plan(Wish(deadline=3600.0), digits)
    assert all(run.time.value <= 3600 for run in made.predictions)
    assert all(route.time.value <= 3600 for route in made.routes)
    by_name = {route.name: route for route in made.routes}
    assert [run.method for run in by_name["diffusion + cd"].runs] == ["diffusion", "cd"]
    assert by_name["diffusion + cd"].runs[0].images < 0.6 * by_name["ict"].images
    assert by_name["ict"].images > 0.85 * 3600 * 90 / 1.1  # nine tenths of the time, less what is not training


def test_a_budget_limits_like_a_deadline(asked, digits: ImageData) -> None:
    money = plan(Wish(budget=2.5, price=2.5), digits)
    time = plan(Wish(deadline=3600.0), digits)
    assert sizes(money) == sizes(time)
    assert money.advised.money is not None
    assert money.advised.money.value <= 2.5
    assert time.advised.money is None


def test_a_given_budget_that_does_not_fit_says_by_how_much_and_what_would(asked, digits: ImageData) -> None:
    made = plan(Wish(images=2_000_000, deadline=3600.0), digits)
    assert not made.fits
    late = made.advised.time.value - 3600
    assert made.advised.late == pytest.approx(late)
    assert "more than the 60 min that deadline and budget leave" in made.shortfalls[0]
    assert made.shortfalls[1].startswith("what would fit: ict (tiny) with ")
    assert "290,000 images" in made.shortfalls[1]


def test_too_little_memory_makes_passes_smaller_or_says_so(asked, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "available_memory", lambda device: 400 * MIB)
    assert plan(Wish(batch=256), digits).advised.runs[0].microbatch == 32
    monkeypatch.setattr(planning, "available_memory", lambda device: 200 * MIB)
    made = plan(Wish(batch=256), digits)
    assert not made.fits
    assert "even with one image a pass, 200 MiB are free" in made.shortfalls[0]


def test_a_short_deadline_makes_batches_smaller(asked, digits: ImageData) -> None:
    made = plan(Wish(deadline=300.0), digits)
    assert {run.batch for run in made.predictions} == {32}
    made = plan(Wish(deadline=1000.0), digits, methods=("ict",))
    assert made.predictions[0].batch == 64
    assert 800 < made.predictions[0].time.value <= 900  # nine tenths of the time, with the batch that is advised
    assert {run.batch for run in plan(Wish(deadline=300.0, batch=100), digits).predictions} == {100}


def test_no_time_for_a_start_is_refused(asked, digits: ImageData) -> None:
    with pytest.raises(InputError, match="nothing fits: within 3 s not even the start"):
        plan(Wish(deadline=3.0), digits)


def test_a_smaller_network_is_tried_where_no_run_speaks_for_the_usual_one(asked) -> None:
    made = plan(Wish(deadline=7200.0), shape=(1, 28, 28))
    assert {each["recipe"].network for each in asked} == {"small", "tiny"}
    assert made.advised.runs[0].network == "tiny"
    assert {run.network for run in made.predictions} == {"small", "tiny"}
    asked.clear()
    plan(Wish(deadline=7200.0, network="small"), shape=(1, 28, 28))
    assert {each["recipe"].network for each in asked} == {"small"}


def test_larger_images_are_distilled_where_that_is_what_is_known(asked) -> None:
    """Nothing from data alone is known below hundreds of millions of images at 28x28; a teacher and its student are."""
    made = plan(Wish(images=200_000), shape=(1, 28, 28), classes=10)
    assert made.advised.name == "diffusion + cd"
    assert any("random images" in each.why for each in made.sure)
    assert {each.about: each.grade for each in made.sure}["method"] == "low"


def test_with_a_teacher_it_is_distilled(asked, digits: ImageData) -> None:
    teacher = stand_in(atonce.recipes.diffusion(network="tiny"), digits)
    made = plan(Wish(), digits, teacher=teacher)
    assert [each["recipe"].method for each in asked] == ["cd", "progressive", "ect", "ict"]
    assert made.advised.name == "cd"
    ect = next(each["recipe"] for each in asked if each["recipe"].method == "ect")
    assert ect.init is not None
    assert ect.teacher is None
    assert next(each for each in asked if each["recipe"].method == "ict")["teacher"] is None
    assert {run.method: run.network for run in made.predictions} == {
        "cd": "auto",
        "progressive": "auto",
        "ect": "auto",
        "ict": "tiny",
    }


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (lambda: atonce.load("digits"), "the teacher is a consistency model for 1x8x8 images; needed is a denoiser"),
        (
            lambda: stand_in(atonce.recipes.diffusion(network="tiny"), random_images((3, 16, 16))),
            "the teacher is a model for 3x16x16 images, the data have 1x8x8",
        ),
        (
            lambda: stand_in(atonce.recipes.diffusion(network="tiny", sigma_max=10.0), random_images((1, 8, 8))),
            "the teacher knows noise levels from 0.002 to 10",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_work(asked, digits: ImageData, teacher, said: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(Wish(), digits, teacher=teacher())
    assert said in str(caught.value)
    assert not asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "a plan needs data, or the shape of images"),
        ({"shape": (1, 8, 8), "methods": ("magic",)}, "method 'magic' is not known"),
        ({"data": ImageData(torch.zeros(4, 1, 8, 12, dtype=torch.uint8))}, "has images of 8x12: networks take squares"),
        ({"shape": (1, 8, 8), "wish": Wish(conditional=True)}, "has no labels"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, arguments: dict[str, Any], said: str) -> None:
    wish = arguments.pop("wish", Wish())
    with pytest.raises(ValueError, match=said):
        plan(wish, arguments.pop("data", None), **arguments)
    assert not asked


def test_labels_are_told_to_the_probes(asked) -> None:
    plan(Wish(conditional=True), shape=(1, 8, 8), classes=3, methods=("ict",))
    assert asked[0]["labels"] == ("0", "1", "2")
    assert asked[0]["recipe"].conditional


def test_json_and_picture(asked, digits: ImageData) -> None:
    made = plan(Wish(deadline=3600.0, price=2.5, watts=65.0), digits)
    values = json.loads(json.dumps(made.to_json()))
    assert values["advised"] == "ict"
    assert {each["name"] for each in values["assumptions"]} == {"batch", "deadline", "price", "watts"}
    assert values["routes"][0]["line"]["data"] == "digits"
    left, right = plan_figure(made).axes
    assert len(left.patches) == len(right.patches) == len(made.predictions)
    assert left.patches[0].get_width() == pytest.approx(made.predictions[0].time.value / 60)


def test_usual_networks() -> None:
    assert [usual_network((1, side, side)) for side in (8, 28, 64)] == ["tiny", "small", "ddpmpp"]


def test_progress_ends_at_its_total(asked, digits: ImageData) -> None:
    told: list[tuple[float, float, str]] = []
    plan(Wish(), digits, methods=("ict", "ct"), told=lambda *each: told.append(each))
    assert told[0][:2] == (0, 2)
    assert told[-1] == (2, 2, "done")


def test_nothing_is_left_behind(asked, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan(Wish(), digits, methods=("ict",))
    assert not list(tmp_path.iterdir())
