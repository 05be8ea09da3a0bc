"""The algorithm line by line, what it adds and what it tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.editing.algorithm import edit
from atonce.editing.fit import into_range
from atonce.editing.operators import averages, grey, nothing, pixels

NOISE = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGE = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
MASK = torch.zeros(4, 4, dtype=torch.bool)
MASK[:, 2:] = True


def f(x: Tensor, sigma: float) -> Tensor:
    return 3 * torch.tanh(x / (1 + sigma))


@pytest.mark.parametrize("known", [pixels(MASK), grey(), averages(2), nothing(), grey() & pixels(MASK)])
@pytest.mark.parametrize("end", [0.0, 0.002, 0.1])
def test_line_by_line(known: Any, end: float) -> None:
    out, info = edit(f, known, IMAGE, [80.0, 3.0, 0.821], lambda i: NOISE[i], end)

    def back(x: Tensor) -> Tensor:
        x = x.clamp(-1, 1)
        return x - known.project(x) + known.project(IMAGE)

    x = back(f(known.project(IMAGE) + 80.0 * NOISE[0], 80.0))
    x = back(f(x + (9.0 - end**2) ** 0.5 * NOISE[1], 3.0))
    x = back(f(x + (0.821**2 - end**2) ** 0.5 * NOISE[2], 0.821))
    torch.testing.assert_close(out, into_range(x, known, IMAGE, (-1, 1)), rtol=0, atol=1e-12)
    assert (info.sigmas, info.calls) == ((80.0, 3.0, 0.821), 3)


def test_the_first_call_sees_noise_of_its_level() -> None:
    """The published notebook adds none, for it takes an index for a noise level."""
    seen: list[Tensor] = []

    def blind(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    edit(blind, pixels(MASK), IMAGE, [5.0, 0.5], lambda i: NOISE[i], 0.3)
    torch.testing.assert_close(seen[0], pixels(MASK).project(IMAGE) + 5.0 * NOISE[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(seen[1], pixels(MASK).project(IMAGE) + 0.4 * NOISE[1], rtol=0, atol=1e-15)


def test_a_start_of_ones_own() -> None:
    """Strokes: nothing is known, but the first state is the sketch under noise."""
    out, _ = edit(f, nothing(), IMAGE, [5.0], lambda i: NOISE[i], 0.002, start=IMAGE)
    torch.testing.assert_close(out, f(IMAGE + 5.0 * NOISE[0], 5.0).clamp(-1, 1))


def test_without_a_range_nothing_is_clamped() -> None:
    out, info = edit(f, nothing(), IMAGE, [0.5], lambda i: 10 * NOISE[i], 0.0, clip=None)
    assert float(out.abs().max()) > 2
    assert (info.clamped, info.bare) == (0.0, 0.0)


def test_what_the_callback_is_told() -> None:
    seen: list[dict[str, Any]] = []
    out, info = edit(f, averages(2), IMAGE, [80.0, 3.0], lambda i: NOISE[i], 0.002, callback=seen.append)
    assert [(s["step"], s["sigma"], s["calls"]) for s in seen] == [(0, 80.0, 1), (1, 3.0, 2)]
    assert "clamped" not in seen[0]
    assert torch.equal(seen[1]["x0"], out)
    assert (seen[1]["clamped"], seen[1]["bare"]) == (info.clamped, info.bare)
    # Before the range was imposed the means were exact; a bare clamp would have lost them.
    known = averages(2)
    assert known.error(seen[0]["x0"], IMAGE) < 1e-14
    assert known.error(seen[1]["free"], IMAGE) < 1e-14
    assert info.bare == known.error(seen[1]["free"].clamp(-1, 1), IMAGE)
    assert info.bare > 0.05
    assert info.clamped == known.error(out, IMAGE)
    assert info.clamped < 1e-5


def test_masks_lose_nothing_to_the_range() -> None:
    _, info = edit(f, pixels(MASK), IMAGE, [80.0, 3.0], lambda i: NOISE[i], 0.002)
    assert (info.clamped, info.bare) == (0.0, 0.0)
