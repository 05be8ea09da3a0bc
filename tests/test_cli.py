"""The command line: every verb explains itself, bad input is one line and a status, results can be read by programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atonce import cli


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of ``atonce words``."""
    status = cli.main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which bad input is answered."""
    status, out, err = call(capsys, *words)
    assert status == 2, (out, err)
    assert not out
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def picture(path: Path, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# ---- help


def test_without_a_verb_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        status, out, _ = call(capsys, *words)
        assert status == 0
        assert all(verb in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_each_verb_has_help_with_an_example_that_parses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    status, out, _ = call(capsys, *verb.split(), "--help")
    assert status == 0
    example = re.search(r"Example: atonce (.*)", out)
    assert example, out
    words = shlex.split(example[1].strip())
    assert " ".join(words).startswith(verb)
    called = []
    function_of = cli.function_of
    monkeypatch.setattr(cli, "function_of", lambda found: _recording(function_of(found), called, found))
    assert cli.main(words) == 0
    assert called == [verb]


def _recording(function, called, verb):
    """A function of the same signature that only says that it was called."""
    import functools

    @functools.wraps(function)
    def instead(*args, **options):
        called.append(verb)
        return 0

    return instead


def test_a_word_of_several_verbs_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        status, out, err = call(capsys, "data", flag)
        assert status == 0
        assert "data inspect" in out
        assert "train a model" not in out
        assert err == ""


def test_help_describes_every_option_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "train", "--help")
    for option in ("--data", "--set", "--skip-bad", "--checkpoint-seconds", "--json"):
        assert option in out
    assert "Further recipe fields as name=value" in out
    assert "exit status" not in out  # that is for those who call the function


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    import atonce

    assert call(capsys, "--version") == (0, f"atonce {atonce.__version__}\n", "")


# ---- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fly"], "there is no verb 'fly'"),
        (["data"], "needs one of: data inspect"),
        (["train", "ictt"], "ictt"),
        (["train", "ict", "--images", "many"], "many"),
        (["train", "ict", "--images", "10", "--batch", "64"], "images is 10, must be at least one batch (64)"),
        (["train", "ict", "--data", "no-such-data"], "no-such-data"),
        (["train", "ict", "--network", "huge"], "network is 'huge'"),
        (["train", "ict", "--set", "lr=50"], "lr is 50, must be above 0 and at most 10"),
        (["train", "ict", "--set", "dropout=2"], "dropout is 2, must be from 0 to 0.99"),
        (["train", "ict", "--set", "wings=2"], "wings"),
        (["train", "ict", "--set", "lr"], "name=value"),
        (["train", "ict", "--set", "s0=100", "s1=20"], "s1 is 20, must be at least s0 (100)"),
        (["train", "ict", "--device", "tpu"], "tpu"),
        (["sample", "no-such-model"], "there is no model 'no-such-model'"),
        (["data", "inspect", "no-such-data"], "no-such-data"),
        (["eval", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *words)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_an_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(capsys, "train", "ict", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "run"))
    assert "empty" in line
    assert not (tmp_path / "run").exists()


def test_a_truncated_image_is_named_and_skipped_only_on_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "d" / f"{i}.png")
    bad = tmp_path / "d" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    assert "1.png" in refused(capsys, "data", "inspect", str(tmp_path / "d"))
    status, out, err = call(capsys, "data", "inspect", str(tmp_path / "d"), "--skip-bad", "--json")
    assert status == 0
    assert "1.png" in err
    assert json.loads(out)["count"] == 2


def test_images_too_small_for_the_levels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture(tmp_path / "d" / "0.png", size=6)
    line = refused(
        capsys,
        "train",
        "ict",
        "--network",
        "ddpmpp",
        "--data",
        str(tmp_path / "d"),
        "--out",
        str(tmp_path / "run"),
        "--images",
        "256",
    )
    assert "6x6" in line
    assert "levels" in line
    assert not (tmp_path / "run").exists()


def test_one_class_where_labels_are_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "d" / "cats" / f"{i}.png", 8)
    line = refused(
        capsys, "train", "ict", "--set", "conditional=true", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "run")
    )
    assert "labels" in line
    assert not (tmp_path / "run").exists()


def test_mixed_sizes_name_the_remedy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture(tmp_path / "d" / "0.png", 8)
    picture(tmp_path / "d" / "1.png", 12)
    line = refused(capsys, "data", "inspect", str(tmp_path / "d"))
    assert "size" in line


def test_a_refusal_of_arguments_is_words_only(capsys: pytest.CaptureFixture[str]) -> None:
    """What tyro says in a box, on several lines."""
    assert refused(capsys, "train", "ict", "--wings") == "atonce train: Unrecognized options: --wings (see atonce train --help)"
    assert "│" not in refused(capsys, "train", "ict", "--images", "many")
    assert "{ict,ct,ect,cd,progressive,diffusion,digits}" in refused(capsys, "train")


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def verb() -> int:
        """Do nothing but warn.

        Example: atonce gallery
        """
        warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("for programmers", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "function_of", lambda _: verb)
    status, out, err = call(capsys, "gallery")
    assert (status, out, err) == (0, "", "atonce: warning: two lines\n")


# ---- the whole way, as a user goes it


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A folder of pictures, trained on by the command, with the JSON that it printed."""
    root = tmp_path_factory.mktemp("user")
    for i in range(12):
        picture(root / "pictures" / ("a" if i % 2 else "b") / f"{i}.png", 12)
    words = ["train", "ict", "--data", str(root / "pictures"), "--size", "8", "--out", str(root / "run"), "--images", "64"]
    words += ["--batch", "8", "--set", "s1=20", "conditional=true", "curriculum=fixed", "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "atonce", *words],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def test_training_prints_where_the_run_is(trained: tuple[Path, dict[str, object]]) -> None:
    root, printed = trained
    assert printed == {"folder": str(root / "run"), "images_seen": 64, "finished": True}
    assert (root / "run" / "model" / "model.safetensors").exists()


def test_samples_of_a_class(
    trained: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "s.npz"
    status, printed, _ = call(
        capsys, "sample", str(trained[0] / "run"), "--n", "5", "--labels", "1", "--steps", "2", "--out", str(out), "--json"
    )
    assert status == 0
    assert json.loads(printed)["calls"] == 2
    with np.load(out) as file:
        assert file["arr_0"].shape == (5, 8, 8, 3)
    assert "label 7 is out of range" in refused(
        capsys, "sample", str(trained[0] / "run"), "--n", "5", "--labels", "7", "--out", str(tmp_path / "t.png")
    )
    for words, said in ((["--steps", "0"], "steps is 0"), (["--n", "-1"], "n is -1"), (["--sampler", "heun"], "heun")):
        assert said in refused(capsys, "sample", str(trained[0] / "run"), *words, "--out", str(tmp_path / "t.png"))
    assert not (tmp_path / "t.png").exists()


def test_the_same_command_finds_the_run_finished_and_another_recipe_is_refused(
    trained: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    root = trained[0]
    words = ["train", "ict", "--data", str(root / "pictures"), "--size", "8", "--out", str(root / "run"), "--images", "64"]
    words += ["--batch", "8", "--set", "s1=20", "conditional=true", "curriculum=fixed"]
    status, out, _ = call(capsys, *words, "--quiet")
    assert status == 0
    assert "finished" in out
    assert "lr: 0.0001 -> 0.01" in refused(capsys, *words, "lr=0.01", "--quiet")


def test_evaluation_of_a_folder_of_images_prints_a_record(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for i in range(24):
        picture(tmp_path / "made" / f"{i:03d}.png", 8)
        picture(tmp_path / "real" / f"{i:04d}.png", 8)
    words = ["eval", str(tmp_path / "made"), "--data", str(tmp_path / "real"), "--n", "24", "--metrics"]
    status, out, _ = call(capsys, *words, "kid", "--json", "--out", str(tmp_path / "record.json"))
    assert status == 0
    printed = json.loads(out)
    assert printed["samples"] == 24
    assert json.loads((tmp_path / "record.json").read_text())["metrics"] == printed["metrics"]
    assert "fid" in refused(capsys, *words, "fid")
    assert "beauty" in refused(capsys, *words, "beauty")


def test_doctor_and_gallery_print_json(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("doctor", "gallery"):
        status, out, _ = call(capsys, verb, "--json")
        assert status == 0
        assert isinstance(json.loads(out), dict)
    status, out, _ = call(capsys, "doctor")
    assert "torch" in out
