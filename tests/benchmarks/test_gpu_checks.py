"""Checks and measurements for a lent GPU, tried on the CPU: they pass where all is well, and find what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_checks
import gpu_speed
from gpu_jobs import jobs
from gpu_tools import Notebook

from atonce.networks.presets import named


def check(name: str, tmp_path: Path, **settings) -> dict:
    notes = Notebook(tmp_path / "checks.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_checks, "CHECKS", {name: gpu_checks.CHECKS[name]})
        gpu_checks.run_checks("cpu", notes, **({"compiled": False, "tests": False, "quick": True} | settings))
    return json.loads((tmp_path / "checks.json").read_text())["results"][name]


def test_the_checks_pass_where_all_is_well(tmp_path):
    for name in ("streams", "shared dropout", "resume"):
        found = check(name, tmp_path)
        assert found["result"] == "pass", found
    assert found["bit for bit"] is True
    assert found["level"] == "exact"
    assert 11 < found["bytes of state a parameter"] < 13.5
    assert check("compiled step", tmp_path)["result"] == "skip"


def test_dropout_that_is_not_shared_is_found(tmp_path, monkeypatch):
    from atonce.training import engine
    from atonce.training import terms as drawing

    masks = drawing.dropout_masks
    calls: list[int] = []

    def other(seed, index, sizes, p, step=0):
        calls.append(1)
        return masks(seed + len(calls), index, sizes, p, step)

    terms = engine.Engine.terms

    def unshared(self, *arguments):  # the target draws masks of its own
        self.recipe = dataclasses.replace(self.recipe, shared_dropout=False)
        return terms(self, *arguments)

    monkeypatch.setattr(drawing, "dropout_masks", other)
    monkeypatch.setattr(engine.Engine, "terms", unshared)
    found = check("shared dropout", tmp_path)
    assert found["result"] == "fail"
    assert "masks differ" in found["why"]


@pytest.mark.slow
def test_a_resume_that_loses_the_optimiser_is_found(tmp_path, monkeypatch):
    from atonce.training.engine import Engine

    load = Engine.load
    lossy = lambda self, seen, tensors, facts: load(self, seen, {k: v for k, v in tensors.items() if "exp_avg" not in k}, facts)
    monkeypatch.setattr(Engine, "load", lossy)
    found = check("resume", tmp_path)
    assert found["result"] == "fail"


def test_rounding_is_measured_for_each_stage(tmp_path):
    found = check("rounding", tmp_path)
    assert found["result"] == "pass"
    rows = {row["N"]: row for row in found["stages"]}
    assert set(rows) == {11, 161, 1281}
    assert rows[11]["pair"] > 5 * rows[161]["pair"] > 25 * rows[1281]["pair"]
    assert rows[11]["bf16 is used"] is True
    assert rows[1281]["bf16 is used"] is False
    assert 0 < rows[11]["bf16"] < 0.1


def test_a_check_that_breaks_fails_and_those_without_time_are_skipped(tmp_path, monkeypatch):
    def broken(setting, found):
        """Breaks."""
        found["seen"] = 1
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(gpu_checks, "CHECKS", {"broken": broken})
    notes = Notebook(tmp_path / "a.json")
    gpu_checks.run_checks("cpu", notes)
    assert notes.values["broken"]["result"] == "fail"
    assert notes.values["broken"]["why"] == "ZeroDivisionError: by hand"
    late = Notebook(tmp_path / "b.json", until=time.time() - 1)
    gpu_checks.run_checks("cpu", late)
    assert late.values == {}
    assert late.skipped == [{"what": "broken", "why": "no time left"}]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_checks_by_tracing(tmp_path, monkeypatch):
    # The same graphs as on a GPU, run without generating code for them.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for name in ("shared dropout, compiled", "compiled step"):
        found = check(name, tmp_path, compiled=True)
        assert found["result"] == "pass", found


@pytest.mark.cuda
def test_checks_on_cuda(tmp_path):
    notes = Notebook(tmp_path / "checks.json")
    gpu_checks.run_checks("cuda", notes, compiled=False, tests=False, quick=True)
    results = {name: found["result"] for name, found in notes.values.items()}
    assert "fail" not in results.values(), notes.values


def test_speed_is_measured(tmp_path):
    notes = Notebook(tmp_path / "speed.json")
    gpu_speed.measure_speed("cpu", notes, job=jobs()["tiny"], tiny=True)
    found = json.loads((tmp_path / "speed.json").read_text())["results"]
    rows = found["tiny 8x8"]["training"]
    assert [row["precision"] for row in rows] == ["bfloat16", "float32"]
    # A step is two passes forward and one backward of twice their work, give or take the first layer's input gradient.
    network = named("tiny", 8, 1)
    forward = forward_operations(network)
    for row in rows:
        assert 3.7 * forward < row["GFLOP an image"] * 1e9 < 4.05 * forward
        assert row["images/s"] == pytest.approx(4 / (row["ms a step"] / 1000))
    peak = max(found["matrix products"].values()) * 1e12
    for row in found["tiny 8x8"]["sampling"]:
        assert row["of the best matrix rate"] == pytest.approx(row["images/s"] * forward / peak, rel=1e-6)


def forward_operations(config) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    from atonce.networks.build import build

    network = build(config, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(4, 1, 8, 8), torch.zeros(4))
    return counter.get_total_flops() / 4


def test_running_out_of_memory_costs_one_number_only(tmp_path):
    notes = Notebook(tmp_path / "speed.json")

    def too_much() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu_speed._guarded(notes, "large", too_much)
    gpu_speed._guarded(notes, "small", lambda: notes.put("small", 1))
    assert notes.values == {"small": 1}
    assert notes.skipped == [{"what": "large", "why": "the device's memory is too small"}]
