"""A training job on a lent GPU, leg by leg: it stops in time, travels in a few files, and goes on as if nothing had been."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import gpu_judge
from gpu_jobs import Job, Stage, _teacher, _tuned
from gpu_parts import HEAD, pack, write_parts
from gpu_state import LEVELS, WEIGHTS, Limits, bring_back, pack_job, read_job, unpack_job, weights_folder
from gpu_tools import Notebook, relative
from gpu_train import _seconds_for, train_job

import atonce
from atonce.core.errors import InputError, ModelFileError
from atonce.model import ConsistencyModel
from atonce.model_files import model_identity
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.rundir import RunFolder

MIB, IMAGES, BATCH = 1 << 20, 80, 16
# Five steps in each of two stages, whatever the rate of this machine.
STAGES = (
    Stage("teacher", _teacher("tiny", batch=BATCH), 0.5, IMAGES, IMAGES),
    Stage("tuned", _tuned(batch=BATCH, stages=2), 0.5, IMAGES, IMAGES),
)
JOB = Job("tiny", "digits", "all", STAGES, "a few steps")


class Clock(Notebook):
    """A notebook whose time is over after it was asked so many times."""

    def __init__(self, path: Path, asked: int) -> None:
        super().__init__(path)
        self.asked = asked

    @property
    def left(self) -> float:
        self.asked -= 1
        return 1e6 if self.asked >= 0 else -1.0


def train(work: Path, asked: int = 1 << 30, limits: Limits | None = None) -> Clock:
    work.mkdir(parents=True, exist_ok=True)
    notes = Clock(work / "train.json", asked)
    train_job(work, JOB, notes, device="cpu", limits=limits or Limits(), trial_seconds=0.0, evaluate_images=16)
    return notes


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The job in one leg."""
    work = tmp_path_factory.mktemp("whole") / "work"
    train(work)
    return work


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The job, stopped in the middle of its second stage."""
    work = tmp_path_factory.mktemp("begun") / "work"
    train(work, asked=2 + 5 + 2 + 2)  # each stage asks twice before it begins, then once a step
    status = read_job(work)
    assert status["stage"] == 1
    assert [leg["finished"] for leg in status["legs"]] == [True, False]
    assert 0 < status["legs"][1]["images_seen"] < IMAGES
    return work


def bits_of(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def checkpoint_of(work: Path):
    found = newest_checkpoint(work / "run" / "checkpoints")
    assert found is not None
    return found


def test_a_job_trains_its_stages_one_after_the_other(whole):
    status = read_job(whole)
    assert status["stage"] == 2
    assert [(leg["stage"], leg["images_seen"], leg["finished"]) for leg in status["legs"]] == [
        ("teacher", IMAGES, True),
        ("tuned", IMAGES, True),
    ]
    teacher, model = (ConsistencyModel.from_pretrained(whole / name) for name in ("models/teacher", "latest"))
    assert (teacher.kind, model.kind) == ("denoiser", "consistency")
    for value in teacher.network.state_dict().values():  # travels in two bytes without a loss
        assert torch.equal(value.half().float(), value)
    assert model_identity(teacher).startswith("tiny-teacher, sha256 ")
    assert RunFolder(whole / "run").read_recipe().init == model_identity(teacher)
    assert (whole / "logs" / "teacher.jsonl").read_text().count('"loss"') == 5


def test_two_legs_are_one_to_the_last_bit(whole, begun, tmp_path):
    limits = Limits(file_bytes=1 * MIB, files=16, total_bytes=16 * MIB, others_bytes=1 * MIB)
    report = bring_back(begun, tmp_path / "out", limits)
    assert report["level"] == "exact"
    assert len(report["files"]) > 1
    assert max(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= limits.file_bytes
    count = sum(v.numel() for k, v in checkpoint_of(begun).tensors.items() if k.startswith("network/"))
    assert report["bytes"] < 1.15 * (12.6 + 2) * count  # the small network's many small tensors cost a little more
    job, level = unpack_job(tmp_path / "out", tmp_path / "next")
    assert (level, job) == ("exact", read_job(begun))
    here, there = checkpoint_of(begun), checkpoint_of(tmp_path / "next")
    assert here.images_seen == there.images_seen
    assert here.facts == there.facts
    assert {k: bits_of(v) for k, v in here.tensors.items()} == {k: bits_of(v) for k, v in there.tensors.items()}
    train(tmp_path / "next")
    assert len(read_job(tmp_path / "next")["legs"]) == 3
    one, two = checkpoint_of(whole).tensors, checkpoint_of(tmp_path / "next").tensors
    assert any(k.startswith("optimizer/") for k in one)
    assert {k: bits_of(v) for k, v in one.items()} == {k: bits_of(v) for k, v in two.items()}
    a, b = (ConsistencyModel.from_pretrained(w / "latest").sample(4, seed=1) for w in (whole, tmp_path / "next"))
    assert torch.equal(a, b)


def test_a_model_opens_from_what_came_back(begun, tmp_path):
    bring_back(begun, tmp_path / "out", Limits())
    assert gpu.main(["--unpack", str(tmp_path / "out"), "--to", str(tmp_path / "home")]) == 0
    there = atonce.load(tmp_path / "home" / "latest")
    expected = ConsistencyModel.from_pretrained(begun / "latest")
    assert torch.equal(there.sample(4, seed=2), expected.sample(4, seed=2))
    assert atonce.load(tmp_path / "home" / "models" / "teacher").kind == "denoiser"
    # The weights alone, in half precision.
    for part in (tmp_path / "out").glob("state-*"):
        part.unlink()
    assert gpu.main(["--unpack", str(tmp_path / "out"), "--to", str(tmp_path / "small")]) == 0
    small = atonce.load(tmp_path / "small").network.state_dict()
    for name, value in expected.network.state_dict().items():
        assert torch.equal(small[name], value.half().float()), name
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ModelFileError, match="cannot be read"):
        weights_folder(tmp_path / WEIGHTS, tmp_path / "other")


def limits_for(block: int) -> Limits:
    return Limits(files=4, file_bytes=block + HEAD, total_bytes=1 << 30, others=3, others_bytes=0)


def test_what_does_not_fit_travels_in_less(begun, tmp_path):
    said: list[str] = []
    blocks = {}
    size = 1 << 30
    for level in LEVELS:
        block, found = pack_job(begun, limits_for(size), said.append)
        assert found == level
        blocks[level], size = block, len(block) - 1
    with pytest.raises(InputError) as problem:
        pack_job(begun, limits_for(size))
    assert "take a smaller network" in str(problem.value)
    assert len(blocks["average"]) < len(blocks["half"]) < 0.5 * len(blocks["exact"])
    original = checkpoint_of(begun).tensors
    for level in ("half", "average"):
        write_parts(blocks[level], tmp_path / level, 1 << 30)
        work = tmp_path / f"{level}-work"
        assert unpack_job(tmp_path / level, work)[1] == level
        found = checkpoint_of(work)
        assert found.images_seen == checkpoint_of(begun).images_seen
        assert not any(k.startswith("optimizer/") for k in found.tensors)
        assert set(found.tensors) == {k for k in original if not k.startswith("optimizer/")}
        for name, value in found.tensors.items():
            source = name
            if level == "average" and name.startswith("network/"):
                averaged = f"ema/0.9995/{name.removeprefix('network/')}"
                source = averaged if averaged in original else name
            assert relative(value, original[source]) < 1e-3, name
        notes = train(work)  # goes on, with a fresh optimiser
        assert notes.values["finished"] is True
        steps = checkpoint_of(work).tensors["optimizer/0/step"]
        assert float(steps) == (IMAGES - found.images_seen) / BATCH


def test_a_finished_job_has_nothing_left_to_train(whole, tmp_path):
    bring_back(whole, tmp_path / "out", Limits())
    unpack_job(tmp_path / "out", tmp_path / "work")
    notes = train(tmp_path / "work")
    assert notes.values["finished"] is True
    assert "nothing left to train" in notes.skipped[0]["why"]


def test_a_stage_gets_its_share_of_what_is_left(tmp_path):
    leg = Notebook(tmp_path / "a.json", until=time.time() + 100)
    status = {"stage": 0, "plan": None, "used": 0.0}
    assert _seconds_for(JOB, status, leg) == pytest.approx(50, abs=2)  # half of this leg
    assert _seconds_for(JOB, {**status, "plan": 1000.0, "used": 200.0}, leg) == 400
    assert _seconds_for(JOB, {**status, "plan": 1000.0, "used": 200.0, "stage": 1}, leg) == 800
    assert _seconds_for(JOB, {**status, "plan": 1000.0, "used": 990.0, "stage": 1}, leg) == pytest.approx(100, abs=2)


def test_no_stage_begins_without_time(tmp_path):
    notes = train(tmp_path / "work", asked=0)
    assert notes.values["finished"] is False
    assert not (tmp_path / "work" / "run").exists()
    assert notes.skipped == [{"what": "stage teacher", "why": "no time left in this leg"}]


def test_a_network_that_cannot_come_back_is_refused_before_it_is_trained(tmp_path):
    with pytest.raises(InputError, match="parameters"):
        train(tmp_path / "work", limits=Limits(file_bytes=40_000))
    assert not (tmp_path / "work" / "run").exists()


def test_a_state_is_not_unpacked_over_another_or_outside(begun, tmp_path):
    bring_back(begun, tmp_path / "out", Limits())
    with pytest.raises(InputError, match="holds a job already"):
        unpack_job(tmp_path / "out", begun)
    write_parts(pack({}, {}, {"../away": b"x"}, {"level": "exact", "job": {}}), tmp_path / "bad", MIB)
    with pytest.raises(ModelFileError, match="outside"):
        unpack_job(tmp_path / "bad", tmp_path / "work")
    assert not (tmp_path / "away").exists()


def test_weights_stay_in_the_state_where_there_is_no_room(begun, tmp_path):
    roomy = bring_back(begun, tmp_path / "out", Limits())
    assert (tmp_path / "out" / WEIGHTS).stat().st_size < 2.3 * 310_000
    assert "half precision" in roomy["weights"]
    tight = bring_back(begun, tmp_path / "out", Limits(files=4, others=3))
    assert "no room" in tight["weights"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["state-1-of-1.bin"]


def test_samples_are_measured_and_drawn(whole, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(whole, work)
    notes = Notebook(work / "evaluate.json")
    gpu_judge.judge_job(work, JOB, notes, device="cpu", samples=80)
    found = json.loads((work / "evaluate.json").read_text())
    assert {"grid", "1 step", "2 steps"} == set(found["results"])
    value = found["results"]["1 step"]["frechet, pixels"]["value"]
    model = ConsistencyModel.from_pretrained(work / "latest")
    images = model.sample(80, 1, labels=torch.arange(80) % 10)
    again = atonce.evaluate(atonce.to_uint8(images), JOB.open(), metrics=("frechet",), extractor="pixels", n=80)
    assert value == pytest.approx(again.metrics["frechet"].value)
    skipped = {entry["what"] for entry in found["skipped"]}
    assert {"the data's classifier", "EffNet-Lite0"} == skipped  # neither trained yet, nor for a CPU
    from PIL import Image

    with Image.open(work / "samples.png") as picture:
        assert picture.size[0] > 2 * 10 * 8 * 8  # two grids of ten columns, enlarged eight times
    gpu_judge.curves(work, tmp_path / "curves.png", found["results"])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 500


def test_measuring_stops_when_the_time_is_over(whole, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(whole, work)
    notes = Notebook(work / "evaluate.json", until=time.time() - 1)
    gpu_judge.judge_job(work, JOB, notes, device="cpu", samples=80)
    assert set(notes.values) == {"grid"}
    assert {"measuring 1 step", "measuring 2 steps"} <= {entry["what"] for entry in notes.skipped}
