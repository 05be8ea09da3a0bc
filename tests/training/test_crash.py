"""Kill -9 at any moment, a full disk, a loss that is not finite: at most the work since the last checkpoint is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atonce.core.errors import InputError, StorageError, TrainingError
from atonce.model import ConsistencyModel
from atonce.training import checkpoint, rundir
from atonce.training.checkpoint import list_checkpoints, newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.rundir import RunFolder

OPTIONS = {"precision": "fp32", "quiet": True, "log_every": 64, "evaluate_every": 128, "evaluate_images": 32}

# In the order in which a run comes to them: each kill is followed by a resume that dies at the next place.
PLACES = [
    ("json:before", 1),  # before run.json
    ("json:before", 2),  # between run.json and recipe.json
    ("json:after", 2),
    ("step:before", 1),
    ("checkpoint:half", 1),
    ("state:before", 1),
    ("state:after", 1),
    ("log:half", 1),
    ("step:after", 3),
    ("checkpoint:half", 3),
    ("measure:before", 1),
    ("measure:after", 1),
    ("png:before", 1),
    ("png:after", 1),
    ("model:half", 1),
    ("rename:before", 1),  # the first model folder, before it is put in its place
    ("rename:after", 1),
    ("cut:before", 1),  # while resuming
    ("cut:after", 1),
    ("log:half", 2),
    ("state:after", 4),
    ("step:after", 3),
    ("measure:after", 1),
    ("rename:after", 1),  # the old folder is aside, the new one not there yet
    ("state:before", 1),
]
LAST = [("model:half", 1), ("rename:before", 1), ("rename:after", 1)]  # the final model, once training is over


@pytest.fixture(scope="module")
def whole(victims, tmp_path_factory):
    """The same run in such a process, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = victims(out=folder, images=384, checkpoint_seconds=0, **OPTIONS)
    assert ended["signal"] == 0
    assert ended["code"] == 0
    return folder


def test_processes_of_their_own_compute_the_same(tools, whole, reference):
    tools.assert_same_run(whole, reference.folder)


@pytest.mark.timeout(900)
def test_killed_at_every_place_in_turn(tools, victims, whole, tmp_path):
    folder = tmp_path / "run"
    for place, occurrence in PLACES:
        ended = victims(out=folder, images=384, checkpoint_seconds=0, place=place, occurrence=occurrence, **OPTIONS)
        assert ended["signal"] == 9, f"never came to {place} {occurrence}"
    # To the last step and past the last checkpoint: everything is done but for the model folder.
    for place, occurrence in LAST:
        ended = victims(out=folder, images=384, checkpoint_seconds=0, **OPTIONS)
        assert ended["code"] == 0
        shutil.rmtree(folder / "model")
        ended = victims(out=folder, images=384, checkpoint_seconds=0, place=place, occurrence=occurrence, **OPTIONS)
        assert ended["signal"] == 9, f"never came to {place} {occurrence} at the end"
    assert victims(out=folder, images=384, checkpoint_seconds=0, **OPTIONS)["code"] == 0
    tools.assert_same_run(folder, whole)


def test_a_kill_loses_at_most_the_work_since_the_last_checkpoint(victims, tmp_path):
    folder = tmp_path / "run"
    victims(out=folder, images=384, checkpoint_seconds=0, place="step:after", occurrence=7, **OPTIONS)
    assert newest_checkpoint(folder / "checkpoints").images_seen == 6 * 16
    victims(out=folder, images=384, checkpoint_seconds=0, place="step:after", occurrence=7, **OPTIONS)
    assert newest_checkpoint(folder / "checkpoints").images_seen == 12 * 16


def kill_at_random(kill, finish, folders, kills: int, seconds: float, seed: int) -> None:
    """Kill runs after random times until that was done ``kills`` times; each run is resumed until it is finished."""
    rng, done = random.Random(seed), 0
    while done < kills:
        folder = next(folders)
        while done < kills:
            if not kill(folder, rng.uniform(0, seconds)):
                seconds *= 0.8  # it was quicker
                break
            done += 1
        finish(folder)


@pytest.mark.timeout(900)
def test_killed_at_random_moments(tools, victims, whole, tmp_path):
    options = {"images": 384, "checkpoint_seconds": 0.05, **OPTIONS}
    timed = victims(out=tmp_path / "timed", **options)["seconds"]
    finished = []

    def kill(folder, after):
        return victims(out=folder, after=after, **options)["signal"] == 9

    def finish(folder):
        assert victims(out=folder, **options)["code"] == 0
        finished.append(folder)

    kill_at_random(kill, finish, (tmp_path / f"run{i}" for i in range(100)), kills=4, seconds=timed, seed=20)
    for folder in finished:
        tools.assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_twenty_random_moments_of_whole_processes(tools, tmp_path):
    """Every try is a fresh interpreter, so some of the moments fall into the start."""
    script = Path(__file__).with_name("victim.py")
    options = {"images": 2400, "checkpoint_seconds": 0.3, **OPTIONS, "log_every": 160, "evaluate_every": 400}

    def start(folder):
        job = json.dumps({"out": str(folder), **options})
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, str(script), "--once", job], env=environment)

    def kill(folder, after):
        with start(folder) as process:
            time.sleep(after)
            process.kill()
        return process.returncode == -9

    def finish(folder):
        with start(folder) as process:
            assert process.wait(timeout=300) == 0
        finished.append(folder)

    finished = []
    begun = time.monotonic()
    finish(tmp_path / "whole")
    seconds = time.monotonic() - begun
    kill_at_random(kill, finish, (tmp_path / f"run{i}" for i in range(100)), kills=20, seconds=seconds, seed=7)
    assert len(finished) > 1
    for folder in finished[1:]:
        tools.assert_same_run(folder, finished[0])


# ---- damaged checkpoints


def stopped_with_checkpoints(tools, folder, callback_line=5):
    class Stop(Exception):
        pass

    lines = []

    def callback(line):
        lines.append(line)
        if len(lines) == callback_line:
            raise Stop

    with pytest.raises(Stop):
        tools.train(folder, checkpoint_seconds=0, callback=callback)
    return list_checkpoints(folder / "checkpoints")


def test_a_damaged_newest_checkpoint_costs_only_what_came_after_the_one_before(tools, reference, tmp_path):
    newest, older, _ = stopped_with_checkpoints(tools, tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged.*falling back to {older.name}"):
        tools.train(tmp_path / "run", checkpoint_seconds=0)
    tools.assert_same_run(tmp_path / "run", reference.folder)


def test_all_checkpoints_damaged_stops_before_anything_is_lost(tools, tmp_path):
    for path in stopped_with_checkpoints(tools, tmp_path / "run"):
        path.write_bytes(path.read_bytes()[:-1])
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match="none of the 3 checkpoints"):
        tools.train(tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_a_foreign_checkpoint_is_passed_over(tools, reference, tmp_path):
    stopped_with_checkpoints(tools, tmp_path / "run")
    stranger = tmp_path / "run" / "checkpoints" / "pytorch_model.bin"
    stranger.write_bytes(b"\x80\x04")
    tools.train(tmp_path / "run")
    assert stranger.read_bytes() == b"\x80\x04"
    tools.assert_same_run(tmp_path / "run", reference.folder)


def test_a_checkpoint_of_another_recipe_is_refused(tools, tmp_path):
    stopped_with_checkpoints(tools, tmp_path / "run")
    tools.train(tmp_path / "other", tools.make_recipe(seed=5))
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"state-000000000384-.* belongs to another recipe"):
        tools.train(tmp_path / "run")


def test_a_checkpoint_of_another_version_is_one_clear_error(tools, tmp_path):
    newest = stopped_with_checkpoints(tools, tmp_path / "run")[0]
    found = checkpoint.load_checkpoint(newest)
    tensors = {name: value for name, value in found.tensors.items() if not name.startswith("network/")}
    checkpoint.save_checkpoint(newest.parent, found.images_seen, tensors, found.facts, 1)
    with pytest.raises(InputError, match="does not fit this version of atonce"):
        tools.train(tmp_path / "run")


# ---- a full disk


def refuse(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nth(number: int, then, original):
    """``then`` from the n-th call on, ``original`` before."""
    count = []

    def call(*args, **options):
        count.append(1)
        return (then if len(count) >= number else original)(*args, **options)

    return call


def fill_checkpoint(monkeypatch):
    from safetensors import SafetensorError

    def full(content, path, **more):
        Path(path).write_bytes(b"a part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", nth(6, full, checkpoint.save_file))


def fill_log(monkeypatch):
    class Full:
        def __init__(self, path, mode="r", **more):
            self.file = open(path, mode, **more)  # noqa: SIM115 - closed by __exit__

        def __enter__(self):
            return self

        def __exit__(self, *problem):
            self.file.close()

        def write(self, text):
            self.file.write(text[:10])
            self.file.flush()
            refuse()

    def choose(path, mode="r", **more):
        return full(path, mode, **more) if mode == "a" else open(path, mode, **more)

    full = nth(3, Full, open)
    monkeypatch.setattr(rundir, "open", choose, raising=False)


def fill_png(monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image.Image, "save", nth(2, refuse, Image.Image.save))


def fill_model(monkeypatch):
    import atonce.model_files

    def full(content, path, **more):
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(atonce.model_files, "save_file", full)


def fill_events(monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    monkeypatch.setattr(RecordWriter, "write", nth(5, refuse, RecordWriter.write))


def fill_rename(monkeypatch):
    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize("fill", [fill_checkpoint, fill_log, fill_png, fill_model, fill_events, fill_rename])
def test_a_disk_that_is_full_at_one_place(tools, reference, tmp_path, monkeypatch, fill):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(StorageError, match="no space left on the disk while writing") as caught:
            tools.train(folder, checkpoint_seconds=0)
    assert "\n" not in str(caught.value)
    found = newest_checkpoint(folder / "checkpoints")  # whole, without a warning (warnings of pytest would show)
    assert found is not None
    assert found.images_seen < 384
    assert tools.train(folder, checkpoint_seconds=0).finished
    tools.assert_same_run(folder, reference.folder)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "atonce-test", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield folder
    done = subprocess.run(["umount", folder], capture_output=True, text=True)
    if done.returncode:
        subprocess.run(["umount", "--lazy", folder], check=True)
        pytest.fail(f"a file was left open: {done.stderr.strip()}")


def problem_of(call) -> list[str]:
    """What a call says where the disk is full; nothing where there was room enough."""
    try:
        call()
    except StorageError as error:
        return [str(error)]
    return []


def test_a_disk_that_is_really_full(tools, reference, small_disk):
    folder, filler = small_disk / "run", small_disk / "filler"
    met = []
    for kilobytes in (0, 8, 150, 300, 600, 800):  # left free: for the claim, the log, a checkpoint, more of them, models
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(small_disk).free - kilobytes * 1024))
        met += problem_of(lambda: tools.train(folder, checkpoint_seconds=0))
        filler.unlink()
    assert len(met) >= 3
    assert all("no space left on the disk while writing" in text and "\n" not in text for text in met)
    assert len({text.split(" while writing ")[1] for text in met}) >= 2, met
    assert tools.train(folder, checkpoint_seconds=0).finished
    tools.assert_same_run(folder, reference.folder)


# ---- a loss that is not finite


def test_nan_stops_and_names_the_last_good_checkpoint(tools, tmp_path, monkeypatch):
    terms = Engine.terms

    def broken(self, index, stage, dtype):
        result, t = terms(self, index, stage, dtype)
        if self.images_seen >= 160:
            result.loss.mul_(float("nan"))
        return result, t

    monkeypatch.setattr(Engine, "terms", broken)
    with pytest.raises(TrainingError, match="not finite") as caught:
        tools.train(tmp_path / "run", checkpoint_seconds=0)
    text = str(caught.value)
    assert "\n" not in text
    good = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert good is not None
    assert str(good.path) in text
    assert good.images_seen == 160
    assert all(bool(torch.isfinite(value).all()) for value in good.tensors.values())
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert tools.train(tmp_path / "run").finished


def test_nan_before_any_checkpoint_says_so(tools, tmp_path, monkeypatch):
    terms = Engine.terms

    def broken(self, index, stage, dtype):
        result, t = terms(self, index, stage, dtype)
        return result.__class__(result.loss * float("inf"), result.distance), t

    monkeypatch.setattr(Engine, "terms", broken)
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        tools.train(tmp_path / "run")
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_weights_that_are_not_finite_are_never_saved(tools, tmp_path, monkeypatch):
    """The last step before a checkpoint can spoil the weights while every loss so far was finite."""
    step = Engine.step

    def spoil(self):
        step(self)
        if self.images_seen == 96:
            with torch.no_grad():
                next(self.network.parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(Engine, "step", spoil)
    with pytest.raises(TrainingError, match="state of the network is not finite.*last good checkpoint is .*state-000000000080"):
        tools.train(tmp_path / "run", checkpoint_seconds=0)


def test_an_absurd_learning_rate_never_leaves_a_broken_model(tools, tmp_path):
    """Whether it overflows or not, what is on disk is made of numbers."""
    recipe = tools.make_recipe("diffusion", images=1600, lr=10.0, lr_rampup=0, ema=(0.9,))
    problem = ""
    try:
        tools.train(tmp_path / "run", recipe, checkpoint_seconds=0)
    except TrainingError as error:
        problem = str(error)
    assert "\n" not in problem
    good = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert good is not None
    assert all(bool(torch.isfinite(value).all()) for value in good.tensors.values())
    for folder in ("best", "model"):
        if (tmp_path / "run" / folder).exists():
            weights = ConsistencyModel.from_pretrained(tmp_path / "run" / folder).network.state_dict()
            assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_log_that_ends_in_half_a_line_is_continued(tools, reference, tmp_path):
    stopped_with_checkpoints(tools, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with open(folder.log_file, "a") as file:
        file.write('{"images": 200, "lo')
    tools.train(tmp_path / "run")
    tools.assert_same_run(tmp_path / "run", reference.folder)
