from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.core.images import to_uint8
from atonce.core.streams import Stream, normal
from atonce.evaluation.extractors import pixels
from atonce.evaluation.frechet import BLOCKS, FeatureStatistics, Moments, frechet_gain, frechet_metric
from atonce.evaluation.gain import step_changes, step_gain

SHAPE = (1, 3, 3)


def floats(first: int, count: int, steps: int) -> Tensor:
    """Better with every step up to the third, which changes the images and improves nothing."""
    index = torch.arange(first, first + count)
    good, bad = (0.3 * normal(0, index, SHAPE, Stream.SAMPLE, step) for step in (0, 1))
    if steps == 3:
        return -good
    return (good + bad / steps**2 if steps < 3 else good).clamp(-1, 1)


def data(n: int = 2000) -> FeatureStatistics:
    found = FeatureStatistics(9)
    found.update(pixels(SHAPE)(to_uint8(0.3 * normal(9, torch.arange(n), SHAPE, Stream.WORLD))))
    return found


def reference() -> Moments:
    return data().moments()


def test_what_each_step_is_worth() -> None:
    found = step_gain(floats, 3, 1000, pixels(SHAPE), reference(), probes=100, batch=300)
    assert set(found) == {f"step_frechet:{k}" for k in (1, 2, 3)} | {
        f"{w}:{k}" for w in ("step_gain", "step_change") for k in (2, 3)
    }
    second, third = found["step_gain:2"], found["step_gain:3"]
    assert second.value == pytest.approx(found["step_frechet:1"].value - found["step_frechet:2"].value)
    assert second.interval is not None
    assert third.interval is not None
    assert second.interval[0] > 0  # a gain
    assert abs(third.value) < 0.1 * second.value
    assert found["step_change:3"].value > found["step_change:2"].value > 0.1  # a change without a gain
    assert found["step_change:2"].count == 100
    # The change from one to two steps is three quarters of the bad noise; the clamp takes a little of it.
    assert found["step_change:2"].value == pytest.approx(0.75 * 0.3, rel=0.1)


def test_shared_noise_narrows_the_interval() -> None:
    """The paired interval is narrower than that of two distances put together, and equals a jackknife by hand."""
    found = step_gain(floats, 2, 1000, pixels(SHAPE), reference(), probes=50, batch=500)
    paired, one, two = (found[name].interval for name in ("step_gain:2", "step_frechet:1", "step_frechet:2"))
    assert paired is not None
    assert one is not None
    assert two is not None
    apart = ((one[1] - one[0]) ** 2 + (two[1] - two[0]) ** 2) ** 0.5
    assert paired[1] - paired[0] < apart


def blocks(x: Tensor) -> list[FeatureStatistics]:
    out = []
    for k in range(BLOCKS):
        part = FeatureStatistics(x.shape[1])
        part.update(x[k::BLOCKS])
        out.append(part)
    return out


def test_the_gain_over_oneself_is_nothing() -> None:
    x = torch.randn(400, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = frechet_gain(blocks(x), blocks(x), reference())
    assert found.value == 0.0
    assert found.interval == (0.0, 0.0)
    assert found.higher_is_better


def test_the_gain_is_the_difference_and_turns_its_sign() -> None:
    x, y = (torch.randn(400, 9, generator=torch.Generator().manual_seed(s), dtype=torch.float64) * (1 + s) for s in (0, 1))
    one, other = frechet_gain(blocks(x), blocks(y), reference()), frechet_gain(blocks(y), blocks(x), reference())
    assert one.value == pytest.approx(
        frechet_metric(blocks(x), reference()).value - frechet_metric(blocks(y), reference()).value
    )
    assert one.value == -other.value
    assert one.interval is not None
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))


def test_batches_do_not_matter() -> None:
    one, other = (step_changes(floats, 3, 50, batch=batch) for batch in (7, 50))
    torch.testing.assert_close(one, other)
    assert one.shape == (50, 2)


def test_progress_counts_all_steps() -> None:
    told: list[tuple[int, int]] = []
    step_gain(
        floats, 2, 100, pixels(SHAPE), reference(), probes=2, batch=50, callback=lambda done, total: told.append((done, total))
    )
    assert told == [(50, 200), (100, 200), (150, 200), (200, 200)]


def test_one_step_has_no_gain() -> None:
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        step_changes(floats, 1, 10)
