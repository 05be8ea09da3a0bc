"""Training by the command line, where something is wrong: one line, a status, nothing left behind and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atonce import cli
from atonce.core.errors import InputError
from atonce.training.checkpoint import list_checkpoints, newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.monitor import Monitor
from atonce.training.rundir import RunFolder
from atonce.training.words import recipe_from_words

# Six steps of the smallest named network.
SHORT = ["train", "ict", "--network", "tiny", "--images", "48", "--batch", "8", "--set", "curriculum=fixed", "s1=20", "--quiet"]


def call(capsys, *words) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys, *words) -> str:
    """The one line with which it ends."""
    status, out, err = call(capsys, *words)
    assert status != 0
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    """Evaluations of a few samples: the command has no option for it."""
    original = Monitor.of
    monkeypatch.setattr(Monitor, "of", staticmethod(lambda data, samples: original(data, 16)))


# ---- data


def test_a_truncated_image_is_named_and_skipped_only_when_asked(capsys, tmp_path, pictures):
    bad = pictures / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    words = [*SHORT, "--data", pictures, "--out", tmp_path / "run"]
    assert "3.png" in refused(capsys, *words)
    assert not (tmp_path / "run").exists()
    status, out, err = call(capsys, *words, "--skip-bad")
    assert status == 0
    assert "finished" in out
    assert err.count("\n") == 1  # the warning, as one line
    assert err.startswith("atonce: warning: ")
    assert "3.png" in err
    assert RunFolder(tmp_path / "run").read_facts()["data"]["count"] == 5


def test_no_data_and_empty_data(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for data in ("no-such-thing", tmp_path / "empty", tmp_path / "absent.zip"):
        assert str(data) in refused(capsys, *SHORT, "--data", data, "--out", tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == before


def test_images_that_are_too_small_for_the_levels(capsys, tmp_path, pictures):
    words = ["train", "ict", "--data", pictures, "--size", "6", "--out", tmp_path / "run", "--quiet"]
    line = refused(capsys, *words, "--network", "ddpmpp")
    assert "6x6" in line
    assert "levels" in line
    assert not (tmp_path / "run").exists()


def test_one_class_where_labels_are_asked_for(capsys, tmp_path, pictures):
    only = tmp_path / "sorted" / "cats"
    only.parent.mkdir()
    pictures.rename(only)
    for data in (only.parent, only):
        line = refused(capsys, *SHORT, "--set", "conditional=true", "--data", data, "--out", tmp_path / "run")
        assert "label" in line or "class" in line
    assert not (tmp_path / "run").exists()


# ---- the recipe


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["wings=2"], "recipe field wings is not known; known: P_mean"),
        (["lr"], "--set takes name=value, got 'lr'"),
        (["=3"], "--set takes name=value, got '=3'"),
        (["lr=fast"], "recipe field lr is 'fast', must be above 0 and at most 10"),
        (["lr=0"], "recipe field lr is 0, must be above 0"),
        (["lr=NaN"], "recipe field lr is nan, must be above 0"),
        (["s1=20.5"], "recipe field s1 is 20.5, must be a whole number"),
        (["ema=1"], "recipe field ema"),
        (["ema=[]"], "recipe field ema"),
        (["ema=[0.9,0.9]"], "recipe field ema"),
        (["flip=maybe"], "recipe field flip is 'maybe', must be True or False"),
        (["pairs=neighbours"], "recipe field pairs is 'neighbours', must be one of"),
        (["images=5"], "--set does not take images: use --images"),
        (["method=own"], "recipe field method is not known"),
        (["lr=1e-3", "lr=1e-4"], "--set has lr twice"),
        (['lr={"a": 1}'], "recipe field lr is"),
        (["sigma_max=0.001"], "recipe field sigma_max is 0.001"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_range(capsys, tmp_path, monkeypatch, pairs, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "train", "ict", "--set", *pairs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "0"], "recipe field images is 0"),
        (["--batch", "0"], "recipe field batch is 0"),
        (["--batch", "64", "--images", "32"], "recipe field images is 32, must be at least one batch (64)"),
        (["--network", "giant"], "recipe field network is 'giant', must be one of auto, tiny"),
        (["--init", "nobody"], "there is no model 'nobody'"),
        (["--microbatch", "0"], "microbatch is 0, must be at least 1"),
        (["--checkpoint-seconds", "-1"], "checkpoint_seconds"),
        (["--device", "cuda:99"], "cuda"),
        (["--channels", "2"], "2"),
        (["--size", "0"], "size"),
        (["--precision", "fp8"], "fp8"),
    ],
)
def test_arguments_out_of_range_are_named(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "train", "ict", *words)
    assert not list(tmp_path.iterdir())


def test_fields_may_be_given_together_or_one_by_one():
    together = recipe_from_words("ict", {"images": 100, "batch": 10}, ["lr=1e-3", "dropout=0.2", "s1=10"])
    assert (together.lr, together.dropout, together.s1) == (1e-3, 0.2, 10)
    got = {}

    def train(preset, **options):
        got.update(options)
        return 0

    import functools

    train = functools.wraps(cli.function_of("train"))(train)
    from atonce.core.commands import parse

    assert parse("atonce train", train, ["ict", "--set", "lr=1e-3", "dropout=0.2", "--set", "s1=10"])() == 0
    assert got["set"] == (("lr=1e-3", "dropout=0.2"), ("s1=10",))


@pytest.mark.parametrize(
    ("pair", "name", "value"),
    [
        ("ema=0.9", "ema", (0.9,)),
        ("ema=[0.9, 0.99]", "ema", (0.9, 0.99)),
        ("conditional=true", "conditional", True),
        ("conditional=True", "conditional", True),
        ("huber_c=null", "huber_c", None),
        ("huber_c=None", "huber_c", None),
        ("sigma_data=measured", "sigma_data", "measured"),
        ("lr=3e-4", "lr", 3e-4),
    ],
)
def test_values_are_read_as_people_write_them(pair, name, value):
    assert getattr(recipe_from_words("ict", {"images": 10_000, "batch": 10}, [pair]), name) == value


def test_a_decay_of_the_target_is_for_a_target_that_is_an_average():
    pairs = ["mu=ct-paper", "target=ema"]
    assert recipe_from_words("ict", {"images": 10_000, "batch": 10}, pairs).mu == "ct-paper"
    with pytest.raises(InputError, match="recipe field mu is 'ct-paper', which is for target='ema'"):
        recipe_from_words("ict", {"images": 10_000, "batch": 10}, pairs[:1])


def test_a_budget_that_is_not_given_is_modest_or_the_presets_own():
    assert recipe_from_words("ict", {}, []).images == 2_000_000
    digits = recipe_from_words("digits", {}, [])
    from atonce.training import presets

    assert digits == presets.digits()
    assert recipe_from_words("digits", {"images": 6400}, []).images == 6400
    with pytest.raises(InputError, match="preset 'best' is not known; known: ict, ct, ect"):
        recipe_from_words("best", {}, [])


# ---- the run folder


def test_folders_of_others_and_of_other_runs_are_refused_untouched(capsys, tmp_path, pictures):
    words = [*SHORT, "--data", pictures, "--out", tmp_path / "run"]
    assert call(capsys, *words)[0] == 0
    before = snapshot(tmp_path / "run")
    assert "it differs in lr: 0.0001 -> 0.001; s1: 20 -> 10" in refused(
        capsys, *[word if word != "s1=20" else "s1=10" for word in words], "--set", "lr=1e-3"
    )
    assert "holds a run already" in refused(capsys, *words, "--no-resume")
    (pictures / "0.png").unlink()
    assert "was trained on other data" in refused(capsys, *words, "--set", f"sigma_data={_sigma(tmp_path)}")
    assert snapshot(tmp_path / "run") == before
    assert "is not a training run" in refused(capsys, *SHORT, "--out", pictures)


def _sigma(folder: Path) -> float:
    return RunFolder(folder / "run").read_recipe().sigma_data


def test_damaged_checkpoints_by_the_command(capsys, tmp_path, monkeypatch):
    words = [*SHORT, "--out", tmp_path / "run", "--checkpoint-seconds", "0"]
    step = Engine.step

    def die(self):
        if self.images_seen == 32:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Engine, "step", die)
    status, out, err = call(capsys, *words)
    monkeypatch.setattr(Engine, "step", step)
    assert (status, out, err) == (130, "", "atonce: interrupted\n")
    paths = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(paths) == 3
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-8])
    line = refused(capsys, *words)
    assert "none of the 3 checkpoints" in line
    assert paths[0].name in line
    paths[1].write_bytes(contents[1])
    status, out, err = call(capsys, *words)
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith("atonce: warning: ")
    assert paths[0].name in err
    assert f"falling back to {paths[1].name}" in err


def test_nan_by_the_command(capsys, tmp_path, monkeypatch):
    terms = Engine.terms

    def broken(self, index, stage, dtype):
        result, t = terms(self, index, stage, dtype)
        if self.images_seen >= 32:
            result.loss.mul_(float("nan"))
        return result, t

    monkeypatch.setattr(Engine, "terms", broken)
    line = refused(capsys, *SHORT, "--out", tmp_path / "run", "--checkpoint-seconds", "0")
    good = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert str(good.path) in line
    assert "not finite" in line
    assert good.images_seen == 32


def test_a_full_disk_by_the_command(capsys, tmp_path, monkeypatch):
    import errno

    from PIL import Image as Pictures

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Pictures.Image, "save", full)
        assert "no space left on the disk while writing" in refused(capsys, *SHORT, "--out", tmp_path / "run")
    assert call(capsys, *SHORT, "--out", tmp_path / "run")[0] == 0


# ---- whole processes


def start(*words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "atonce", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_bad_input_in_a_process_of_its_own(tmp_path):
    with start("train", "ict", "--data", "nothing-here", "--out", tmp_path / "run") as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "nothing-here" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_makes_a_checkpoint_and_the_same_command_goes_on(capsys, tmp_path, number):
    # Long enough to be caught at it.
    words = ["train", "digits", "--images", "480", "--batch", "4", "--precision", "fp32", "--quiet", "--json"]
    words += ["--set", "s1=20"]
    with start(*words, "--out", tmp_path / "run") as process:
        log = tmp_path / "run" / "log.jsonl"
        deadline = time.monotonic() + 200
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert err == ""
    said = json.loads(out)
    assert said["finished"] is False
    assert 0 < said["images_seen"] < 480
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").images_seen == said["images_seen"]
    if number == signal.SIGINT:
        return
    status, out, _ = call(capsys, *words, "--out", tmp_path / "run")
    assert status == 0
    assert json.loads(out) == {"folder": str(tmp_path / "run"), "images_seen": 480, "finished": True}
    assert call(capsys, *words, "--out", tmp_path / "whole")[0] == 0
    a, b = (newest_checkpoint(tmp_path / name / "checkpoints").tensors for name in ("run", "whole"))
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
