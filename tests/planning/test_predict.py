"""From a probe to a run, against cases reckoned by hand and against the loop's own marks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atonce
from atonce.data.dataset import ImageData
from atonce.planning.predict import cadence, images_within, linear, memory_bytes, predict, step_seconds
from atonce.planning.wish import Wish
from atonce.training.options import Options
from atonce.training.recipe import Recipe

MIB = 2**20


def recipe(images: int = 90_000, batch: int = 90, **changes: Any) -> Recipe:
    return atonce.recipes.ict(images, batch, network="tiny", **changes)


@pytest.fixture(scope="session")
def prediction(measurement):
    def made(run: Recipe, wish: Wish | None = None, **changes: Any):
        more = {name: changes.pop(name) for name in ("room", "more_bytes", "opening") if name in changes}
        return predict(run, measurement(**changes), wish or Wish(), network="tiny", settings={}, **more)

    return made


def test_a_run_by_hand(prediction) -> None:
    # 1,000 steps of 1 s; 200 log lines of 0.01 s. Evaluations every max(90,000 / 12, 8,000) images, to whole batches: 8,010;
    # 11 of them and one at the end, 2 s and 1,000 samples of 1 ms each. Two minutes between checkpoints: 1038 s hold 8, and the
    # last one. The gradients of an evaluation are those of the probe's batch.
    found = prediction(recipe(), opening=2.0)
    assert found.parts["start"] == 5.0
    assert found.parts["training"] == pytest.approx(1000 + 200 * 0.01)
    assert found.parts["evaluations"] == pytest.approx(12 * (2.0 + 1.0))
    assert found.parts["checkpoints"] == pytest.approx(9 * 0.5)
    assert found.time.value == pytest.approx(5 + 1002 + 36 + 4.5 + 0.25)
    assert found.time.low < found.time.value < found.time.high
    assert found.per_image.value == pytest.approx(1 / 90)
    assert found.memory.value == 390 * MIB
    # Four checkpoints (three kept, one being written), three models, 212 lines and 12 pictures.
    assert found.disk.value == pytest.approx(43 * MIB + 212 * 500 + 12 * 1000)
    assert found.money is None
    assert found.energy is None


def test_money_and_energy_follow_from_the_time(prediction) -> None:
    found = prediction(recipe(), Wish(price=3.6, watts=100.0))
    assert found.money is not None
    assert found.energy is not None
    assert found.money.value == pytest.approx(found.time.value * 0.001)
    assert found.energy.value == pytest.approx(found.time.value * 100 / 3.6e6)


def test_a_batch_between_or_beyond_lies_on_the_line(measurement) -> None:
    found = measurement()  # 0.1 + 0.01 b
    assert step_seconds(found, 90) == 1.0
    assert step_seconds(found, 50) == pytest.approx(0.6)
    assert step_seconds(found, 190) == pytest.approx(2.0)
    assert memory_bytes(found, 190) == pytest.approx(490 * MIB)
    assert memory_bytes(found, 1) == pytest.approx(301 * MIB)
    assert memory_bytes(measurement(floor=900 * MIB), 190) == 900 * MIB


def test_accumulated_passes_cost_their_sum(measurement) -> None:
    assert step_seconds(measurement(), 100, 30) == pytest.approx(3 * 0.4 + 0.2)


def test_noise_in_the_probe_does_not_make_steps_absurd(measurement) -> None:
    falling = measurement(steps=(1.2, 1.0))
    assert step_seconds(falling, 900) == pytest.approx(7.0)  # 0.7 of ten times 1.0
    assert step_seconds(measurement(steps=(0.0, 1.0)), 900) <= 13.0


def test_one_batch_alone_is_taken_in_proportion(measurement) -> None:
    single = measurement(batches=(10,), steps=(0.2,), memory=(310 * MIB,), device_memory=(0,))
    assert step_seconds(single, 10) == 0.2
    assert linear((10,), (310.0,), 20) == 310.0


def test_what_does_not_fit_in_memory_is_done_in_smaller_passes(prediction) -> None:
    found = prediction(recipe(), room=int(360 * MIB / 0.9))  # 345 fit: 45 images
    assert found.microbatch == 45
    assert found.memory.value == pytest.approx(345 * MIB)
    assert found.parts["training"] > 1000
    nothing = prediction(recipe(), room=100 * MIB)
    assert nothing.microbatch is None
    assert nothing.memory.value > 100 * MIB


def test_data_that_the_probe_had_not_count(prediction) -> None:
    assert prediction(recipe(), more_bytes=64 * MIB).memory.value == 454 * MIB


def test_a_probe_on_a_device_counts_its_memory_too(prediction) -> None:
    found = prediction(recipe(batch=170), device_memory=(100 * MIB, 180 * MIB))
    assert found.device_memory is not None
    assert found.device_memory.value == pytest.approx(260 * MIB)
    assert found.pressing is found.device_memory


@given(seconds=st.floats(20, 1e6), batch=st.integers(1, 500))
def test_the_budget_within_a_limit_fits_and_one_step_more_does_not(measurement, prediction, seconds: float, batch: int) -> None:
    run = recipe(batch=batch, images=max(90_000, batch))
    images = images_within(seconds, run, measurement())
    assert images % batch == 0
    if images < 8 * batch:  # too short for the stages of the curriculum
        return

    def takes(n: int) -> float:
        return prediction(dataclasses.replace(run, images=n)).time.value

    assert takes(images) <= seconds * (1 + 1e-9)
    assert takes(images + batch) > seconds or takes(images + 13 * batch) > seconds  # marks move with the budget


def test_no_time_is_no_images(measurement) -> None:
    assert images_within(1.0, recipe(), measurement()) == 0


def test_cadence_is_the_loops(tmp_path: Path) -> None:
    """Marks of a real run are where the prediction has them."""
    pixels = (torch.arange(64 * 64) % 251).to(torch.uint8).reshape(64, 1, 8, 8)
    lines: list[dict[str, Any]] = []
    run = atonce.recipes.ict(960, 8, network="tiny", s1=20)
    options = {"evaluate_images": 20, "quiet": True, "device": "cpu"}
    atonce.train(run, ImageData(pixels), tmp_path / "run", callback=lines.append, **options)
    log_every, evaluate_every = cadence(960, 8, Options(evaluate_images=20))
    logged = [line["images"] for line in lines if "loss" in line]
    evaluated = [line["images"] for line in lines if "loss" not in line]
    assert logged == sorted({*range(log_every, 960, log_every), 960})
    assert evaluated == sorted({*range(evaluate_every, 960, evaluate_every), 960})


def test_students_of_progressive_distillation_are_sampled_in_fewer_and_fewer_calls(measurement) -> None:
    run = atonce.recipes.progressive(96_000, 96, teacher="t", network="tiny", teacher_steps=8)
    found = predict(run, measurement(calls=4), Wish(), network="tiny", settings={})
    # Marks every 83 batches: four in each of the three stages, with 4, 2 and 1 calls for 1,000 samples of 1 ms, and one at the
    # end; 13 times 2 s besides, in which the gradients of 96 images instead of 90 take 0.06 s more.
    assert found.parts["evaluations"] == pytest.approx(13 * 2.06 + (4 * 4 + 4 * 2 + 5 * 1) * 1.0)


def test_json_holds_everything(prediction) -> None:
    values = prediction(recipe(), Wish(price=1.0)).to_json()
    assert values["time"]["unit"] == "s"
    assert values["money"]["unit"] == "USD"
    assert values["measurement"]["steps"] == (0.2, 1.0)
