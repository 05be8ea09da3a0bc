"""Distillation by the command line: what is refused in one line, and a guided student that is trained and sampled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atonce
from atonce import cli
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.sampling.ode import Churn
from atonce.training.rundir import RunFolder

PLAIN = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())
LABELLED = dataclasses.replace(PLAIN, labels=10)
EDM = Preconditioning("edm", 0.75, 0.0)


def call(capsys, *words: Any) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A teacher, a class-conditional one that knows images without a class, and a model that is no denoiser."""
    conditional = ModelConfig(LABELLED, EDM, kind="denoiser", labels=tuple(map(str, range(10))), guidance=Guidance("free"))
    ConsistencyModel(ModelConfig(PLAIN, EDM, kind="denoiser")).save_pretrained(tmp_path / "teacher")
    ConsistencyModel(conditional).save_pretrained(tmp_path / "conditional")
    ConsistencyModel(ModelConfig(PLAIN, Preconditioning("boundary", 0.75, 0.002))).save_pretrained(tmp_path / "student")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cd"], "path is 'heun', which needs a teacher: give one"),
        (["progressive"], "path is 'two-steps', which needs a teacher: give one"),
        (["cd", "--teacher", "nobody"], "there is no model 'nobody'"),
        (["cd", "--teacher", "digits"], "the teacher is a consistency model for 1x8x8 images; needed is a denoiser for 1x8x8"),
        (["cd", "--teacher", "{}/student"], "the teacher is a consistency model"),
        (["progressive", "--teacher", "{}/conditional"], "give the recipe conditional=True"),
        (["ict", "--teacher", "{}/teacher"], "a teacher is given, but recipe field path is 'same-noise' and needs none"),
        (["digits", "--teacher", "{}/teacher"], "a teacher is given, but recipe field path is 'same-noise' and needs none"),
        (["cd", "--teacher", "{}/teacher", "--network", "small"], "init has another network (channels: 8 there, 48 here"),
        (["cd", "--teacher", "{}/teacher", "--set", "guidance=2"], "recipe field guidance needs labels"),
        (["cd", "--teacher", "{}/teacher", "--set", "guidance=[1,4]", "conditional=true"], "the teacher has no labels"),
        (["cd", "--teacher", "{}/teacher", "--set", "s0=20"], "recipe field s1 is 17, must be at least s0 (20)"),
        (["cd", "--set", "teacher=x"], "--set does not take teacher: use --teacher"),
        (["cd", "--teacher", "{}/teacher", "--size", "16"], "the teacher is a model for 1x8x8 images, the data have 1x16x16"),
        (["progressive", "--teacher", "{}/teacher", "--images", "40", "--batch", "16"], "too few for the 6 halvings"),
    ],
)
def test_the_command_says_in_one_line_what_does_not_fit(capsys, saved: Path, words: list[str], said: str) -> None:
    before = sorted(saved.iterdir())
    status, out, err = call(capsys, "train", *(word.format(saved) for word in words), "--out", saved / "run", "--quiet")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert "Traceback" not in err
    assert sorted(saved.iterdir()) == before


def test_the_command_distils_and_samples_with_guidance(capsys, saved: Path) -> None:
    words = ["train", "cd", "--teacher", saved / "conditional", "--images", 32, "--batch", 16, "--precision", "fp32", "--quiet"]
    words += ["--set", "conditional=true", "guidance=[1,4]", "label_dropout=0.1"]
    status, _, err = call(capsys, *words, "--out", saved / "run")
    assert (status, err) == (0, "")
    recipe = RunFolder(saved / "run").read_recipe()
    assert recipe.teacher == recipe.init == str(saved / "conditional")
    assert recipe.guidance == (1, 4)
    sample = ["sample", saved / "run", "--n", 4, "--out", saved / "x.png", "--json"]
    status, out, _ = call(capsys, *sample, "--guidance", 2.5)
    assert (status, json.loads(out)["calls"]) == (0, 1)
    status, out, err = call(capsys, *sample, "--guidance", 7)
    assert (status, out) == (2, "")
    assert "guidance=7 is out of range: this model knows 1 to 4" in err
    status, out, _ = call(capsys, "sample", saved / "conditional", *sample[2:], "--steps", 3, "--guidance", 2)
    assert (status, json.loads(out)["calls"]) == (0, 10)
    status, _, err = call(capsys, "sample", saved / "teacher", *sample[2:], "--guidance", 2)
    assert status == 2
    assert "guidance=2: this model was not trained with guidance" in err


def test_the_command_samples_with_churn(capsys, saved: Path) -> None:
    """Fresh noise changes the images of a denoiser, as in Python; other models refuse it, in one line."""
    words = ["sample", saved / "teacher", "--n", 4, "--steps", 4, "--json", "--quiet"]
    churn = ["--churn", 2, "--churn-min", 0.05, "--churn-max", 50, "--churn-noise", 1.003]
    for name, further in (("plain", []), ("churned", churn)):
        assert call(capsys, *words, *further, "--out", saved / f"{name}.npz")[0] == 0
    plain, churned = (np.load(saved / f"{name}.npz")["arr_0"] for name in ("plain", "churned"))
    assert not np.array_equal(plain, churned)
    model = atonce.load(saved / "teacher")
    expected = atonce.to_uint8(model.sample(4, 4, churn=Churn(2.0, 0.05, 50.0, 1.003)))
    assert np.array_equal(churned, expected.permute(0, 2, 3, 1).numpy())
    status, _, err = call(capsys, *words, "--churn", 3, "--out", saved / "churned.npz")  # another job, so another output
    assert status == 2
    assert "churn" in err
    for further, said in (
        (["--churn-noise", 1.1], "give --churn too"),
        (["--churn", -1], "S_churn is -1.0, must be a finite number of at least 0"),
        (["--churn", 2, "--churn-min", 5, "--churn-max", 1], "S_min is 5.0 and S_max 1.0"),
    ):
        status, out, err = call(capsys, *words, *further, "--out", saved / "x.png")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err
    status, out, err = call(capsys, "sample", "digits", "--n", 4, "--churn", 2, "--out", saved / "x.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "churn is for the solvers of denoisers, this is a consistency model: leave it out" in err
    assert not (saved / "x.png").exists()
