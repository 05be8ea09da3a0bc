"""Averages of every kind in a run: their names, what they hold, their snapshots, and that they resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.training.engine import Engine
from atonce.training.posthoc import list_snapshots, reconstruct
from atonce.training.rundir import RunFolder

EMA = ("half-life-100", 0.9, "power-0.05", "power-0.1", "half-life-1e3")
NAMES = ["half-life-100", "0.9", "power-0.05", "power-0.1", "half-life-1000"]
IMAGES, BATCH = 192, 16
OPTIONS: dict[str, Any] = {"log_every": 64, "evaluate_every": 192, "snapshots": 4}


def recipe(tools, **changes: Any) -> Any:
    values: dict[str, Any] = {"curriculum": "fixed", "s1": 20, "lr": 1e-2, "ema": EMA}
    return tools.make_recipe(images=IMAGES, batch=BATCH, **values | changes)


@pytest.fixture(scope="module")
def run(tools, tmp_path_factory):
    """A run, and its weights after each step."""
    step, path = Engine.step, []

    def watched(self: Engine) -> None:
        if not path:
            path.append(self.weights())
        step(self)
        path.append(self.weights())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", watched)
        done = tools.train(tmp_path_factory.mktemp("averages") / "run", recipe(tools), **OPTIONS)
    assert len(path) == 13
    return done, path


def state_of(model: ConsistencyModel, name: str | None) -> dict[str, Tensor]:
    return dict(model._network(name).state_dict())


def test_the_names(run) -> None:
    done, _ = run
    for model in (done.model, atonce.load(done.folder)):
        assert model.ema_names == NAMES
        assert model.card["ema"] == NAMES[0]
        assert torch.equal(model.sample(2, ema=NAMES[0]), model.sample(2))  # the first is the default
        images = torch.stack([model.sample(2, ema=name) for name in NAMES])
        assert float(torch.pdist(images.flatten(1)).min()) > 0
    files = {path.name for path in (done.folder / "model").glob("*.safetensors")}
    assert files == {"model.safetensors", *(f"ema-{name}.safetensors" for name in NAMES[1:])}
    assert RunFolder(done.folder).read_recipe().ema == EMA


@pytest.mark.parametrize("name", ["0.99", "power-0.5", "half-life-1e4", "", "4-steps", "live"])
def test_names_that_do_not_exist_are_answered_with_those_that_do(run, name: str) -> None:
    done, _ = run
    for model in (done.model, atonce.load(done.folder)):
        with pytest.raises(InputError) as caught:
            model.sample(1, ema=name)
        assert str(caught.value) == f"ema {name!r} is not in this model; present: {', '.join(NAMES)}"


@pytest.mark.parametrize(
    ("asked", "name"), [("power-0.10", "power-0.1"), (0.9, "0.9"), ("0.90", "0.9"), ("half-life-1e3", "half-life-1000")]
)
def test_a_name_may_be_written_in_any_way(run, asked: Any, name: str) -> None:
    done, _ = run
    for model in (done.model, atonce.load(done.folder)):
        assert torch.equal(model.sample(2, ema=asked), model.sample(2, ema=name))


@pytest.mark.parametrize(
    ("name", "decay"), [("half-life-100", 0.5 ** (16 / 100)), ("0.9", 0.9), ("half-life-1000", 0.5**0.016)]
)
def test_exponential_averages_are_sums_of_the_path(run, name: str, decay: float) -> None:
    """After n steps: decay^n of the start, and (1 - decay) decay^(n - s) of the weights after step s."""
    done, path = run
    shares = [decay**12, *((1 - decay) * decay ** (12 - s) for s in range(1, 13))]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    for key, value in state_of(done.model, name).items():
        expected = sum(share * state[key].double() for share, state in zip(shares, path, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_power_averages_are_integrals_of_their_profile(run, width: float) -> None:
    """The weights after step s have the share (s/n)^(g + 1) - ((s - 1)/n)^(g + 1), and the start has none."""
    done, path = run
    gamma = next(g / 1000 for g in range(1_000_000) if (g / 1000 + 1) / (g / 1000 + 3) / (g / 1000 + 2) ** 2 < width**2)
    shares = [(s / 12) ** (gamma + 1) - ((s - 1) / 12) ** (gamma + 1) for s in range(1, 13)]
    for key, value in state_of(done.model, f"power-{width}").items():
        expected = sum(share * state[key].double() for share, state in zip(shares, path[1:], strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)


def test_snapshots_are_written_and_hold_the_averages_of_their_time(tools, run) -> None:
    done, _ = run
    found = list_snapshots(done.folder / "snapshots")
    assert [(s.images_seen, s.rate.value) for s in found] == [(i, w) for i in (48, 96, 144, 192) for w in (0.05, 0.1)]
    for width in (0.05, 0.1):
        state, residual = reconstruct(done.folder / "snapshots", width)
        assert residual < 1e-6
        for key, value in state_of(done.model, f"power-{width}").items():
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)


def test_a_width_that_was_not_kept_is_made_after_the_training(tools, run, tmp_path: Path) -> None:
    """Against a run that kept it: the averages have no part in the training, so the path is the same."""
    done, _ = run
    other = tools.train(tmp_path / "run", recipe(tools, ema=("power-0.075", 0.9)), **OPTIONS | {"snapshots": 0})
    assert not (other.folder / "snapshots").exists()
    tools.assert_same_tensors(state_of(other.model, "0.9"), state_of(done.model, "0.9"))
    state, residual = reconstruct(done.folder / "snapshots", 0.075)
    assert residual < 0.1
    wanted, wide = state_of(other.model, "power-0.075"), state_of(done.model, "power-0.1")
    miss = sum(float((state[key] - wanted[key]).square().sum()) for key in wanted) ** 0.5
    apart = sum(float((wide[key] - wanted[key]).square().sum()) for key in wanted) ** 0.5
    assert miss < 0.15 * apart


def test_a_run_with_all_kinds_resumes_bit_for_bit(tools, run, tmp_path: Path, monkeypatch) -> None:
    step = Engine.step

    def die(self: Engine) -> None:
        if self.images_seen == 112:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Engine, "step", die)
    with pytest.raises(KeyboardInterrupt):
        tools.train(tmp_path / "run", recipe(tools), checkpoint_seconds=0, **OPTIONS)
    monkeypatch.undo()
    tools.train(tmp_path / "run", recipe(tools), **OPTIONS)
    tools.assert_same_run(tmp_path / "run", run[0].folder)
    ours, theirs = (sorted((folder / "snapshots").iterdir()) for folder in (tmp_path / "run", run[0].folder))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


@pytest.mark.parametrize(
    ("ema", "text"),
    [
        (("half-life-0",), "ema is .*half-life"),
        (("half-life",), "the average 'half-life' is not known"),
        (("power-0.4",), "the average 'power-0.4' is not known: give .*sigma_rel above 0 and at most 0.2887"),
        (("power-0.05", "power-5e-2"), "each average may stand once"),
        (("half-life-500", "half-life-5e2"), "each average may stand once"),
    ],
)
def test_averages_that_are_refused(tools, tmp_path: Path, ema: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        tools.train(tmp_path / "run", recipe(tools, ema=ema))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
