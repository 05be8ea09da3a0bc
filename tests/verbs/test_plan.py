"""The verb ``plan``: what it prints, and what it refuses in one line before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atonce
from atonce import cli
from atonce.planning import plan as planning
from atonce.planning.measure import Measurement
from atonce.reports.pictures import is_ours


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measurement: Callable[..., Measurement]) -> list[Any]:
    """An empty working folder, and probes that answer at once: 0.1 s a step and 10 ms an image."""
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []

    def instead(recipe, data, **options):
        found.append(recipe)
        options["told"](0.5, "16 images a step")
        return measurement()

    monkeypatch.setattr(planning, "measure", instead)
    monkeypatch.setattr(planning, "available_memory", lambda device: 8 << 30)
    return found


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["plan", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "--data", "digits", "--deadline", "2h", "--price", "2.5", "--watts", "65", "--quiet")
    assert (status, err) == (0, "")
    assert "digits: 1,437 images, 1x8x8, 10 classes" in out
    assert "limits: 2 h of time" in out
    assert "advised: ict (tiny), in all 1.8 h" in out
    command = next(line.strip() for line in out.splitlines() if line.startswith("  atonce train ict"))
    assert "--data digits" in command
    assert "--network tiny" in command
    assert "runner-up: diffusion + cd (tiny): " in out
    assert "how sure, time and memory: medium: reckoned from batches of 10 and 90, measured here" in out
    assert "(measured by us: docs/comparison.md)" in out
    assert "assumed: price 2.5 USD an hour (given)" in out
    for preset in ("ict", "ct", "ect", "diffusion", "cd"):
        assert any(line.startswith(f"{preset} ") for line in out.splitlines())


def test_the_command_that_is_advised_is_one_that_parses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = call(capsys, "--data", "digits", "--images", "20000", "--quiet", "--json")
    facts = json.loads(out)
    seen: list[Any] = []

    def instead(recipe, data, folder, resume, **options):
        seen.append((recipe, folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(atonce, "train", instead)
    for command in facts["commands"]:
        cli.main(command.split()[1:])
    (recipe, folder) = seen[0]
    assert (recipe.method, recipe.images, recipe.batch) == ("ict", 20000, facts["routes"][0]["runs"][0]["batch"])
    assert recipe.lr == 0.002  # our table's
    assert recipe.ema == (0.999,)
    assert str(folder) == "runs/planned"


def test_progress_is_shown_and_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "--shape", "3x16x16", "--images", "100000", "--json")
    assert status == 0
    assert "measuring" in err
    facts = json.loads(out)
    assert facts["data"]["random"]
    assert facts["data"]["count"] is None
    assert facts["fits"]
    assert all("--data DATA" in command for command in facts["commands"])


def test_a_plan_that_cannot_be_met_says_so_and_is_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "--data", "digits", "--images", "2000000", "--budget", "1", "--price", "1", "--quiet")
    assert status == 1
    assert "does not fit; the nearest to it: ict (tiny), in all 6 h" in out
    assert "not met: ict takes 6 h, 5 h more than the 60 min that deadline and budget leave" in out
    assert "not met: what would fit: ict (tiny) with 290,000 images" in out
    assert "assumed: images 2,000,000 images (given) budget of each run" in out


def test_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = call(capsys, "--data", "digits", "--quiet", "--out", "plan.png")
    assert status == 0
    assert "picture: plan.png" in out
    assert is_ours(tmp_path / "plan.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a plan needs --data, or --shape"),
        (["--data", "digits", "--shape", "1x8x8"], "give one of both"),
        (["--data", "no-such-data"], "'no-such-data' is neither a known data set"),
        (["--data", "digits", "--classes", "10"], "--classes 10 goes with --shape"),
        (["--shape", "1x8x8", "--classes", "1"], "classes is 1, must be 0 or at least 2"),
        (["--shape", "64"], "shape '64' is not understood"),
        (["--data", "digits", "--deadline", "yesterday"], "deadline 'yesterday' is not understood"),
        (["--data", "digits", "--deadline", "2020-01-01T00:00"], "deadline 2020-01-01T00:00 has passed"),
        (["--data", "digits", "--deadline", "8moons"], "the unit 'moons', which is not known"),
        (["--data", "digits", "--deadline", "0h"], "is not ahead of us"),
        (["--data", "digits", "--budget", "20"], "give --price"),
        (["--data", "digits", "--budget", "-20", "--price", "1"], "budget is -20"),
        (["--data", "digits", "--price", "-1"], "price is -1"),
        (["--data", "digits", "--images", "0"], "images is 0"),
        (["--data", "digits", "--images", "-5"], "images is -5"),
        (["--data", "digits", "--batch", "0"], "batch is 0"),
        (["--data", "digits", "--watts", "1e9"], "watts is 1e+09, more than makes sense"),
        (["--data", "digits", "--network", "vast"], "network is 'vast'"),
        (["--data", "digits", "--network", "ncsnpp", "--size", "7"], "7"),
        (["--data", "digits", "--device", "tpu"], "tpu"),
        (["--data", "digits", "--teacher", "no-such-model"], "no-such-model"),
        (["--data", "digits", "--teacher", "digits"], "the teacher is a consistency model"),
        (["--data", "digits", "--teacher", "fashion-mnist"], "the teacher is a model for 1x28x28 images, the data have 1x8x8"),
        (["--data", "digits", "--out", "plan.html"], "give a name that ends in .png"),
        (["--data", "digits", "--seconds", "0"], "seconds of the probes is 0"),
        (["--data", "digits", "--deadline", "2s"], "nothing fits: within 2 s"),
        (["retrun"], "retrun"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: list[Any], words: list[str], said: str
) -> None:
    status, out, err = call(capsys, *words, "--quiet")
    assert status == 2
    assert not out
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    if "2s" not in words:
        assert not asked


def test_a_file_of_somebody_else_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: list[Any]) -> None:
    (tmp_path / "plan.png").write_bytes(b"mine")
    status, _, err = call(capsys, "--data", "digits", "--out", "plan.png")
    assert status == 2
    assert "was not made by atonce" in err
    assert (tmp_path / "plan.png").read_bytes() == b"mine"
    assert not asked
