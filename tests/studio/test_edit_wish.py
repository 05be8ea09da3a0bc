"""From controls to requests: defaults, what is missing, what a model cannot do."""

from __future__ import annotations

import base64
import dataclasses

import pytest

import atonce
from atonce.core.errors import InputError
from atonce.serving.errors import ServiceError
from atonce.serving.schemas import EDITS
from atonce.studio.edit_wish import (
    BETWEEN,
    FITS,
    GUESS,
    TASKS,
    Wish,
    factors,
    level,
    possible,
    request_of,
    title_of,
    whole,
    wish_of,
)

VALUES = {
    "model": "digits", "task": "inpaint", "seed": 3, "steps": 0, "label": GUESS, "sigma": "", "n": 8, "factor": 2,
    "height": 0, "width": 0, "top": "", "left": "", "fit": next(iter(FITS)), "between": next(iter(BETWEEN)),
    "seed_a": 1, "seed_b": 2, "iterations": 60,
}  # fmt: skip


def test_every_task_is_an_edit_of_the_api():
    assert set(TASKS) <= set(EDITS)


def test_empty_fields_are_the_models_own():
    wish = wish_of(VALUES)
    assert (wish.seed, wish.steps, wish.label, wish.sigma, wish.size, wish.place, wish.fit) == (
        3,
        None,
        None,
        None,
        None,
        None,
        "crop",
    )
    assert wish_of(VALUES | {"task": "outpaint", "height": 12, "top": "2", "left": "0"}).size == (12, 0)
    assert wish_of(VALUES | {"task": "outpaint", "top": "2", "left": "0"}).place == (2, 0)
    assert wish_of(VALUES | {"task": "variations", "sigma": "0,5"}).sigma == 0.5
    assert wish_of(VALUES | {"task": "interpolate", "between": "two seeds"}).seeds == (1, 2)
    assert wish_of(VALUES | {"between": "two seeds"}).seeds is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": None}, "the seed is empty"),
        ({"seed": 1.5}, "the seed is 1.5, must be a whole number"),
        ({"task": "paint"}, "there is no task 'paint'"),
        ({"task": "denoise", "sigma": "much"}, "the noise level is 'much'"),
        ({"task": "denoise", "sigma": "-1"}, "the noise level is -1, must be a number above 0"),
        ({"task": "denoise", "sigma": "inf"}, "must be a number above 0"),
        ({"n": "x"}, "the number of pictures is 'x'"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        wish_of(VALUES | changes)


def test_whole_and_level():
    assert [whole(value, "x") for value in (3, 3.0, "3", "-2")] == [3, 3, 3, -2]
    for value in (None, "", True, float("nan"), float("inf")):
        with pytest.raises(InputError, match="x is"):
            whole(value, "x")
    assert (level(None), level(" "), level("2")) == (None, None, 2.0)


def test_requests_carry_what_each_task_needs():
    png = b"\x89PNG..."
    text = base64.b64encode(png).decode()
    wish = Wish("digits", "inpaint", seed=5, steps=4)
    found = request_of(wish, [png], "data:image/png;base64,xx")
    assert (found.image, found.mask, found.seed, found.steps, found.fit) == (text, "data:image/png;base64,xx", 5, 4, "crop")
    assert request_of(dataclasses.replace(wish, task="upscale", factor=4, fit="none"), [png]).fit == "crop"
    out = request_of(dataclasses.replace(wish, task="outpaint", size=(12, 10), place=(1, 2)), [png])
    assert (out.size, out.place) == ([12, 10], [1, 2])
    between = request_of(dataclasses.replace(wish, task="interpolate", n=5, iterations=30), [png, png])
    assert (between.n, between.iterations, len(between.images)) == (5, 30, 2)
    seeds = request_of(dataclasses.replace(wish, task="interpolate", n=4, seeds=(4, 9)), [])
    assert (seeds.seeds, seeds.images) == ([4, 9], None)
    assert request_of(dataclasses.replace(wish, task="variations", n=3, sigma=1.5), [png]).sigma == 1.5


@pytest.mark.parametrize(
    ("wish", "pictures", "error", "message"),
    [
        (Wish("digits", "inpaint"), [b"x"], InputError, "nothing is marked"),
        (Wish("digits", "variations"), [], InputError, "there is no picture yet"),
        (Wish("digits", "interpolate", n=4), [b"x"], InputError, "there is only one picture"),
        (Wish("digits", "variations", n=0), [b"x"], ServiceError, "n is 0"),
        (Wish("digits", "variations", steps=-1), [b"x"], ServiceError, "steps is -1"),
        (Wish("digits", "outpaint", size=(0, 5000)), [b"x"], ServiceError, "size"),
        (Wish("digits", "interpolate", n=1, seeds=(1, 2)), [], ServiceError, "n is 1"),
    ],
)
def test_what_is_missing_or_out_of_range_is_one_line(wish, pictures, error, message):
    with pytest.raises(error, match=message) as found:
        request_of(wish, pictures)
    assert "\n" not in str(found.value)


def test_what_a_model_cannot_do_is_said():
    digits = atonce.load("digits")
    assert {task for task in TASKS if possible(digits, task)} == {"colorize"}
    assert "needs a model of 3 channels" in possible(digits, "colorize")
    network = dataclasses.replace(digits.config.network, image_channels=3)
    colour = atonce.ConsistencyModel(dataclasses.replace(digits.config, network=network))
    assert possible(colour, "colorize") == ""
    assert factors(digits) == [2, 4]
    assert factors(atonce.load("fashion-mnist")) == [2, 4, 7, 14]


def test_titles_say_task_class_and_seed():
    wish = Wish("fashion-mnist", "inpaint", seed=3)
    assert title_of(wish, ["T-shirt/top", "Trouser"], {"label": 1}) == "Fill in, Trouser, seed 3"
    assert title_of(Wish("digits", "interpolate", seeds=(1, 2)), None, {}) == "Between two, seeds 1 to 2"
    assert title_of(Wish("digits", "denoise"), None, {"label": None}) == "Remove noise"
