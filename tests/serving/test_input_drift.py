"""Drift of the pictures for edits: found when it is there, silent when not, and no picture is kept."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from atonce.serving.input_drift import (
    BASELINE,
    CARD_KEY,
    EVERY,
    LEAST,
    WINDOW,
    InputDrift,
    data_statistics,
    facts,
    stability_index,
)


def pictures(n: int, seed: int, *, bright: float = 0.0, blur: bool = False, colour: bool = True) -> torch.Tensor:
    """Blocks of random brightness with noise, RGB 16 x 16."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3 if colour else 1, 4, 4, generator=g) * 0.3 + bright
    noise = 0.15 * torch.randn(n, 3 if colour else 1, 16, 16, generator=g)
    x = (torch.nn.functional.interpolate(coarse, 16) + noise).expand(n, 3, 16, 16)
    return (torch.nn.functional.avg_pool2d(x, 3, 1, 1) if blur else x).clamp(-1, 1)


def test_facts_have_the_values_that_one_can_work_out() -> None:
    flat = torch.zeros(3, 8, 8)
    found = facts(flat)
    assert found["mean"] == pytest.approx(0.5)
    assert found["spread"] == found["sharpness"] == 0
    assert found["grey"] == 1
    half = torch.zeros(1, 8, 8, dtype=torch.uint8)
    half[:, :, 4:] = 255
    found = facts(half)
    assert "grey" not in found
    assert (found["mean"], found["spread"]) == (0.5, 0.5)
    assert found["sharpness"] == pytest.approx(0.5 * (8 / 56))  # one of seven steps across, none down
    assert [found[f"cell{i}"] for i in range(4)] == [0, 0, 1, 1]
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0, :, :2] = 200
    assert facts(red)["grey"] == 0.5
    assert facts(torch.stack([half, half])) == facts(half)


def test_the_index_has_its_known_values() -> None:
    then = np.arange(1000.0)
    assert stability_index(then, then)[0] == 0
    now = np.arange(1000.0) % 500  # twice as many below the median, none above
    value, chance = stability_index(now, then)
    p, q = (200.5 / 1005, 0.5 / 1005), 100.5 / 1005
    assert value == pytest.approx(sum(5 * (each - q) * np.log(each / q) for each in p))
    assert chance == pytest.approx(9 * 2 / 1000)
    generator = np.random.Generator(np.random.PCG64(0))
    draws = [stability_index(generator.normal(size=200), generator.normal(size=1000)) for _ in range(300)]
    assert np.mean([value for value, _ in draws]) == pytest.approx(draws[0][1], rel=0.15)


def feed(watch: InputDrift, images: torch.Tensor, name: str = "m") -> list[bool]:
    return [found.alarm for image in images if (found := watch.add(name, facts(image))) is not None]


@pytest.mark.parametrize("change", [{"bright": 0.5}, {"blur": True}, {"colour": False}])
def test_a_change_is_found_and_forgotten_when_it_is_the_new_habit(change: dict[str, object]) -> None:
    watch = InputDrift()
    assert not any(feed(watch, pictures(LEAST + WINDOW + 100, 1)))
    alarms = feed(watch, pictures(WINDOW + 2 * EVERY, 2, **change))
    assert alarms[-1]
    assert not feed(watch, pictures(BASELINE + 2 * WINDOW, 3, **change))[-1]


def test_no_alarm_where_nothing_changes() -> None:
    watch = InputDrift()
    found = feed(watch, pictures(4000, 4))
    assert len(found) > 60
    assert not any(found)


def test_a_few_strange_pictures_are_no_drift() -> None:
    watch = InputDrift()
    feed(watch, pictures(700, 5))
    assert not any(feed(watch, torch.cat([pictures(10, 6, bright=1.0), pictures(300, 7)])))


def test_the_models_own_data_from_the_card() -> None:
    card = {CARD_KEY: data_statistics((pictures(600, 8) * 127.5 + 128).clamp(0, 255).to(torch.uint8))}
    watch = InputDrift()
    assert watch.expect("m", card)
    assert not any(feed(watch, pictures(600, 9)))
    watch.expect("m", card)
    # Other pictures from the first on: a baseline of what came before would never tell.
    assert feed(watch, pictures(WINDOW + 2 * EVERY, 10, bright=0.6))[-1]
    assert not watch.expect("m", {})
    assert not watch.expect("m", {CARD_KEY: {"mean": "?"}})
    assert not any(feed(watch, pictures(600, 11)))


def test_what_is_not_finite_is_left_out_and_models_are_kept_apart() -> None:
    watch = InputDrift()
    for _ in range(600):
        assert watch.add("m", {"mean": float("nan")}) is None
    feed(watch, pictures(600, 12), "a")
    assert not any(feed(watch, pictures(600, 13, bright=0.6), "b"))


def test_no_picture_is_kept() -> None:
    watch = InputDrift()
    feed(watch, pictures(600, 14))
    seen: set[int] = set()
    todo: list[object] = [watch]
    kept = 0
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type) or callable(each):
            continue
        seen.add(id(each))
        assert not isinstance(each, torch.Tensor)
        if isinstance(each, np.ndarray):
            kept += each.size
        elif isinstance(each, float):
            kept += 1
        else:
            todo.extend(gc.get_referents(each))
    assert kept < 600 * 6  # five numbers for each picture, and two moments of 16 cells for all of them
