"""The command for a lent GPU: bad input, phases that hang or break, what the record says, two legs from end to end."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import gpu_report
from gpu_jobs import jobs
from gpu_state import WEIGHTS, Limits, bring_back

from atonce.core.files import write_json

ROOT = Path(__file__).resolve().parents[2]


def leg(tmp_path: Path, *words: str) -> gpu.Leg:
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    return gpu.Leg(gpu._parse(["--job", "tiny", "--device", "cpu", "--tiny", *folders, *words]))


def start(code: str):
    """Instead of a phase, a few words of Python."""
    return lambda name, until, more=(): subprocess.Popen([sys.executable, "-c", code])


def test_a_phase_that_hangs_is_ended_and_one_that_breaks_is_named(tmp_path, monkeypatch):
    command = leg(tmp_path, "--phases", "checks")
    command.record = {"phases": {}}
    monkeypatch.setattr(command, "_start", start("import time; time.sleep(60)"))
    begin = time.time()
    assert "its time was over" in command._phase("checks", time.time(), grace=0.2)["cut short"]
    assert time.time() - begin < 20
    assert "ended at its time limit" in command._phase("train", time.time(), grace=0.2)["broke off"]
    monkeypatch.setattr(command, "_start", start("raise SystemExit(3)"))
    assert command._phase("speed", time.time() + 60)["broke off"] == "exit code 3"


def test_a_signal_asks_the_phase_to_stop(tmp_path, monkeypatch):
    command = leg(tmp_path)
    command.record = {"phases": {}}
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
    monkeypatch.setattr(command, "_start", start(code))
    command._stop(15, None)
    begin = time.time()
    result = command._phase("train", time.time() + 60)
    assert time.time() - begin < 30
    # Without a handler yet it ends by the signal; with one, cleanly.
    assert result.get("broke off", "").startswith(("", "exit code -15"))
    assert command.notes == ["stopped by signal 15"]


def test_the_record_says_what_failed_and_what_was_skipped(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "state-1-of-1.bin").write_bytes(b"x" * 100)
    (out / "notes.txt").write_text("somebody else's")
    job = jobs()["tiny"]
    record = gpu_report.start_record(argparse.Namespace(minutes=1.0, commit="abc"), job)
    device = {"device": "cpu", "torch": "2"}
    checks = {"streams": {"result": "pass", "seconds": 1.0}, "resume": {"result": "fail", "seconds": 2.0, "why": "it differs"}}
    skipped = [{"what": "sampling", "why": "no time left"}]
    record["phases"]["checks"] = {"results": {"device": device, **checks}, "skipped": skipped, "cut short": "its time was over"}
    record["phases"]["train"] = {"broke off": "exit code 1"}
    record |= {"notes": [], "seconds": 3.0}
    gpu_report.finish_record(record, tmp_path, out, Limits(), ["checks", "speed", "train"])
    saved = json.loads((out / "record.json").read_text())
    assert saved["failed"] == ["check resume: it differs", "train: exit code 1"]
    assert "sampling: no time left" in saved["skipped"]
    assert "the rest of phase checks: its time was over" in saved["skipped"]
    assert "phase speed: not reached" in saved["skipped"]
    assert saved["commit"] == "abc"
    assert saved["files"]["state-1-of-1.bin"]["bytes"] == 100
    text = gpu_report.table(saved)
    assert "FAILED: check resume: it differs" in text
    assert "pass  streams" in text
    few = Limits(file_bytes=50)
    gpu_report.finish_record(record, tmp_path, out, few, ["checks"])
    assert any("more than may be brought back" in line for line in record["failed"])


def test_the_measured_gain_decides_about_compiling(tmp_path):
    command = leg(tmp_path)
    measured = {"eager, images/s": 100.0, "compiled, images/s": 200.0, "seconds to compile": 50.0}
    command.record = {"phases": {}}
    assert command._compiles(1000) is False  # nothing is known
    command.record = {"phases": {"speed": {"results": {"compiling": measured}}}}
    assert command._compiles(1000) is True
    assert command._compiles(60) is False
    command.record["phases"]["checks"] = {"results": {"compiled step": {"result": "fail"}}}
    assert command._compiles(1000) is False
    assert leg(tmp_path, "--compile", "on")._compiles(1) is True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--minutes", "0"], "--minutes is 0, must be more than 0"),
        (["--files", "3"], "at least 4 files"),
        (["--job", "fashion"], "fashion-mnist is not in"),
        (["--state", "nowhere"], "nowhere holds no state"),
        (["--unpack", "nowhere"], "--unpack needs --to"),
        (["--unpack", "nowhere", "--to", "new"], "nowhere holds no state"),
        (["--out", "file"], "--out file is a file"),
    ],
)
def test_bad_input_gives_one_line(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATONCE_DATA", str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    base = ["--job", "tiny", "--device", "cpu", "--tiny", "--out", "out", "--phases", "train"]
    assert gpu.main([*base, *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_state_of_another_job_is_refused(tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    write_json(work / "job.json", {"job": "digits", "stage": 0, "legs": []})
    bring_back(work, tmp_path / "back", Limits())
    words = ["--state", str(tmp_path / "back"), "--job", "tiny", "--device", "cpu", "--tiny", "--phases", "train"]
    assert gpu.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "the state of job 'digits', asked for is 'tiny'" in capsys.readouterr().err


BLOCKED = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        absent = {"rich", "tyro", "tensorboard", "pytest", "hypothesis", "jaxtyping", "beartype", "pydantic"}
        return None if name.split(".")[0] in absent else self.finder.find_spec(name, *more)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
import gpu, gpu_inside, gpu_checks, gpu_judge, gpu_report, gpu_speed, gpu_train, dataclasses
from pathlib import Path
from gpu_jobs import jobs
from gpu_state import Limits
from gpu_tools import Notebook
job = jobs()["tiny"]
job = dataclasses.replace(job, stages=(dataclasses.replace(job.stages[0], least=64, most=64),))
work = Path(sys.argv[3])
gpu_train.train_job(work, job, Notebook(work / "train.json"), device="cpu", limits=Limits(), trial_seconds=0, evaluate_images=2)
gpu_checks.run_checks("cpu", Notebook(work / "checks.json", until=0), tests=True)
print("done")
"""


def test_nothing_is_needed_beyond_the_few_packages(tmp_path):
    words = [sys.executable, "-c", BLOCKED, str(ROOT / "benchmarks"), str(ROOT / "src"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("done")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_legs_by_the_command(tmp_path):
    base = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--job", "tiny", "--device", "cpu", "--tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=420, env=environment, check=False)
    one = run([*base, "--minutes", "4", "--out", str(tmp_path / "one")])
    assert one.returncode == 0, one.stderr[-3000:] + one.stdout
    record = json.loads((tmp_path / "one" / "record.json").read_text())
    assert record["failed"] == []
    assert set(record["phases"]) == {"checks", "speed", "train", "evaluate"}
    assert record["seconds"] < 240
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {"record.json", "curves.png", "samples.png", "state-1-of-1.bin", WEIGHTS}
    back = ["--phases", "train", "--state", str(tmp_path / "one"), "--out", str(tmp_path / "two"), "--minutes", "2"]
    two = run([*base, *back])
    assert two.returncode == 0, two.stderr[-3000:]
    again = json.loads((tmp_path / "two" / "record.json").read_text())
    assert again["continued from"]["level"] == "exact"
    assert again["training"]["finished"] is True
    part = tmp_path / "two" / "state-1-of-1.bin"
    part.write_bytes(part.read_bytes()[:1000])
    three = run([*base, "--phases", "train", "--state", str(tmp_path / "two"), "--out", str(tmp_path / "three")])
    assert three.returncode == 2
    assert "is truncated" in three.stderr
    assert three.stderr.count("\n") == 1
