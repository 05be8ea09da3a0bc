"""Many images: the same to the bit however the work is cut, killed at any moment, and never in the place of something else."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atonce
from atonce.core.errors import InputError, StorageError
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel
from atonce.reports import bulk, file_target
from atonce.reports.bulk import Made, cut, generate
from atonce.reports.file_target import FileTarget
from atonce.reports.folder_target import FolderTarget
from atonce.reports.job import Job

NAMES = ["s.png", "s.webp", "s.zip", "s.npz", "s"]
JOB = Job(n=20, first=5, batch=8)  # cells 0-7, 8-15, 16-23, 24-31


@pytest.fixture(scope="module")
def model() -> ConsistencyModel:
    return atonce.load("digits")


@pytest.fixture(scope="module")
def conditional() -> ConsistencyModel:
    return atonce.load("fashion-mnist")


def content(out: Path) -> dict[str, bytes]:
    """All that is in an output, by name."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())} if out.is_dir() else {"": out.read_bytes()}


def make(model: ConsistencyModel, job: Job, out: Path, **options) -> Made:
    return generate(model, job, out, quiet=True, **options)


@pytest.fixture(scope="module")
def whole(model: ConsistencyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What an uninterrupted job leaves, for each form."""
    root = tmp_path_factory.mktemp("whole")
    for name in NAMES:
        assert make(model, JOB, root / name).finished
    assert sorted(p.name for p in root.iterdir()) == sorted(NAMES)  # no parts are left
    return {name: content(root / name) for name in NAMES}


# ---- the grid of batches


@given(st.integers(0, 10**6), st.integers(1, 5000), st.integers(1, 300))
def test_cells_cover_the_images_once_on_a_grid_that_does_not_depend_on_the_job(first: int, n: int, batch: int) -> None:
    cells = cut(first, n, batch)
    assert [i for cell in cells for i in range(cell.low, cell.high)] == list(range(first, first + n))
    assert all(cell.start <= cell.low < cell.high <= cell.start + cell.size for cell in cells)
    if n >= batch:
        assert all(cell.size == batch and cell.start % batch == 0 for cell in cells)
        assert sum(cell.size for cell in cells) < n + 2 * batch
    else:
        assert sum(cell.size for cell in cells) == n


def test_images_are_those_of_the_model(model: ConsistencyModel, tmp_path: Path) -> None:
    made = make(model, JOB, tmp_path / "s.npz")
    assert (made.images, made.found, made.calls, made.finished) == (20, 0, 1, True)
    assert made.rate is not None
    here = np.load(tmp_path / "s.npz")["arr_0"].astype(int)
    there = atonce.to_uint8(model.sample(20, first=5)).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(here - there).max() <= 1
    small = Job(n=3, first=62)  # fewer than a batch: these and no others
    make(model, small, tmp_path / "t.npz")
    there = atonce.to_uint8(model.sample(3, first=62)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "t.npz")["arr_0"], there)


@pytest.mark.parametrize("at", [500, 512 - 37])
def test_parts_made_by_hand_are_the_whole(model: ConsistencyModel, tmp_path: Path, at: int, monkeypatch) -> None:
    """Not only to 1e-5, and for borders that fall into a batch."""
    kept: dict[str, dict[int, torch.Tensor]] = {"whole": {}, "parts": {}}
    where = "whole"

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[where][len(kept[where])] = x.clone()
        return atonce.to_uint8(x)

    monkeypatch.setattr(bulk, "to_uint8", keep)  # floats, since rounding to bytes would hide most of a difference
    first, n = at - 70, 140
    make(model, Job(n=n, first=first), tmp_path / "whole")
    where = "parts"
    make(model, Job(n=70, first=first), tmp_path / "parts")
    make(model, Job(n=70, first=at), tmp_path / "parts")
    a, b = (torch.cat(list(kept[name].values())) for name in ("whole", "parts"))
    assert torch.equal(a, b)
    pictures = [{k: v for k, v in content(tmp_path / name).items() if k.endswith("png")} for name in ("whole", "parts")]
    assert len(pictures[0]) == n
    assert pictures[0] == pictures[1]


def test_seeds_of_single_images(model: ConsistencyModel, tmp_path: Path) -> None:
    seeds = (7, 7, 9, 1 << 40, 5)
    make(model, Job(n=5, first=3, seeds=seeds, batch=2), tmp_path / "s")
    images = open_data(tmp_path / "s").images
    assert torch.equal(images[0], images[1])
    wanted = atonce.to_uint8(model.sample(5, seeds=seeds))
    assert int((images.int() - wanted.int()).abs().max()) <= 1
    assert sorted(p.name for p in (tmp_path / "s").glob("*.png"))[0] == "000003.png"


def test_steps_are_counted_in_calls(model: ConsistencyModel, tmp_path: Path) -> None:
    assert make(model, replace(JOB, steps=2), tmp_path / "s.npz").calls == 2
    again = make(model, replace(JOB, steps=2), tmp_path / "s.npz")
    assert (again.calls, again.found, again.rate) == (2, 20, None)


# ---- classes


@pytest.mark.parametrize("name", ["s.zip", "s.npz", "s"])
def test_classes_come_back_with_the_images(conditional: ConsistencyModel, tmp_path: Path, name: str) -> None:
    job = Job(n=5, first=3, labels=(3, 1, 4, 1, 5), batch=2)
    make(conditional, job, tmp_path / name)
    data = open_data(tmp_path / name)
    assert data.labels.tolist() == [3, 1, 4, 1, 5]
    wanted = atonce.to_uint8(conditional.sample(5, first=3, labels=[3, 1, 4, 1, 5]))
    assert int((data.images.int() - wanted.int()).abs().max()) <= 1


@pytest.mark.parametrize("seeds", [None, (4, 5, 6)])
def test_classes_that_are_not_given_are_those_the_model_draws(
    conditional: ConsistencyModel, tmp_path: Path, seeds: tuple[int, ...] | None
) -> None:
    make(conditional, Job(n=3, first=40, seed=9, seeds=seeds), tmp_path / "s.npz")
    data = open_data(tmp_path / "s.npz")
    drawn = conditional.sample(3, seed=9, first=40, seeds=seeds)
    assert torch.equal(data.images, atonce.to_uint8(drawn))
    assert torch.equal(drawn, conditional.sample(3, seed=9, first=40, seeds=seeds, labels=data.labels))
    assert len(set(data.labels.tolist())) > 1


def test_parts_of_one_folder_may_have_classes_of_their_own(conditional: ConsistencyModel, tmp_path: Path) -> None:
    out = tmp_path / "s"
    make(conditional, Job(n=2, labels=(3,)), out)
    make(conditional, Job(n=2, first=2, labels=(5,)), out)
    assert open_data(out).labels.tolist() == [3, 3, 5, 5]
    with pytest.raises(InputError, match="labels 3 there, 4 here"):
        make(conditional, Job(n=3, first=1, labels=(4,)), out)
    assert open_data(out).labels.tolist() == [3, 3, 5, 5]


# ---- killed and continued


def killed_at(moment: int, model: ConsistencyModel, job: Job, out: Path) -> bool:
    """Run a job in a process that is killed before the ``moment``-th change of the disk; whether it got that far.

    The changes are: the manifest, the number of calls in it, the parts (or pictures), the whole file, its place, the clearing.
    """
    child = os.fork()
    if not child:
        count = 0

        def counted(change):
            def instead(*args, **options):
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **options)

            return instead

        os.replace, os.unlink, os.rmdir = (counted(f) for f in (os.replace, os.unlink, os.rmdir))
        try:
            make(model, job, out)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_single_batch_is_killed_at_any_moment(model: ConsistencyModel, tmp_path: Path, name: str) -> None:
    job, moments = Job(n=3), 0
    assert make(model, job, tmp_path / name).calls == 1
    for moment in range(1, 20):
        root = tmp_path / str(moment)
        root.mkdir()
        if not killed_at(moment, model, job, root / name):
            break
        moments += 1
        made = make(model, job, root / name)
        assert (made.finished, made.calls) == (True, 1), moment
        assert content(root / name) == content(tmp_path / name), moment
    assert moments >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_moment_the_same_command_continues(
    model: ConsistencyModel, whole: dict[str, dict[str, bytes]], tmp_path: Path, name: str
) -> None:
    moments = 0
    for moment in range(1, 100):
        root = tmp_path / str(moment)
        root.mkdir()
        if not killed_at(moment, model, JOB, root / name):
            break
        moments += 1
        if moment % 4 and name == "s" and moment > 6:
            continue  # one image after the other
        if (root / name).is_file():  # never a part of the file in its place
            assert content(root / name) == whole[name]
        made = make(model, JOB, root / name)
        assert made.finished
        assert content(root / name) == whole[name], moment
        make(model, JOB, root / name)
        assert [p.name for p in root.iterdir()] == [name]  # also what was cleared by half is gone
    assert moments >= 1 + 1 + 4 + 2


def test_what_was_made_is_not_made_again(model: ConsistencyModel, tmp_path: Path) -> None:
    assert killed_at(5, model, JOB, tmp_path / "s.npz")
    parts = sorted(p.name for p in (tmp_path / ".s.npz.parts").glob("0*.npy"))
    assert parts == ["000000000005.npy", "000000000008.npy"]
    made = make(model, JOB, tmp_path / "s.npz")
    assert (made.images, made.found, made.calls) == (20, 11, 1)


@pytest.mark.parametrize("name", NAMES)
def test_stopped_between_batches_the_same_command_continues(
    model: ConsistencyModel, whole: dict[str, dict[str, bytes]], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, kept = Event(), []
    for kind in (FileTarget, FolderTarget):

        def write(self, cell, images, write=kind.write):
            write(self, cell, images)
            kept.append(cell)
            if len(kept) == 2:
                stop.set()

        monkeypatch.setattr(kind, "write", write)
    made = make(model, JOB, tmp_path / name, stop=stop)
    assert (made.finished, made.images) == (False, 11)
    made = make(model, JOB, tmp_path / name)
    assert (made.finished, made.found) == (True, 11)
    assert content(tmp_path / name) == whole[name]


def test_stopped_between_steps_the_batch_in_hand_is_lost_and_no_other(model: ConsistencyModel, tmp_path: Path) -> None:
    stop, job = Event(), replace(JOB, steps=3)
    inner, steps = model.network.forward, []

    def forward(*args, **options):
        steps.append(1)
        if len(steps) == 5:  # the second step of the second batch
            stop.set()
        return inner(*args, **options)

    model.network.forward = forward
    try:
        made = make(model, job, tmp_path / "s.npz", stop=stop)
    finally:
        del model.network.forward
    assert (made.finished, made.images, len(steps)) == (False, 3, 5)


def test_stopped_while_the_file_is_assembled(
    model: ConsistencyModel, whole: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, write = Event(), file_target.write_output

    def stopped(*args, **options):
        stop.set()
        write(*args, **options)

    monkeypatch.setattr(file_target, "write_output", stopped)
    assert not make(model, JOB, tmp_path / "s.zip", stop=stop).finished
    assert not (tmp_path / "s.zip").exists()
    monkeypatch.undo()
    assert make(model, JOB, tmp_path / "s.zip").found == 20
    assert content(tmp_path / "s.zip") == whole["s.zip"]


@pytest.mark.parametrize("name", ["s.npz", "s"])
@pytest.mark.parametrize("after", [3, 6])
def test_a_full_disk_is_one_line_and_loses_nothing(
    model: ConsistencyModel,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
    name: str,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count > after * (1 if name == "s.npz" else 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left on the disk.*free some space and resume"):
        make(model, JOB, tmp_path / name)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.rglob("*.tmp"))
    assert make(model, JOB, tmp_path / name).finished
    assert content(tmp_path / name) == whole[name]


def test_a_damaged_part_is_made_again(model: ConsistencyModel, whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    assert killed_at(5, model, JOB, tmp_path / "s.npz")
    part = tmp_path / ".s.npz.parts" / "000000000008.npy"
    part.write_bytes(part.read_bytes()[:-5])
    assert make(model, JOB, tmp_path / "s.npz").found == 3
    assert content(tmp_path / "s.npz") == whole["s.npz"]
