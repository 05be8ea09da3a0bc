"""What a request may ask is checked before anything waits, by the words of model.sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.model_config import Guidance
from atonce.serving.rows import Ask, ask_for, signed


def test_what_is_resolved(tiny: Any) -> None:
    model = tiny()
    assert ask_for(model, 2) == Ask(2, sigmas=(80.0,), steps=1)
    asked = ask_for(model, 2, steps=2, seed=3, first=5, labels=1)
    assert asked == Ask(2, seed=3, first=5, labels=(1, 1), sigmas=tuple(model._times(2, None, "auto")), steps=2)
    assert ask_for(model, 1, sigmas=[3.0, 0.5, 0.0]).sigmas == (3.0, 0.5), "a closing 0 is dropped"
    assert ask_for(model, 2, seeds=torch.tensor([4, 5])).seeds == (4, 5)
    denoiser = tiny("denoiser")
    assert ask_for(denoiser, 1, steps=3).sigmas == tuple(denoiser._times(3, None, "auto")[:-1])
    assert ask_for(denoiser, 1, sigmas=[3.0, 0.5]) == Ask(1, sigmas=(3.0, 0.5), steps=2)
    named = tiny(ema=("0.9",))
    assert ask_for(named, 1, ema="0.9").ema == "0.9"
    named.card["ema"] = "0.999"
    assert ask_for(named, 1, ema="0.999").ema is None, "the model's own weights by their name"


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 1.5},
        {"n": 1, "steps": 0},
        {"n": 1, "seed": 0.5},
        {"n": 1, "first": -1},
        {"n": 2, "seeds": [1]},
        {"n": 2, "seeds": [1, 1 << 64]},
        {"n": 1, "labels": 3},
        {"n": 2, "labels": [0, 1, 2]},
        {"n": 1, "sigmas": []},
        {"n": 1, "sigmas": [1.0, 2.0]},
        {"n": 1, "sigmas": [1e9]},
        {"n": 1, "sigmas": [float("nan")]},
        {"n": 1, "guidance": 2.0},
        {"n": 1, "ema": "0.5"},
    ],
)
def test_refused(wrong: dict[str, Any], tiny: Any) -> None:
    with pytest.raises(InputError):
        ask_for(tiny(), **wrong)


def test_guidance(tiny: Any) -> None:
    free, embedded = tiny(guidance=Guidance("free")), tiny(guidance=Guidance("embedded", (1.0, 2.0)))
    assert ask_for(free, 1, guidance=7).guidance == 7.0
    with pytest.raises(InputError, match="1 to 2"):
        ask_for(embedded, 1, guidance=3.0)
    with pytest.raises(InputError, match="class"):
        ask_for(free, 1, guidance=2.0, labels=-1)
    with pytest.raises(InputError, match="unconditional"):
        ask_for(tiny(labels=0), 1, labels=0)


@given(st.integers(-(1 << 70), 1 << 70))
def test_seeds_keep_their_low_bits(seed: int) -> None:
    found = signed(seed)
    assert -(1 << 63) <= found < 1 << 63
    assert (found - seed) % (1 << 64) == 0
