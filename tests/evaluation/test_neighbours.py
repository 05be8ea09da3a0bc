from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atonce.core.errors import InputError
from atonce.evaluation.neighbours import class_shares, memorisation, memorisation_metric, nearest, radii


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_nearest_equals_all_pairs(n: int, m: int, seed: int) -> None:
    x, y = draw(n, seed), draw(m, seed + 1)
    expected = (x[:, None] - y[None]).norm(dim=2).min(1)
    distances, indices = nearest(x, y)
    torch.testing.assert_close(distances, expected.values, rtol=1e-9, atol=1e-9)
    assert torch.equal(indices, expected.indices)


def test_radii_count_copies_but_not_the_item_itself() -> None:
    x = torch.tensor([[0.0], [0.0], [1.0], [4.0]], dtype=torch.float64)
    assert radii(x, 1).tolist() == [0.0, 0.0, 1.0, 3.0]
    assert radii(x, 2).tolist() == [1.0, 1.0, 1.0, 4.0]


def test_copies_of_training_images_are_found_out() -> None:
    training, held_out = draw(400, 0), draw(100, 1)
    assert memorisation(draw(100, 2), training, held_out).ratio == pytest.approx(1.0, abs=0.15)
    copied = memorisation(training[:100] + 0.01, training, held_out)
    assert copied.ratio < 0.1
    assert copied.samples == pytest.approx(0.01 * 5**0.5, rel=1e-6)


def test_the_ratio_has_an_interval() -> None:
    training, held_out = draw(400, 0), draw(100, 1)
    fresh = memorisation_metric(draw(100, 2), training, held_out)
    assert fresh.value == memorisation(draw(100, 2), training, held_out).ratio
    assert fresh.interval is not None
    assert fresh.interval[0] < 1 < fresh.interval[1]
    copied = memorisation_metric(training[:100] + 0.01, training, held_out)
    assert copied.interval is not None
    assert copied.interval[1] < 0.1
    assert copied.settings == "median of 100 over 100 held out, 400 training images"


def test_the_interval_holds_the_spread_of_new_draws() -> None:
    training = draw(300, 0)
    found = [memorisation_metric(draw(60, 10 + s), training, draw(60, 200 + s), seed=s) for s in range(40)]
    values = torch.tensor([metric.value for metric in found])
    assert sum(m.interval is not None and m.interval[0] <= values.mean() <= m.interval[1] for m in found) >= 34


@given(st.floats(0.01, 100), st.permutations(range(30)), st.integers(0, 100))
def test_scale_and_order(scale: float, order: list[int], seed: int) -> None:
    samples, training, held_out = draw(30, seed), draw(50, seed + 1), draw(20, seed + 2)
    one = memorisation_metric(samples, training, held_out)
    other = memorisation_metric(scale * samples[torch.tensor(order)], scale * training, scale * held_out)
    assert other.value == pytest.approx(one.value, rel=1e-6)


def test_held_out_images_that_were_trained_on_say_nothing() -> None:
    with pytest.raises(InputError, match="in the training set"):
        memorisation(draw(5, 0), draw(50, 1), draw(50, 1))


def test_shares() -> None:
    assert class_shares(torch.tensor([0, 0, 2, 1]), 4) == (0.5, 0.25, 0.25, 0.0)
    with pytest.raises(InputError, match=r"0\.\.2"):
        class_shares(torch.tensor([3]), 3)
    with pytest.raises(InputError, match="at least one"):
        class_shares(torch.tensor([], dtype=torch.int64), 3)


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="not empty"):
        nearest(draw(3, 0), torch.zeros(0, 5))
