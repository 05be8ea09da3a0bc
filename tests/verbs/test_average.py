"""The verb ``average``: a width that was not kept becomes weights of the run's model, or a model of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce
from atonce import cli
from atonce.core.errors import InputError, ModelFileError
from atonce.networks.unet import UNetConfig
from atonce.training import presets
from atonce.training.posthoc import average, reconstruct

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())


def make(folder: Path, ema: tuple[Any, ...] = (0.9, "power-0.05", "power-0.10"), **options: Any) -> Path:
    recipe = presets.ict(192, 16, network=NETWORK, s1=20, curriculum="fixed", lr=1e-2, ema=ema)
    return atonce.train(
        recipe, "digits", folder, precision="fp32", quiet=True, evaluate_images=2, snapshots=4, **options
    ).folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "run")


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = cli.main(["average", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_model_of_the_run_gets_it_by_name(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    before = atonce.load(run)
    status, out, _ = call(capsys, run, "--power", 0.07, "--json")
    facts = json.loads(out)
    assert (status, facts["ema"], facts["model"]) == (0, "power-0.07", str(run / "model"))
    assert 0 < facts["residual"] < 0.1
    after = atonce.load(run)
    assert after.ema_names == ["0.9", "power-0.05", "power-0.1", "power-0.07"]
    assert torch.equal(after.sample(2), before.sample(2))
    state, _ = reconstruct(run / "snapshots", 0.07)
    got = dict(after._network("power-0.070").state_dict())
    assert all(torch.equal(got[name], value) for name, value in state.items())
    assert cli.main(["sample", str(run), "--n", "2", "--ema", "power-0.07", "--out", str(tmp_path / "a.png"), "--quiet"]) == 0
    assert call(capsys, run, "--power", 0.07)[0] == 0  # the same again
    again = make(run)  # a run that is finished keeps what its model has got
    assert atonce.load(again).ema_names == after.ema_names


def test_a_model_of_its_own(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    assert call(capsys, run, "--power", 0.07, "--at", 144, "--out", tmp_path / "wide")[0] == 0
    assert atonce.load(run).ema_names == ["0.9", "power-0.05", "power-0.1"]
    alone = atonce.load(tmp_path / "wide")
    assert (alone.ema_names, alone.card["name"], alone.records) == (["power-0.07-at-144"], "wide", [])
    model, name, residual = average(run, 0.07, at=144)
    assert name == "power-0.07-at-144"
    assert residual < 0.1
    assert torch.equal(alone.sample(2), model.sample(2, ema=name))
    status, _, err = call(capsys, run, "--power", 0.07, "--out", tmp_path / "wide")
    assert status == 2
    assert "wide exists: choose another name, nothing was changed" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--power", 0.5], "the value of an average of kind power is 0.5, must be a sigma_rel from"),
        (["--power", 0.07, "--at", 1000], "the average is asked for at 1,000 images, must be above 0 and at most 192"),
        (["--power", 0.07, "--at", 0], "the average is asked for at 0 images"),
        (["--power", 0.001], "above the limit of 0.5"),
    ],
)
def test_what_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str], run: Path, words: list[Any], said: str) -> None:
    before = {path: path.read_bytes() for path in (run / "model").iterdir()}
    status, out, err = call(capsys, run, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert {path: path.read_bytes() for path in (run / "model").iterdir()} == before


def test_folders_that_have_nothing_to_make_it_from(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a training run: it has no recipe.json"):
        average(tmp_path, 0.07)
    with pytest.raises(InputError, match="has no snapshots of power averages to make power-0.07 from: train with two of them"):
        average(make(tmp_path / "plain", (0.9,)), 0.07)
    one = make(tmp_path / "one", ("power-0.05", "power-0.1"))
    with pytest.raises(InputError, match="power-0.05 is what .* samples by default"):
        average(one, 0.05)
    (one / "model").rename(one / "elsewhere")
    with pytest.raises(ModelFileError, match="has no finished model to put power-0.07 beside"):
        average(one, 0.07)
