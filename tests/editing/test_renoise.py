"""Strokes, variations and local edits: where they start, what they keep, which noise they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce import editing as edit
from atonce.core.errors import InputError
from atonce.core.streams import Stream, normal
from atonce.model import ConsistencyModel

HALF = torch.zeros(8, 8, dtype=torch.bool)
HALF[:, 4:] = True


def images(n: int, channels: int = 1, seed: int = 0, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def levels_of(call: Callable[..., Tensor], *arguments: Any, **options: Any) -> list[float]:
    seen: list[dict[str, Any]] = []
    call(*arguments, callback=seen.append, **options)
    return [s["sigma"] for s in seen]


def test_strokes_at_the_papers_levels(model: ConsistencyModel, make: Callable[..., ConsistencyModel]) -> None:
    from atonce.preconditioning import Preconditioning

    torch.testing.assert_close(levels_of(edit.stroke, model, images(1)), [5.380004, 2.240440], rtol=0, atol=1e-9)
    wide = make(preconditioning=Preconditioning("boundary", 1.0, 0.002))
    torch.testing.assert_close(levels_of(edit.stroke, wide, images(1)), [2 * 5.380004, 2 * 2.240440], rtol=0, atol=1e-9)
    three = levels_of(edit.stroke, model, images(1), sigma=2.0, steps=3)
    torch.testing.assert_close(three, [2.0, 2.0 * 0.41643836, 2.0 * 0.41643836**2], rtol=0, atol=1e-6)
    assert levels_of(edit.stroke, model, images(1), sigmas=[3.0, 1.0]) == [3.0, 1.0]
    assert levels_of(edit.stroke, model, images(1), sigma=80.0, steps=1) == [80.0]
    # Levels below the end of the trajectories are left out.
    assert levels_of(edit.stroke, model, images(1), sigma=0.003, steps=5) == [0.003]


def test_a_stroke_is_noise_added_and_taken_away(model: ConsistencyModel) -> None:
    x = images(2)
    z = [normal(6, torch.arange(3, 5), (1, 8, 8), Stream.EDIT, k) for k in range(2)]
    one = model(x + 5.380004 * z[0], 5.380004).clamp(-1, 1)
    two = model(one + (2.240440**2 - 0.002**2) ** 0.5 * z[1], 2.240440).clamp(-1, 1)
    torch.testing.assert_close(edit.stroke(model, x, seed=6, first=3), two, rtol=0, atol=1e-6)


def test_less_noise_keeps_more(world: Callable[..., Any]) -> None:
    """With the exact consistency function: at a small level the image comes back, at a large one it is forgotten."""
    model = world(std=0.3)
    x = (0.3 * torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)

    def likeness(sigma: float) -> float:
        out = edit.stroke(model, x, sigma=sigma, steps=1)
        return float(torch.corrcoef(torch.stack([x.flatten(), out.flatten()]))[0, 1])

    found = [likeness(sigma) for sigma in (0.01, 0.3, 1.0, 80.0)]
    for value, sigma in zip(found, (0.01, 0.3, 1.0, 80.0), strict=True):
        assert abs(value - 0.3 / (0.3**2 + sigma**2) ** 0.5) < 0.05
    assert found == sorted(found, reverse=True)


def test_variations(model: ConsistencyModel) -> None:
    x = images(3)
    out = edit.variations(model, x, n=4, seed=2, first=5)
    assert out.shape == (3, 4, 1, 8, 8)
    one = edit.variations(model, x[1], n=4, seed=2, first=6)
    assert one.shape == (4, 1, 8, 8)
    torch.testing.assert_close(one, out[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(edit.variations(model, x, n=4, seed=2, first=5, batch=5), out, rtol=0, atol=1e-5)
    assert float((out[:, 0] - out[:, 1]).abs().max()) > 0.01
    z = normal(2, torch.tensor([6 * 4 + 2]), (1, 8, 8), Stream.EDIT, 0)
    expected = model(x[1:2] + 2 * model.sigma_data * z, 2 * model.sigma_data).clamp(-1, 1)
    torch.testing.assert_close(out[1, 2:3], expected, rtol=0, atol=1e-5)


def test_labels_of_variations(classes: ConsistencyModel) -> None:
    x = images(2)
    each = edit.variations(classes, x, n=3, labels=[2, 0])
    torch.testing.assert_close(each[0], edit.variations(classes, x, n=3, labels=2)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(each[1], edit.variations(classes, x, n=3, labels=0)[1], rtol=0, atol=1e-5)
    six = edit.variations(classes, x, n=3, labels=torch.tensor([2, 2, 2, 0, 0, 0]))
    assert torch.equal(six, each)
    # A guess is made once for each image, so its variations are of one class.
    seen: list[dict[str, Any]] = []
    edit.variations(classes, x, n=3, callback=seen.append)
    assert seen[-1]["labels"].reshape(2, 3).unique(dim=1).shape == (2, 1)


def test_local_edits_keep_the_rest(model: ConsistencyModel) -> None:
    x = images(3)
    out = edit.local(model, x, HALF, steps=3)
    assert torch.equal(out[..., :4], x[..., :4])
    assert float((out[..., 4:] - x[..., 4:]).abs().max()) > 0.01
    assert torch.equal(edit.local(model, x, HALF & ~HALF), x)
    three = levels_of(edit.local, model, x, HALF, steps=3)
    torch.testing.assert_close(three, [2.0, 0.2**0.5, 0.1], rtol=0, atol=1e-9)  # 4 to 0.2 sigma_data, evenly in ln sigma
    low = levels_of(edit.local, model, x, HALF, sigma=0.004, steps=4)
    assert low[0] == 0.004
    assert all(a > b > model.sigma_end for a, b in zip(low, low[1:], strict=False))


def test_a_local_edit_keeps_coarse_content_and_inpainting_does_not(world: Callable[..., Any]) -> None:
    model = world(std=0.3)
    x = (0.3 * torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True

    def likeness(out: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([x[..., 2:].flatten(), out[..., 2:].flatten()]))[0, 1])

    assert likeness(edit.local(model, x, mask, sigma=0.2, steps=1)) > 0.75
    assert abs(likeness(edit.inpaint(model, x, mask))) < 0.1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: edit.stroke(m["model"], images(1), sigma=0.002), "sigma is 0.002, must be above 0.002 and at most 80"),
        (lambda m: edit.stroke(m["model"], images(1), sigma=81.0), "sigma is 81, must be above"),
        (lambda m: edit.stroke(m["model"], images(1), sigma=float("nan")), "sigma is nan, must be a finite number"),
        (lambda m: edit.stroke(m["model"], images(1), sigma="much"), "sigma is 'much', must be one number"),
        (lambda m: edit.stroke(m["model"], images(1), sigma=1.0, sigmas=[1.0]), "sigma and sigmas are both given"),
        (lambda m: edit.stroke(m["model"], images(1), sigmas=[1.0, 2.0]), "they must descend"),
        (lambda m: edit.stroke(m["model"], images(1), steps=0), "steps is 0"),
        (lambda m: edit.stroke(m["model"], 2 * images(1)), "sketch has values from"),
        (lambda m: edit.stroke(m["model"], images(1, size=9)), "sketch has shape"),
        (lambda m: edit.stroke(m["denoiser"], images(1)), "this model is a denoiser"),
        (lambda m: edit.variations(m["model"], images(1), n=0), "n is 0, must be a whole number of at least 1"),
        (lambda m: edit.variations(m["model"], images(1), n=2.0), "n is 2.0"),
        (lambda m: edit.variations(m["model"], images(1), first=-1), "first is -1"),
        (lambda m: edit.variations(m["classes"], images(2), n=3, labels=[0, 1, 2]), "3 labels are given for 6 images"),
        (lambda m: edit.variations(m["classes"], images(2), n=3, seed=None), "seed is None"),
        (lambda m: edit.local(m["model"], images(1), HALF[:, :7]), "the mask has shape"),
        (lambda m: edit.local(m["model"], images(1), HALF.int()), "the mask is torch.int32"),
        (lambda m: edit.local(m["denoiser"], images(1), HALF), "this model is a denoiser"),
    ],
)
def test_refused_in_one_line(
    model: ConsistencyModel, classes: ConsistencyModel, denoiser: ConsistencyModel, call: Any, text: str
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call({"model": model, "classes": classes, "denoiser": denoiser})
    assert "\n" not in str(caught.value)
