"""The verb ``sample``, as people use it: real processes that are killed, stopped, joined, or out of disk; and bad input."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import atonce
from atonce import cli
from atonce.core.choices import class_numbers
from atonce.core.errors import InputError
from atonce.data.sources import open_data

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
MANY = ["digits", "--n", "320", "--batch", "4"]  # a second or two of work, in parts that are soon there


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of ``atonce sample words``."""
    status = cli.main(["sample", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which bad input is answered."""
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, ""), (out, err)
    assert len(err.strip().splitlines()) == 1, err
    return err


def started(*words: str, parts: Path, least: int) -> subprocess.Popen[str]:
    """A process that makes images, as soon as some of them are there."""
    command = [sys.executable, "-m", "atonce", "sample", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    for _ in range(6000):
        if parts.is_dir() and len(list(parts.glob("[0-9]*"))) >= least:
            return process
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no images: {process.communicate()[1]}")


def content(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())} if out.is_dir() else {"": out.read_bytes()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    for name in ("s.zip", "s"):
        assert cli.main(["sample", *MANY, "--out", str(root / name), "--quiet"]) == 0
    return root


# ---- interrupted


@pytest.mark.parametrize("name", ["s.zip", pytest.param("s", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_continued_by_the_same_command(
    capsys: pytest.CaptureFixture[str], uninterrupted: Path, tmp_path: Path, name: str
) -> None:
    out, parts = tmp_path / name, tmp_path / (".s.zip.parts" if name == "s.zip" else "s")
    process = started(*MANY, "--out", str(out), parts=parts, least=10)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    made = len(list(parts.glob("[0-9]*"))) * (4 if name == "s.zip" else 1)
    assert 10 <= made < 320
    status, printed, _ = call(capsys, *MANY, "--out", str(out), "--json")
    assert status == 0
    assert 320 - made <= json.loads(printed)["new"] <= 320 - made + 3  # at most the batch in hand again
    assert content(out) == content(uninterrupted / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_says_how_to_continue(
    capsys: pytest.CaptureFixture[str], uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "s.zip"
    process = started(*MANY, "--out", str(out), "--quiet", parts=tmp_path / ".s.zip.parts", least=5)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert len(said.strip().splitlines()) == 1
    assert "of 320 images; the same command continues" in said
    assert not out.exists()
    assert "seed 0 there, 1 here" in refused(capsys, *MANY, "--seed", "1", "--out", str(out))
    assert call(capsys, *MANY, "--out", str(out), "--quiet")[0] == 0
    assert content(out) == content(uninterrupted / "s.zip")


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    """The limit on the size of files stands for it: the parts fit, the array does not."""
    command = [sys.executable, "-m", "atonce", "sample", "digits", "--n", "64", "--batch", "32", "--quiet", "--out", "s.npz"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    environment = {**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, preexec_fn=limit, timeout=250, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("atonce: cannot write .s.npz.parts/whole: File too large")
    assert len(done.stderr.strip().splitlines()) == 1
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=250, check=False
    )
    assert json.loads(done.stdout)["new"] == 0  # nothing was lost
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


# ---- several processes


@pytest.mark.slow
def test_two_processes_make_the_file_of_one(tmp_path: Path) -> None:
    words = ["sample", "fashion-mnist", "-n", "21", "--first", "3", "--batch", "4", "--steps", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "one.npz"), "--quiet"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "atonce"]
    process = subprocess.Popen(
        [*launcher, *words, "--out", "two.npz", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=140)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the processes hang")
    assert process.returncode == 0, said
    facts = json.loads(printed)  # one process speaks
    assert (facts["n"], facts["new"], facts["calls"]) == (21, 21, 2)
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]


@pytest.mark.slow
def test_a_process_among_two_that_dies_is_replaced_by_the_same_command(tmp_path: Path) -> None:
    """The survivor neither hangs nor assembles what is not whole; one process alone then finishes the work of two."""
    words = [*MANY[:1], "-n", *MANY[2:], "--out", "two.zip"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "atonce", "sample"]
    process = subprocess.Popen(
        [*launcher, *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=tmp_path, start_new_session=True
    )
    parts = tmp_path / ".two.zip.parts"
    for _ in range(6000):
        if len(list(parts.glob("*.npy"))) >= 10:
            break
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    try:
        process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the processes hang")
    assert process.returncode != 0
    assert not (tmp_path / "two.zip").exists()
    assert cli.main(["sample", *MANY, "--out", str(tmp_path / "two.zip"), "--quiet"]) == 0
    assert cli.main(["sample", *MANY, "--out", str(tmp_path / "one.zip"), "--quiet"]) == 0
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()


def test_parts_by_hand_fill_one_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "s")
    for first in ("70", "0"):
        assert call(capsys, "digits", "--n", "70", "--first", first, "--out", out)[0] == 0
    assert call(capsys, "digits", "--n", "140", "--out", str(tmp_path / "s.npz"))[0] == 0
    assert torch.equal(open_data(out).images, open_data(tmp_path / "s.npz").images)
    status, said, _ = call(capsys, "digits", "--n", "140", "--out", out)
    assert status == 0
    assert "all were there already" in said


# ---- what it makes and says


def test_what_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, said, shown = call(capsys, "digits", "--n", "3")
    assert status == 0
    assert said.startswith("3 images, 1 network call each, ")
    assert said.endswith(" images/s: samples.png\n")
    assert "sampling  3/3 img  100 %" in shown
    status, said, shown = call(capsys, "digits", "--n", "3", "--steps", "2", "--json", "--quiet", "--out", "s.webp")
    facts = json.loads(said)
    assert (status, shown) == (0, "")
    assert facts["images_per_second"] > 0
    assert (facts["out"], facts["n"], facts["steps"], facts["calls"], facts["new"]) == ("s.webp", 3, 2, 2, 3)


def test_classes_by_name_and_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    assert call(capsys, "fashion-mnist", "--labels", "Bag", "9", "ankle BOOT", "--guidance", "1.5", "--out", str(out))[0] == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["arr_0"].shape == (3, 28, 28, 1)
        assert file["arr_1"].tolist() == [8, 9, 9]
    model = atonce.load("fashion-mnist")
    assert torch.equal(open_data(out).images, atonce.to_uint8(model.sample(3, labels=[8, 9, 9])))


def test_a_seed_for_each_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "s.zip"
    assert call(capsys, "digits", "--seeds", "4", "5", "--out", str(out))[0] == 0
    assert torch.equal(open_data(out).images, atonce.to_uint8(atonce.load("digits").sample(2, seeds=[4, 5])))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--n", "0"], "n is 0, must be at least 1"),
        (["digits", "--n", "-5"], "n is -5"),
        (["digits", "--out", "s.jpg"], "cannot be saved as '.jpg'"),
        (
            ["digits", "--n", "100000"],
            "n is 100,000, and a grid of 8x8 images holds at most 4,096: give a folder, .zip or .npz",
        ),
        (["digits", "--labels", "3"], "this model is unconditional: leave them out"),
        (["digits", "--n", "3", "--seeds", "1", "2"], "2 seeds are given for 3 images"),
        (["digits", "--first", "-1"], "first is -1"),
        (["digits", "--batch", "0"], "batch is 0"),
        (["digits", "--guidance", "2"], "guidance=2"),
        (["digits", "--ema", "0.1"], "ema '0.1' is not in this model"),
        (["digits", "--device", "tpu"], "tpu"),
        (
            ["fashion-mnist", "--labels", "Sneakr"],
            "there is no class 'Sneakr': give a number from 0 to 9, or a name; known: T-s",
        ),
        (["fashion-mnist", "--labels", "10"], "label 10 is out of range: this model has 10 classes, 0 to 9"),
        (["fashion-mnist", "--n", "3", "--labels", "1", "2"], "2 labels are given for 3 images"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"precious")
    assert "was not made by atonce" in refused(capsys, "digits", "--n", "2", "--out", str(tmp_path / "s.npz"))
    assert (tmp_path / "s.npz").read_bytes() == b"precious"


def test_of_a_thousand_classes_the_near_ones_are_named() -> None:
    names = [f"thing {i}" for i in range(998)] + ["tabby cat", "tiger cat"]
    assert class_numbers(["Tiger Cat", "5"], names) == (999, 5)
    assert class_numbers([], names) is None
    with pytest.raises(InputError, match="there is no class 'tigercat'.* near: tiger cat"):
        class_numbers(["tigercat"], names)
    with pytest.raises(InputError, match="or a name$"):
        class_numbers(["zzz"], names)
