"""An interrupted run that is resumed is the same run, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from atonce.model import ConsistencyModel
from atonce.training.checkpoint import list_checkpoints, newest_checkpoint
from atonce.training.engine import Engine
from atonce.training.monitor import Monitor


class Interrupted(Exception):
    pass


def raise_at(line: int):
    """A callback that raises at the given log line."""
    seen = []

    def callback(values):
        seen.append(values)
        if len(seen) == line:
            raise Interrupted

    return callback


def send_at(number: signal.Signals, line: int):
    """A callback that signals this process at the given log line."""
    seen = []

    def callback(values):
        seen.append(values)
        if len(seen) == line:
            os.kill(os.getpid(), number)

    return callback


@pytest.fixture(autouse=True)
def _main_thread():
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")


@pytest.mark.parametrize("line", [1, 4, 9])
def test_after_an_exception_with_a_checkpoint_at_every_step(tools, reference, tmp_path, line):
    with pytest.raises(Interrupted):
        tools.train(tmp_path / "run", checkpoint_seconds=0, callback=raise_at(line))
    run = tools.train(tmp_path / "run")
    assert run.finished
    tools.assert_same_run(tmp_path / "run", reference.folder)


def test_after_an_exception_without_any_checkpoint(tools, reference, tmp_path):
    with pytest.raises(Interrupted):
        tools.train(tmp_path / "run", callback=raise_at(5))
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
    tools.train(tmp_path / "run")
    tools.assert_same_run(tmp_path / "run", reference.folder)


def test_many_interruptions_of_one_run(tools, reference, tmp_path):
    for line in (1, 2, 1, 3):
        with pytest.raises(Interrupted):
            tools.train(tmp_path / "run", checkpoint_seconds=0, callback=raise_at(line))
    tools.train(tmp_path / "run")
    tools.assert_same_run(tmp_path / "run", reference.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_a_checkpoint_and_ends_the_run_cleanly(tools, reference, tmp_path, number):
    before = signal.getsignal(number)
    run = tools.train(tmp_path / "run", callback=send_at(number, 3))
    assert signal.getsignal(number) is before
    assert not run.finished
    assert 0 < run.images_seen < 384
    found = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.images_seen == run.images_seen
    assert run.model.sample(2).shape == (2, 1, 8, 8)
    assert not (tmp_path / "run" / "model").exists()
    tools.train(tmp_path / "run")
    tools.assert_same_run(tmp_path / "run", reference.folder)


def test_a_stop_between_two_log_lines_keeps_what_was_measured(tools, reference, tmp_path, monkeypatch):
    step, count = Engine.step, []

    def counted(self):
        step(self)
        count.append(1)
        if len(count) == 6:  # two steps after the first line
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "step", counted)
    run = tools.train(tmp_path / "run")
    monkeypatch.undo()
    assert run.images_seen == 6 * 16
    assert newest_checkpoint(run.folder / "checkpoints").tensors["meters"].abs().sum() > 0
    tools.train(tmp_path / "run")
    tools.assert_same_run(tmp_path / "run", reference.folder)


@pytest.mark.parametrize("images", [128, 384], ids=["within the run", "at its end"])
def test_a_stop_in_an_evaluation_postpones_it(tools, tmp_path, monkeypatch, images):
    whole = tools.train(tmp_path / "whole", evaluate_images=300)  # in two parts
    sample = ConsistencyModel.sample

    def interrupted(self, n, steps, seed, *, first, **more):
        if self.card["images_seen"] == images and first == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, n, steps, seed, first=first, **more)

    monkeypatch.setattr(ConsistencyModel, "sample", interrupted)
    run = tools.train(tmp_path / "run", evaluate_images=300)
    monkeypatch.undo()
    assert not run.finished
    assert run.images_seen == images
    assert newest_checkpoint(run.folder / "checkpoints").facts["due"] is True
    assert not (run.folder / "samples" / f"{images:012d}.png").exists()
    run = tools.train(tmp_path / "run", evaluate_images=300)
    assert run.finished
    tools.assert_same_run(run.folder, whole.folder)


def test_a_second_ctrl_c_stops_at_once(tools, tmp_path, monkeypatch):
    def twice(self, sample, grid=64):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal should have ended this")

    monkeypatch.setattr(Monitor, "measure", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tools.train(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) == before


def test_training_in_a_thread_leaves_the_signals_alone(tools, reference, tmp_path):
    before, runs = signal.getsignal(signal.SIGTERM), []

    def callback(line):
        assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=lambda: runs.append(tools.train(tmp_path / "run", callback=callback)))
    thread.start()
    thread.join()
    assert runs[0].finished
    tools.assert_same_run(tmp_path / "run", reference.folder)


@pytest.mark.parametrize(
    ("preset", "changes", "options"),
    [
        ("ct", {"ema": (0.99,)}, {}),
        ("ect", {"dropout": 0.2}, {"microbatch": 5}),
        ("diffusion", {"conditional": True, "label_dropout": 0.2, "ema": (0.95,)}, {}),
        ("ict", {"flip": True, "lr_rampup": 100, "lr_cooldown": 0.5, "ema_rampup": 0.05}, {"microbatch": 7}),
    ],
    ids=["ct: a target network", "ect: passes", "diffusion: labels", "ict: schedules"],
)
def test_every_family_resumes_exactly(tools, tmp_path, preset, changes, options):
    if changes.get("conditional"):
        changes = changes | {"network": tools.NETWORK.__class__(**{**vars(tools.NETWORK), "labels": 10})}
    recipe = tools.make_recipe(preset, images=192, **changes)
    whole = tools.train(tmp_path / "whole", recipe, **options)
    stopped = tools.train(tmp_path / "run", recipe, callback=send_at(signal.SIGTERM, 1), **options)
    assert not stopped.finished
    tools.train(tmp_path / "run", recipe, **options)
    tools.assert_same_run(tmp_path / "run", whole.folder)


def test_bf16_is_chosen_again_as_before(tools, tmp_path):
    # On a machine without bf16 hardware it is emulated: slow, but the same path.
    options = {"precision": "bf16"}
    recipe = tools.make_recipe(images=192)
    whole = tools.train(tmp_path / "whole", recipe, **options)
    lines = tools.log_of(whole.folder)
    assert any("bf16" in note for line in lines for note in line.get("notes", []))
    tools.train(tmp_path / "run", recipe, callback=send_at(signal.SIGTERM, 1), **options)
    tools.train(tmp_path / "run", recipe, **options)
    tools.assert_same_run(tmp_path / "run", whole.folder)


def test_fp32_that_is_asked_for_counts_at_once(tools, tmp_path):
    recipe = tools.make_recipe(images=192)
    tools.train(tmp_path / "run", recipe, precision="bf16", callback=send_at(signal.SIGTERM, 1))
    tools.train(tmp_path / "run", recipe, precision="fp32")
    lines = [line for line in tools.log_of(tmp_path / "run") if "loss" in line]
    assert {line["precision"] for line in lines[1:]} == {"float32"}


def test_a_finished_run_is_opened_and_not_touched(tools, reference, tmp_path):
    folder = tmp_path / "run"
    tools.train(folder)
    model = ConsistencyModel.from_pretrained(folder / "model")
    model.card["description"] = "searched and described since"
    model.save_pretrained(folder / "model")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    run = tools.train(folder)
    assert run.finished
    assert run.model.card["description"] == "searched and described since"
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_finished_run_whose_model_is_gone_or_damaged_writes_it_again(tools, reference, tmp_path):
    folder = tmp_path / "run"
    tools.train(folder)
    weights = folder / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\1\2\3")
    tools.train(folder)
    assert weights.read_bytes() == content
    tools.assert_same_run(folder, reference.folder)


def test_another_length_of_log_does_not_change_what_is_learnt(tools, reference, tmp_path):
    run = tools.train(tmp_path / "run", log_every=16, evaluate_every=10**9, checkpoint_seconds=0)
    a, b = (newest_checkpoint(folder / "checkpoints").tensors for folder in (run.folder, reference.folder))
    assert all(torch.equal(a[name], b[name]) for name in a if name != "meters")


def test_the_log_counts_seconds_of_all_parts(tools, tmp_path):
    folder = Path(tmp_path / "run")
    tools.train(folder, callback=send_at(signal.SIGTERM, 3))
    first = newest_checkpoint(folder / "checkpoints").facts["seconds"]
    lines = []
    tools.train(folder, callback=lines.append)
    assert lines[0]["seconds"] >= first
