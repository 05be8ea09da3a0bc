"""What travels from leg to leg of a lent GPU: blocks of bytes in parts, what fits, and what the jobs are made of."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu_jobs import compile_pays, images_for, jobs
from gpu_parts import HEAD, pack, parts_needed, read_parts, unpack, write_parts
from gpu_state import Limits, check_size

from atonce.core.errors import DataError, InputError, ModelFileError
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.presets import named
from atonce.preconditioning import Preconditioning

MIB = 1 << 20


def bits_of(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


floats = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=50)


@given(floats, floats)
def test_tensors_come_back_to_the_last_bit(first, second):
    a = torch.tensor(first, dtype=torch.float32)
    b = torch.tensor((second * (len(first) + 1) + [1.0] * len(first))[: len(first)], dtype=torch.float32)
    tensors = {
        "near": b,
        "a": a,
        "h": a.half(),
        "d": b.double()[:, None],
        "i": torch.arange(len(first)),
        "s": torch.tensor(2.5),
    }
    files = {"log": b"line\n" * 20, "empty": b""}
    found, texts, facts = unpack(pack(tensors, {"near": "a"}, files, {"x": [1, None]}))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert bits_of(found[name]) == bits_of(value), name
    assert (texts, facts) == (files, {"x": [1, None]})


def test_what_is_near_travels_as_a_small_difference():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(200_000, generator=generator)
    tensors = {"w": weights, "average": weights * (1 + 1e-4 * torch.randn(200_000, generator=generator))}
    alone, together = len(pack(tensors, {}, {}, {})), len(pack(tensors, {"average": "w"}, {}, {}))
    assert 2 * 3.2 * 200_000 < alone < 2 * 3.5 * 200_000  # of 4 bytes, the mantissa does not shrink
    assert together < alone - 1.2 * 200_000


@pytest.mark.parametrize("size", [1, 1000 - HEAD, 1001 - HEAD, 5000])
def test_no_part_is_larger_than_allowed(tmp_path, size):
    content = bytes(k * 7 % 256 for k in range(size))
    paths = write_parts(content, tmp_path, 1000)
    assert len(paths) == parts_needed(size, 1000) == math.ceil(size / (1000 - HEAD))
    assert max(path.stat().st_size for path in paths) <= 1000
    assert read_parts(tmp_path) == content


def test_parts_of_an_earlier_state_make_room(tmp_path):
    write_parts(b"x" * 3000, tmp_path, 1000)
    write_parts(b"y" * 100, tmp_path, 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["state-1-of-1.bin"]
    assert read_parts(tmp_path) == b"y" * 100


def cut(folder: Path) -> None:
    path = folder / "state-2-of-7.bin"
    path.write_bytes(path.read_bytes()[:-3])


def cut_short(folder: Path) -> None:
    (folder / "state-2-of-7.bin").write_bytes(b"{")


def change(folder: Path) -> None:
    path = folder / "state-2-of-7.bin"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def exchange(folder: Path) -> None:
    other = folder.parent / "other"
    write_parts(b"z" * 3000, other, 1000)
    shutil.copy(other / "state-2-of-7.bin", folder)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (cut, "state-2-of-7.bin is truncated"),
        (cut_short, "state-2-of-7.bin is truncated"),
        (change, "state-2-of-7.bin is damaged"),
        (exchange, "do not belong to one state"),
        (lambda folder: (folder / "state-2-of-7.bin").unlink(), "lacks state-2-of-7.bin: bring back all 7 parts"),
        (lambda folder: write_bytes_of(folder / "state-1-of-2.bin"), "parts of several states"),
        (shutil.rmtree, "holds no state"),
    ],
    ids=["cut", "cut short", "changed", "exchanged", "missing", "two states", "none"],
)
def test_parts_that_are_not_whole_give_one_line(tmp_path, harm, says):
    folder = tmp_path / "parts"
    assert len(write_parts(bytes(range(250)) * 12, folder, 1000)) == 7
    harm(folder)
    with pytest.raises(ModelFileError) as problem:
        read_parts(folder)
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def write_bytes_of(path: Path) -> None:
    path.write_bytes(b"another")


def test_a_block_of_a_newer_version_is_refused(monkeypatch):
    monkeypatch.setattr("gpu_parts.FORMAT", 2)
    content = pack({}, {}, {}, {})
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="update atonce"):
        unpack(content)
    with pytest.raises(ModelFileError, match="cannot be read"):
        unpack(b"nothing of the kind")


def test_limits():
    assert (Limits().parts, Limits().state_bytes) == (5, 5 * (16 * MIB - HEAD))
    tight = Limits(total_bytes=64 * MIB)
    assert (tight.parts, tight.state_bytes) == (4, 61 * MIB)
    # Five million parameters at 12.6 bytes fit in eight files; four million also in 64 MiB together.
    assert Limits().fits(5_000_000 * 13)
    assert tight.fits(4_000_000 * 13)
    assert not tight.fits(5_000_000 * 13)
    assert Limits(files=3).state_bytes == 0
    check_size(40_000_000, Limits())
    with pytest.raises(InputError, match="take a smaller network"):
        check_size(56_000_000, Limits())
    check_size(20_000_000, Limits(), models=2)
    with pytest.raises(InputError, match="with its teacher in half precision it takes 114 MiB"):
        check_size(30_000_000, Limits(), models=2)


@pytest.mark.parametrize("name", ["fashion", "fashion-cd", "cifar10"])
def test_gallery_jobs_are_sized_to_continue_exactly(name):
    job = jobs()[name]
    network = job.stages[0].recipe(job.stages[0].most, None).network
    if isinstance(network, str):
        network = named(network, 28, 1, 10)
    with torch.device("meta"):
        count = sum(p.numel() for p in ConsistencyModel(ModelConfig(network, Preconditioning())).network.parameters())
    assert Limits(total_bytes=64 * MIB).fits(int(count * (12.7 + 1.8)))  # with the teacher


def test_the_large_job_travels_in_half_precision():
    network = jobs()["cifar10-large"].stages[0].recipe(1_000_000, None).network
    with torch.device("meta"):
        count = sum(p.numel() for p in ConsistencyModel(ModelConfig(network, Preconditioning())).network.parameters())
    assert not Limits().fits(int(count * 12.6))
    check_size(count, Limits(), models=2)
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.05
    each = len(pack({"w": weights.half()}, {}, {}, {})) / 100_000
    assert Limits().fits(int(count * 3 * each) + MIB)  # weights, average, teacher


@pytest.mark.parametrize("name", list(jobs()))
def test_every_stage_has_a_recipe(name):
    before = ConsistencyModel(ModelConfig(named("tiny", 8, 1, 10), Preconditioning("edm", 0.5, 0.0), "denoiser"))
    for number, stage in enumerate(jobs()[name].stages):
        for images in (stage.least, stage.most):
            recipe = stage.recipe(images, None if number == 0 else before)
            assert recipe.images == images
        assert (recipe.init is before or recipe.teacher is before) == (number > 0)
    assert sum(stage.share for stage in jobs()[name].stages) == pytest.approx(1)


def test_the_budget_follows_from_rate_and_time():
    stage = dataclasses.replace(jobs()["digits"].stages[0], least=1000, most=100_000)
    assert images_for(stage, 100.0, 100.0, 8) == 9200
    assert images_for(stage, 1.0, 1.0, 8) == 1000
    assert images_for(stage, 1e9, 1.0, 8) == 100_000
    assert images_for(stage, 123.4, 100.0, 100) == 11_000  # 11,353 to two digits


def test_compiling_must_pay_for_itself():
    assert compile_pays(100, 200, 50, 101)
    assert not compile_pays(100, 200, 50, 99)
    assert not compile_pays(100, 90, 0, 1000)


def test_data_that_are_not_there_are_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("ATONCE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cifar10 is not in"):
        jobs()["cifar10"].check()
