"""Jumps: one call from each noise level to the next, without fresh noise, exact where the map is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.noise.worlds import Gaussian
from atonce.sampling.jump import jump
from atonce.sampling.times import jump_times

WORLD = Gaussian(0.0, 0.5)


def noise(step: int) -> Tensor:
    assert step == 0  # nothing else is ever drawn
    return torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.8], [80.0, 5.0, 1.0, 0.1]])
def test_the_exact_map_gives_the_same_whatever_the_steps(sigmas: list[float]) -> None:
    seen: list[dict[str, Any]] = []
    out = jump(lambda x, s, to: WORLD.solution(x, s, to), noise, sigmas, 0.0, None, seen.append)
    torch.testing.assert_close(out, WORLD.solution(80.0 * noise(0), 80.0, 0.0), rtol=1e-12, atol=1e-14)
    assert [info["sigma"] for info in seen] == sigmas
    assert [info["calls"] for info in seen] == list(range(1, len(sigmas) + 1))
    assert torch.equal(seen[-1]["x0"], out)


def test_only_the_image_is_clamped() -> None:
    states: list[Tensor] = []

    def f(x: Tensor, sigma: float, to: float) -> Tensor:
        states.append(x)
        return x * (1 + to) / (1 + sigma)

    out = jump(f, noise, [80.0, 40.0], 0.0, (-0.01, 0.01))
    assert float(states[1].abs().max()) > 1
    assert float(out.abs().max()) == pytest.approx(0.01)


def test_default_times_are_even_in_flow_time() -> None:
    assert jump_times(1, 80.0) == [80.0]
    times = jump_times(4, 80.0)
    flow = [s / (1 + s) for s in times]
    assert flow == pytest.approx([80 / 81 * k / 4 for k in (4, 3, 2, 1)], rel=1e-12)
    with pytest.raises(InputError, match="steps is 0"):
        jump_times(0, 80.0)


def test_no_levels_are_refused() -> None:
    with pytest.raises(InputError, match="sigmas is empty"):
        jump(lambda x, s, to: x, noise, [], 0.0)
