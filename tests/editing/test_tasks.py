"""Inpaint, colourise, upscale and restore: what is kept, what repeats, what is told and what is refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce import editing as edit
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel

HALF = torch.zeros(8, 8, dtype=torch.bool)
HALF[:, 4:] = True


def images(n: int, channels: int = 1, seed: int = 0, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- what is known is kept


@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans(), st.integers(1, 3))
def test_pixels_outside_the_mask_keep_every_bit(model: ConsistencyModel, seed: int, n: int, each: bool, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = images(n, seed=seed)
    mask = torch.rand(n if each else 1, 1, 8, 8, generator=generator) < 0.5
    out = edit.inpaint(model, x, mask if each else mask[0, 0], steps=steps, seed=seed)
    kept = ~mask.expand(n, 1, 8, 8)
    assert torch.equal(out[kept], x[kept])
    assert out.dtype == torch.float32
    assert float(out.abs().max()) <= 1
    if bool(mask.any()):
        assert not torch.equal(out, x)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3))
def test_patch_means_are_kept(model: ConsistencyModel, seed: int, factor: int, steps: int) -> None:
    small = images(2, seed=seed, size=8 // factor)
    small[:, :, :1] = -1.0  # black patches leave no room for detail
    seen: list[dict[str, Any]] = []
    out = edit.upscale(model, small, factor, steps=steps, seed=seed, callback=seen.append)
    assert out.shape == (2, 1, 8, 8)
    assert float((edit.to_averages(seen[-1]["free"], factor) - small).abs().max()) < 1e-5
    assert float((edit.to_averages(out, factor) - small).abs().max()) < 1e-5
    assert abs(seen[-1]["clamped"] - float((edit.to_averages(out, factor) - small).abs().max())) < 1e-6
    assert seen[-1]["clamped"] <= seen[-1]["bare"] + 1e-6
    assert float(out.abs().max()) <= 1


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_grey_values_are_kept(colour: ConsistencyModel, seed: int, steps: int) -> None:
    gray = 0.9 * images(2, seed=seed)
    seen: list[dict[str, Any]] = []
    out = edit.colorize(colour, gray, steps=steps, seed=seed, callback=seen.append)
    assert out.shape == (2, 3, 8, 8)
    assert float((edit.to_grey(seen[-1]["free"]) - gray).abs().max()) < 1e-5
    assert float((edit.to_grey(out) - gray).abs().max()) < 1e-5
    assert seen[-1]["clamped"] < 1e-5
    assert float(out.abs().max()) <= 1


def test_combinations(colour: ConsistencyModel) -> None:
    """A grey photo with a hole; colours outside a mask and grey everywhere; a small grey picture."""
    x = 0.8 * images(2, 3)
    kept = ~HALF.expand(2, 3, 8, 8)

    out = edit.restore(colour, x, edit.pixels(HALF) & edit.grey(), steps=3)
    error = (edit.to_grey(out) - edit.to_grey(x)).abs()
    assert float(error[:, :, :, :4].max()) < 1e-3
    assert float(error[:, :, :, 4:].max()) > 0.05

    out = edit.restore(colour, x, edit.pixels(HALF) | edit.grey(), steps=3)
    assert torch.equal(out[kept], x[kept])
    assert float((edit.to_grey(out) - edit.to_grey(x)).abs().max()) < 1e-3
    assert float((out - x).abs().max()) > 0.05

    out = edit.restore(colour, x, edit.grey() & edit.averages(4), steps=3)
    small = edit.to_averages(edit.to_grey(x), 4)
    assert float((edit.to_averages(edit.to_grey(out), 4) - small).abs().max()) < 1e-4


def test_three_equal_channels_are_a_grey_picture(colour: ConsistencyModel) -> None:
    gray = images(2)
    assert torch.equal(edit.colorize(colour, gray.expand(2, 3, 8, 8), steps=2), edit.colorize(colour, gray, steps=2))


def test_an_empty_mask_gives_the_image_without_a_call(model: ConsistencyModel) -> None:
    x, seen = images(2), []
    out = edit.inpaint(model, x, torch.zeros(8, 8, dtype=torch.bool), callback=seen.append)
    assert torch.equal(out, x)
    assert out is not x
    assert not seen


def test_a_full_mask_is_a_sample(model: ConsistencyModel) -> None:
    """What lies under the mask is not looked at."""
    mask = torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(edit.inpaint(model, images(2), mask), edit.inpaint(model, images(2, seed=5), mask))


def test_what_is_under_the_mask_plays_no_part(model: ConsistencyModel) -> None:
    x = images(2)
    other = torch.where(HALF, images(2, seed=5), x)
    assert torch.equal(edit.inpaint(model, x, HALF, steps=3), edit.inpaint(model, other, HALF, steps=3))


# ---- ranks, batches, seeds, threads

TASKS: dict[str, Callable[..., Tensor]] = {
    "inpaint": lambda model, x, **o: edit.inpaint(model, x, HALF, **o),
    "upscale": lambda model, x, **o: edit.upscale(model, edit.to_averages(x, 2), 2, **o),
    "restore": lambda model, x, **o: edit.restore(model, x, edit.averages(4), **o),
    "stroke": lambda model, x, **o: edit.stroke(model, x, **o),
    "local": lambda model, x, **o: edit.local(model, x, HALF, **o),
    "outpaint": lambda model, x, **o: edit.outpaint(model, x[..., 2:6, 2:6], (8, 12), **o),
}


@pytest.mark.parametrize("task", TASKS)
def test_rank_batch_index_and_seed(model: ConsistencyModel, task: str) -> None:
    run, x = TASKS[task], images(5)
    whole = run(model, x, steps=2, seed=3, first=7)
    assert torch.equal(run(model, x, steps=2, seed=3, first=7), whole)
    for batch in (1, 2, 3):
        torch.testing.assert_close(run(model, x, steps=2, seed=3, first=7, batch=batch), whole, rtol=0, atol=1e-5)
    one = run(model, x[2], steps=2, seed=3, first=9)
    assert one.dim() == 3
    torch.testing.assert_close(one, whole[2], rtol=0, atol=1e-5)
    assert float((run(model, x, steps=2, seed=4, first=7) - whole).abs().max()) > 0.01
    assert float((run(model, x, steps=2, seed=3, first=8) - whole).abs().max()) > 0.01
    assert run(model, x[:0], steps=2).shape == whole[:0].shape


def test_no_global_random_state(model: ConsistencyModel) -> None:
    states = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    for run in TASKS.values():
        run(model, images(2), steps=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[union-attr]  # noqa: NPY002


def test_threads_do_not_disturb_each_other(model: ConsistencyModel) -> None:
    expected = [edit.inpaint(model, images(2, seed=k), HALF, seed=k, steps=3) for k in range(4)]
    results: dict[int, Tensor] = {}

    def work(k: int) -> None:
        results[k] = edit.inpaint(model, images(2, seed=k), HALF, seed=k, steps=3)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        assert torch.equal(results[k], expected[k])


def test_edits_and_samples_do_not_share_noise(model: ConsistencyModel) -> None:
    """The variation of a sample made with the same seed would else be the sample again."""
    full = torch.ones(8, 8, dtype=torch.bool)
    assert not torch.allclose(edit.inpaint(model, images(1), full, steps=1, seed=0), model.sample(1, seed=0), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_become_single(model: ConsistencyModel, dtype: torch.dtype) -> None:
    x = images(2).to(dtype)
    out = edit.inpaint(model, x, HALF, steps=2)
    assert out.dtype == torch.float32
    assert torch.equal(out[:, :, :, :4], x.float()[:, :, :, :4])


def test_the_given_image_is_not_written_to(model: ConsistencyModel) -> None:
    x = images(3)
    before = x.clone()
    for run in TASKS.values():
        run(model, x, steps=2)
    assert torch.equal(x, before)


# ---- noise levels and reports


def test_what_the_callback_is_told(model: ConsistencyModel) -> None:
    seen: list[dict[str, Any]] = []
    edit.inpaint(model, images(3), HALF, sigmas=[80.0, 2.0], batch=2, first=4, callback=seen.append)
    assert [(s["step"], s["sigma"], s["calls"], s["first"], s["done"]) for s in seen] == [
        (0, 80.0, 1, 4, 0),
        (1, 2.0, 2, 4, 2),
        (0, 80.0, 1, 6, 2),
        (1, 2.0, 2, 6, 3),
    ]
    assert [s["labels"] for s in seen] == [None] * 4
    assert [s.get("clamped") for s in seen] == [None, 0.0, None, 0.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 64])
def test_default_levels(model: ConsistencyModel, steps: int) -> None:
    seen: list[dict[str, Any]] = []
    edit.inpaint(model, images(1), HALF, steps=steps, callback=seen.append)
    levels = [s["sigma"] for s in seen]
    assert len(levels) == steps
    assert levels[0] == 80.0
    assert all(a > b > model.sigma_end for a, b in zip(levels, levels[1:], strict=False))
    if steps > 2:
        assert abs(levels[1] - 5 * model.sigma_data) < 1e-9
        assert abs(levels[-1] - 0.2 * model.sigma_data) < 1e-9
        ratios = [b / a for a, b in zip(levels[1:], levels[2:], strict=False)]
        assert max(ratios) - min(ratios) < 1e-9


def test_levels_of_a_model_that_knows_little_noise(make: Callable[..., ConsistencyModel]) -> None:
    model = make(sigma_max=1.0)
    seen: list[dict[str, Any]] = []
    edit.inpaint(model, images(1), HALF, steps=6, callback=seen.append)
    levels = [s["sigma"] for s in seen]
    assert levels[:2] == [1.0, 0.5]
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))


def test_a_flow_map_edits_too(make: Callable[..., ConsistencyModel]) -> None:
    model = make(kind="flow_map")
    assert torch.equal(edit.inpaint(model, images(2), HALF, steps=2)[:, :, :, :4], images(2)[:, :, :, :4])


# ---- classes


def test_labels_reach_the_network(classes: ConsistencyModel) -> None:
    x = images(3)
    outs = [edit.inpaint(classes, x, HALF, labels=k, steps=2) for k in range(3)]
    assert float((outs[0] - outs[1]).abs().max()) > 0.01
    mixed = edit.inpaint(classes, x, HALF, labels=[0, 1, 2], steps=2, batch=2)
    for k in range(3):
        torch.testing.assert_close(mixed[k], outs[k][k], rtol=0, atol=1e-5)
    assert torch.equal(edit.inpaint(classes, x, HALF, labels=torch.tensor([0, 1, 2]), steps=2, batch=2), mixed)


def test_missing_labels_are_guessed(classes: ConsistencyModel) -> None:
    """The class that explains what is known best: that of an image that the model made is found again."""
    x = classes.sample(12, 1, 5, labels=[0, 1, 2] * 4)
    seen: list[dict[str, Any]] = []
    out = edit.inpaint(classes, x, HALF, steps=2, callback=seen.append)
    guess = seen[-1]["labels"]
    assert seen[-1]["calls"] == 2 + 3 * 3
    assert torch.equal(out, edit.inpaint(classes, x, HALF, steps=2, labels=guess))
    parts: list[dict[str, Any]] = []
    edit.inpaint(classes, x, HALF, steps=2, batch=5, callback=parts.append)
    assert torch.equal(torch.cat([p["labels"] for p in parts[::2]]), guess)


def test_without_a_class_where_the_model_was_trained_for_it(dropped: ConsistencyModel) -> None:
    seen: list[dict[str, Any]] = []
    out = edit.inpaint(dropped, images(2), HALF, steps=2, callback=seen.append)
    assert (seen[-1]["labels"], seen[-1]["calls"]) == (None, 2)
    torch.testing.assert_close(out, edit.inpaint(dropped, images(2), HALF, steps=2, labels=-1), rtol=0, atol=1e-5)


# ---- what is refused

LINES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: edit.inpaint(m["model"], images(1).mul(127).byte(), HALF), "image is torch.uint8, must be float"),
    (lambda m: edit.inpaint(m["model"], [[0.0]], HALF), "image is list, must be a float tensor"),
    (lambda m: edit.inpaint(m["model"], images(1)[0, 0], HALF), r"image has shape \[8, 8\], must be \[1, 8, 8\] or"),
    (lambda m: edit.inpaint(m["model"], images(1, 3), HALF), r"image has shape \[1, 3, 8, 8\], this model takes \[1, 8, 8\]"),
    (lambda m: edit.inpaint(m["model"], images(1, size=7), HALF), "this model takes"),
    (lambda m: edit.inpaint(m["model"], 2 * images(1), HALF), "must be within -1 and 1: scale it"),
    (lambda m: edit.inpaint(m["model"], images(1) / 0.0, HALF), "values that are not finite"),
    (lambda m: edit.inpaint(m["model"], images(1) * float("nan"), HALF), "values that are not finite"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF.float()), "the mask is torch.float32, must be a bool tensor"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF[:7]), r"the mask has shape \[1, 1, 7, 8\]"),
    (lambda m: edit.inpaint(m["model"], images(3), HALF.expand(2, 1, 8, 8)), "or one for each image"),
    (lambda m: edit.inpaint(m["model"], images(3), torch.zeros(2, 1, 8, 8, dtype=torch.bool)), "or one for each image"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, steps=0), "steps is 0, must be a whole number of at least 1"),
    (lambda m: edit.inpaint(m["model"], images(1), ~HALF & HALF, steps=0), "steps is 0"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, sigmas=[]), "sigmas is empty"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, sigmas=[1.0, 2.0]), "they must descend"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, sigmas=[81.0]), "at most 80"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, sigmas=[float("nan")]), "each must be above"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, seed=0.5), "seed is 0.5, must be a whole number"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, first=-1), "first is -1, must be a whole number of at least 0"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, batch=0), "batch is 0, must be a whole number of at least 1"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, labels=1), "this model is unconditional: leave them out"),
    (lambda m: edit.inpaint(m["model"], images(1), HALF, guidance=2.0), "was not trained with guidance"),
    (lambda m: edit.inpaint(m["classes"], images(1), HALF, labels=3), "label 3 is out of range"),
    (lambda m: edit.inpaint(m["classes"], images(2), HALF, labels=[0, 1, 2]), "3 labels are given for 2 images"),
    (lambda m: edit.inpaint(m["classes"], images(2), HALF, guidance=2.0), "was not trained with guidance"),
    (lambda m: edit.inpaint(m["denoiser"], images(1), HALF), "this model is a denoiser: editing needs a consistency model"),
    (lambda m: edit.colorize(m["denoiser"], images(1)), "this model is a denoiser"),
    (lambda m: edit.colorize(m["model"], images(1)), "colourising needs a model of 3 channels, this one makes 1"),
    (lambda m: edit.colorize(m["colour"], images(1, 3)), "three channels that differ"),
    (lambda m: edit.colorize(m["colour"], images(1, 2)), r"gray has shape \[1, 2, 8, 8\], this model takes \[1, 8, 8\]"),
    (lambda m: edit.colorize(m["colour"], 2 * images(1)), "gray has values from"),
    (lambda m: edit.colorize(m["colour"], images(1), weights=(1.0, 1.0)), "grey values of 2 channels are known"),
    (lambda m: edit.colorize(m["colour"], images(1), weights=(0.0, 0.0, 0.0)), "grey weights are"),
    (lambda m: edit.upscale(m["model"], images(1, size=4), 3), "factor 3 does not divide images of 8 x 8"),
    (lambda m: edit.upscale(m["model"], images(1, size=4), 0), "factor is 0"),
    (lambda m: edit.upscale(m["model"], images(1, size=4), 4), r"small has shape \[1, 1, 4, 4\], this model takes \[1, 2, 2\]"),
    (lambda m: edit.restore(m["model"], images(1), edit.grey()), "grey values of 3 channels are known"),
    (lambda m: edit.restore(m["model"], images(1), edit.averages(5)), "factor 5 does not divide"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), LINES, ids=[text for _, text in LINES])
def test_refused_in_one_line(
    model: ConsistencyModel,
    colour: ConsistencyModel,
    classes: ConsistencyModel,
    denoiser: ConsistencyModel,
    call: Callable[[Any], Any],
    text: str,
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call({"model": model, "colour": colour, "classes": classes, "denoiser": denoiser})
    assert "\n" not in str(caught.value)


def test_what_lies_under_the_mask_may_be_anything(model: ConsistencyModel) -> None:
    image = torch.zeros(1, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    holes = image.clone()
    holes[:, mask] = float("nan")
    loud = image.clone()
    loud[:, mask] = 7.0
    expected = edit.inpaint(model, image, mask, steps=2)
    assert torch.equal(edit.inpaint(model, holes, mask, steps=2), expected)
    assert torch.equal(edit.inpaint(model, loud[None], mask, steps=2)[0], expected)
    with pytest.raises(InputError, match="values that are not finite"):
        edit.inpaint(model, holes, ~mask, steps=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"labels": 3}, "unconditional"), ({"seed": 0.5}, "seed is 0.5"), ({"first": -1}, "first"), ({"batch": 0}, "batch is 0")],
)
def test_an_empty_mask_checks_all_the_same(model: ConsistencyModel, options: dict[str, Any], text: str) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for function in (edit.inpaint, edit.local):
        with pytest.raises(InputError, match=text):
            function(model, torch.zeros(1, 8, 8), mask, **options)


def test_what_is_known_must_say_so(model: ConsistencyModel) -> None:
    with pytest.raises(InputError, match="known is NoneType, must be what is known"):
        edit.restore(model, torch.zeros(1, 8, 8), None)
    with pytest.raises(TypeError):
        edit.pixels(torch.zeros(8, 8, dtype=torch.bool)) & 3
