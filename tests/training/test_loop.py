"""What a run leaves behind, what it says, and what it refuses before any work is done."""

from __future__ import annotations

import json
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import atonce
from atonce.core.errors import InputError, StorageError
from atonce.data.dataset import ImageData
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.training import presets
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.engine import BINS
from atonce.training.loop import fit
from atonce.training.monitor import Monitor
from atonce.training.options import Options
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder
from atonce.training.sinks import Events
from atonce.training.stopping import stop_requests


def denoiser(channels: int = 1, kind: str = "denoiser") -> ConsistencyModel:
    network = UNetConfig(8, channels, channels=8, channel_mult=(1,), blocks=1, attention=())
    return ConsistencyModel(ModelConfig(network, Preconditioning("edm", 0.5, 0.0), kind))


# ---- what a run leaves behind


def test_the_run_folder_holds_what_people_expect(reference):
    folder = reference.folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["best", "checkpoints", "log.jsonl", "model", "recipe.json", "run.json", "samples", "tensorboard"]
    assert len(list((folder / "checkpoints").iterdir())) == 1  # by the clock on the wall only one was due
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{n:012d}.png" for n in (128, 256, 384)]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["data"]["count"] == len(open_data("digits"))
    assert facts["data"]["digest"] == open_data("digits").digest()
    assert facts["versions"]["torch"] == torch.__version__


def test_the_recipe_in_the_folder_is_resolved_and_reads_back(tools, reference):
    recipe = RunFolder(reference.folder).read_recipe()
    assert isinstance(recipe.network, UNetConfig)
    assert recipe.sigma_data == pytest.approx(open_data("digits").statistics().std, abs=1e-4)
    resolved = tools.make_recipe().resolve(8, 1, 10, open_data("digits").statistics().std)
    assert recipe == resolved
    assert recipe.digest() == resolved.digest() == reference.model.card["recipe_digest"]
    assert Recipe.from_dict(reference.model.card["recipe"]) == recipe


def test_the_run_is_finished_and_its_model_samples(reference):
    assert reference.finished
    assert reference.images_seen == 384
    assert reference.records == reference.model.records == []
    model = reference.model
    assert model.kind == "consistency"
    assert model.shape == (1, 8, 8)
    assert model.sample(3, seed=1).shape == (3, 1, 8, 8)
    opened = atonce.load(reference.folder)
    assert torch.equal(opened.sample(3, seed=1), model.sample(3, seed=1))
    assert opened.card["images_seen"] == 384
    assert opened.card["method"] == "ict"


def test_the_model_is_the_first_average_and_holds_the_others(tools, reference):
    model = reference.model
    tensors = newest_checkpoint(reference.folder / "checkpoints").tensors
    assert model.ema_names == ["0.9", "0.99"]
    assert torch.equal(model.sample(2), model.sample(2, ema="0.9"))
    weights = model.network.state_dict()
    first = {name.removeprefix("ema/0.9/"): value for name, value in tensors.items() if name.startswith("ema/0.9/")}
    assert first
    assert all(torch.equal(weights[name], value) for name, value in first.items())
    live = {name.removeprefix("network/"): value for name, value in tensors.items() if name.startswith("network/")}
    assert any(not torch.equal(live[name], value) for name, value in first.items())
    assert not torch.equal(model.sample(2), model.sample(2, ema="0.99"))
    assert torch.equal(atonce.load(reference.folder).sample(2, ema="0.99"), model.sample(2, ema="0.99"))
    with pytest.raises(InputError, match=r"ema '0\.5' is not in this model; present: 0\.9, 0\.99"):
        model.sample(2, ema="0.5")


def test_the_log_tells_by_noise_level_what_the_loss_alone_does_not(tools, reference):
    lines = RunFolder(reference.folder).read_log()
    training = [line for line in lines if "loss" in line]
    assert [line["images"] for line in training] == [64, 128, 192, 256, 320, 384]
    for line in training:
        assert len(line["loss_by_sigma"]) == len(line["distance_by_sigma"]) == len(line["count_by_sigma"]) == BINS
        assert sum(line["count_by_sigma"]) == 64  # every image of the interval, once
        means = np.array([line["count_by_sigma"], line["loss_by_sigma"], line["distance_by_sigma"]])
        assert line["loss"] == pytest.approx(float((means[0] * means[1]).sum() / 64))
        assert line["distance"] == pytest.approx(float((means[0] * means[2]).sum() / 64))
        assert line["grad_norm"] > 0
        assert line["precision"] == "float32"
        assert line["lr"] == 1e-4
        assert line["seconds"] > 0
    assert [line["N"] for line in training] == [11, 11, 11, 21, 21, 21]
    evaluations = [line for line in lines if "best" in line]
    assert [line["images"] for line in evaluations] == [128, 256, 384]
    for line in evaluations:
        assert line["frechet-pixels-1"] > 0
        assert len(line["grad_norm_by_sigma"]) == BINS


def test_the_best_is_the_one_with_the_lowest_distance(reference):
    evaluations = [line for line in RunFolder(reference.folder).read_log() if "best" in line]
    lowest = min(evaluations, key=lambda line: line["frechet-pixels-1"])
    assert [line["best"] for line in evaluations] == [
        line["frechet-pixels-1"] < min([other["frechet-pixels-1"] for other in evaluations[:i]], default=float("inf"))
        for i, line in enumerate(evaluations)
    ]
    assert atonce.load(reference.folder / "best").card["images_seen"] == lowest["images"]


def test_pictures_are_of_the_same_noise_throughout(reference):
    pictures = [np.asarray(Image.open(path)) for path in sorted((reference.folder / "samples").iterdir())]
    assert len({picture.shape for picture in pictures}) == 1
    # 32 samples of 8x8, four times enlarged, in about as many rows as columns, a pixel between.
    assert pictures[0].shape == (6 * 33 - 1, 6 * 33 - 1, 3)
    # Hardly trained, so the samples are close to one another; with other noise they would not be.
    near = np.abs(pictures[1].astype(float) - pictures[2]).mean()
    assert 0 < near < 40


def test_tensorboard_reads_the_events(reference):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(reference.folder / "tensorboard")).Reload()
    logged = {line["images"]: line["loss"] for line in RunFolder(reference.folder).read_log() if "loss" in line}
    read = {event.step: event.value for event in events.Scalars("loss")}
    assert read == pytest.approx(logged)
    tags = events.Tags()["scalars"]
    assert {"distance", "grad_norm", "lr", "N", "frechet-pixels-1", "loss_by_sigma/3", "grad_norm_by_sigma/4"} <= set(tags)
    assert not {"images", "seconds", "best"} & set(tags)


def test_events_of_an_interrupted_part_are_hidden_and_those_before_it_kept(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Events(tmp_path, 0) as events:
        for step in (16, 32, 48):
            events.write({"images": step, "loss": float(step)})
    with Events(tmp_path, 32) as events:
        events.write({"images": 48, "loss": 100.0})
    read = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in read] == [(16, 16.0), (32, 32.0), (48, 100.0)]


def test_without_tensorboard_a_run_goes_on(tools, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    run = tools.train(tmp_path / "run", tools.make_recipe(images=64, curriculum="fixed"))
    assert run.finished
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_callback_gets_each_log_line(tools, tmp_path):
    lines = []
    tools.train(tmp_path / "run", callback=lines.append)
    assert lines == RunFolder(tmp_path / "run").read_log()


def test_a_budget_that_is_no_whole_number_of_batches_ends_at_the_last_whole_one(tools, tmp_path):
    lines = []
    run = tools.train(tmp_path / "run", tools.make_recipe(images=393), callback=lines.append)
    assert run.finished
    assert run.images_seen == 384
    assert lines[-1]["images"] == 384


def test_the_default_cadence_is_a_share_of_the_budget(tools, tmp_path):
    recipe = tools.make_recipe(images=16 * 24, curriculum="fixed")
    lines = []
    atonce.train(recipe, "digits", tmp_path / "run", quiet=True, precision="fp32", evaluate_images=2, callback=lines.append)
    assert [line["images"] for line in lines if "loss" in line] == list(range(16, 385, 16))
    assert [line["images"] for line in lines if "best" in line] == list(range(32, 385, 32))


def test_quiet_is_quiet_and_loud_goes_to_stderr(tools, tmp_path, capfd):
    recipe = tools.make_recipe(images=64, curriculum="fixed")
    tools.train(tmp_path / "quiet", recipe)
    assert capfd.readouterr() == ("", "")
    tools.train(tmp_path / "loud", recipe, quiet=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training" in err
    assert "100 %" in err
    assert "loss" in err


def test_notes_stand_in_the_log(tools, tmp_path):
    run = tools.train(tmp_path / "run", precision="bf16")
    notes = [note for line in RunFolder(run.folder).read_log() for note in line.get("notes", [])]
    assert len(notes) == 2  # one for each stage of the curriculum
    assert all("bf16 changes f by" in note for note in notes)


def test_a_conditional_run_knows_its_classes(tools, tmp_path):
    network = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=10)
    recipe = tools.make_recipe(images=64, curriculum="fixed", conditional=True, network=network)
    run = tools.train(tmp_path / "run", recipe)
    assert run.model.labels == [str(i) for i in range(10)]
    assert atonce.load(run.folder).sample(2, labels=[3, 7]).shape == (2, 1, 8, 8)


def test_a_diffusion_run_gives_a_denoiser(tools, tmp_path):
    run = tools.train(tmp_path / "run", tools.make_recipe("diffusion", images=64, ema=(0.9,)))
    assert run.model.kind == "denoiser"
    assert run.model.sigma_end == 0
    assert [line["steps"] for line in RunFolder(run.folder).read_log() if "steps" in line] == [8]
    assert run.model.sample(2, steps=3).shape == (2, 1, 8, 8)


def test_images_in_memory_are_data(tools, tmp_path):
    data = ImageData(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    network = UNetConfig(size=8, image_channels=3, channels=8, channel_mult=(1,), blocks=1, attention=())
    run = tools.train(tmp_path / "run", tools.make_recipe(images=64, curriculum="fixed", network=network), data)
    assert run.model.image_shape == (3, 8, 8)


# ---- where a run starts from


def test_init_starts_from_the_weights_of_a_model(tools, reference, tmp_path, monkeypatch):
    from atonce.training.engine import Engine

    started = []
    step = Engine.step

    def first(self):
        if not started:
            started.append({name: value.clone() for name, value in self.network.state_dict().items()})
            started.append({name: dict(average.state_dict()) for name, average in self.averages.items()})
            started[1] = {name: {k: v.clone() for k, v in state.items()} for name, state in started[1].items()}
        step(self)

    monkeypatch.setattr(Engine, "step", first)
    run = tools.train(tmp_path / "run", tools.make_recipe(images=32, curriculum="fixed", init=str(reference.folder)))
    weights = reference.model.network.state_dict()
    tools.assert_same_tensors(started[0], weights)
    for state in started[1].values():
        assert all(torch.equal(value, weights[name]) for name, value in state.items())
    assert RunFolder(run.folder).read_recipe().init == str(reference.folder)


def test_init_may_be_a_model_or_a_path(tools, reference, tmp_path):
    recipes = {
        "path": tools.make_recipe(images=32, curriculum="fixed", init=reference.folder / "model"),
        "model": tools.make_recipe(images=32, curriculum="fixed", init=reference.model),
    }
    runs = {name: tools.train(tmp_path / name, recipe) for name, recipe in recipes.items()}
    assert torch.equal(runs["path"].model.sample(2), runs["model"].model.sample(2))
    assert RunFolder(tmp_path / "path").read_recipe().init == str(reference.folder / "model")
    named = RunFolder(tmp_path / "model").read_recipe().init
    assert named.startswith("run, sha256 ")
    assert tools.train(tmp_path / "model", recipes["model"]).finished  # the same model is recognised
    other = denoiser(kind="consistency")
    with pytest.raises(InputError, match="belongs to another recipe; it differs in init: 'run, sha256 .* -> 'model, sha256"):
        tools.train(tmp_path / "model", tools.make_recipe(images=32, curriculum="fixed", init=other))


def test_init_with_another_network_says_what_differs(tools, reference, tmp_path):
    network = UNetConfig(size=8, image_channels=1, channels=12, channel_mult=(1,), blocks=2, attention=())
    recipe = tools.make_recipe(network=network, init=str(reference.folder))
    with pytest.raises(InputError, match=r"init has another network \(channels: 8 there, 12 here; blocks: 1 there, 2 here\)"):
        tools.train(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_an_unknown_init_is_named(tools, tmp_path):
    with pytest.raises(InputError, match="there is no model 'nobody'"):
        tools.train(tmp_path / "run", tools.make_recipe(init="nobody"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_checked_before_the_folder_is_made(tools, reference, tmp_path):
    recipe = tools.make_recipe(path="heun")
    for teacher, said in (
        (None, "needs a teacher"),
        (reference.model, "the teacher is a consistency model"),
        (reference.folder, "the teacher is a consistency model"),
        (denoiser(3), "for 3x8x8 images"),
    ):
        with pytest.raises(InputError, match=said):
            tools.train(tmp_path / "run", recipe, teacher=teacher)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_the_right_kind_teaches(tools, tmp_path):
    assert tools.train(
        tmp_path / "run", tools.make_recipe(images=32, curriculum="fixed", path="euler"), teacher=denoiser()
    ).finished


# ---- what is refused before any work is done


def test_unknown_options_are_named(tools, tmp_path):
    with pytest.raises(InputError, match="train has no option learning_rate; known: .*microbatch"):
        tools.train(tmp_path / "run", learning_rate=1)
    for option, value, said in (
        ("keep", 0, "keep"),
        ("microbatch", 0, "microbatch is 0, must be at least 1"),
        ("log_every", -1, "log_every"),
        ("evaluate_images", 1, "evaluate_images"),
        ("checkpoint_seconds", -1, "checkpoint_seconds"),
        ("precision", "fp8", "precision is 'fp8'"),
        ("device", "tpu", "tpu"),
    ):
        with pytest.raises(InputError, match=said):
            tools.train(tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_square_name_the_remedy(tools, tmp_path):
    data = ImageData(torch.zeros(4, 1, 8, 12, dtype=torch.uint8), name="wide")
    with pytest.raises(InputError, match="wide has images of 8x12: networks take squares; give a size"):
        tools.train(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_images_is_refused(tools, tmp_path):
    data = ImageData(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="the network is for 1x8x8 images and 0 classes, the data have 3x8x8 and 0"):
        tools.train(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_not_there_are_refused(tools, tmp_path):
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    for labels in (None, torch.zeros(4, dtype=torch.int64)):
        data = ImageData(data.images, labels)
        with pytest.raises(InputError, match="label|class"):
            tools.train(tmp_path / "run", tools.make_recipe(conditional=True), data)
    assert not (tmp_path / "run").exists()


def test_other_recipe_other_data_no_resume_and_foreign_folders(tools, tmp_path):
    run = tools.train(tmp_path / "run", tools.make_recipe(images=32, curriculum="fixed"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    recipe = tools.make_recipe(images=32, curriculum="fixed", lr=5e-4)
    with pytest.raises(InputError, match=r"it differs in lr: 0\.0001 -> 0\.0005: choose another folder"):
        tools.train(run.folder, recipe)
    recipe = tools.make_recipe(images=32, curriculum="fixed", sigma_data=0.5)
    with pytest.raises(InputError, match=r"sigma_data: 0\.\d+ -> 0\.5"):
        tools.train(run.folder, recipe)
    digits = open_data("digits")
    fewer = ImageData(digits.images[:-1], digits.labels[:-1], digits.label_names, "fewer")
    recipe = RunFolder(run.folder).read_recipe()
    with pytest.raises(InputError, match=r"was trained on other data \(digits, digest .*; now fewer, digest "):
        tools.train(run.folder, recipe, fewer)
    with pytest.raises(InputError, match="holds a run already"):
        tools.train(run.folder, recipe, resume=False)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a training run"):
        tools.train(tmp_path / "mine", recipe)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_two_runs_in_one_folder_at_once_are_refused(tools, tmp_path):
    pytest.importorskip("fcntl")
    problems = []

    def second(line):
        if not problems:
            with pytest.raises(InputError, match="another process trains in") as caught:
                tools.train(tmp_path / "run")
            problems.append(caught.value)

    assert tools.train(tmp_path / "run", callback=second).finished
    assert problems


def test_a_place_that_cannot_be_written_is_one_clear_error(tools, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write") as caught:
        tools.train(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


def test_fit_is_the_same_without_the_front_door(tools, reference, tmp_path):
    options = Options(**tools.OPTIONS)
    fit(tools.make_recipe(), open_data("digits"), tmp_path / "run", options=options)
    tools.assert_same_run(tmp_path / "run", reference.folder)


# ---- parts


def test_the_monitor_knows_the_data_from_noise():
    data = open_data("digits")
    monitor = Monitor.of(data, 300)
    real = data.images.float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(real), generator=generator)
    near, picture = monitor.measure(lambda first, n: real[order[first : first + n]])
    far, _ = monitor.measure(lambda first, n: torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1)
    assert near < 2
    assert far > 10 * near
    assert picture.shape == (8 * 33 - 1, 8 * 33 - 1, 3)
    assert monitor.name == "frechet-pixels-1"


def test_the_monitor_averages_large_images_down():
    data = ImageData(torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    monitor = Monitor.of(data, 4)
    assert monitor.reference.dimension == 3 * 8 * 8
    assert monitor.name == "frechet-pixels-8"
    value, _ = monitor.measure(lambda first, n: torch.full((n, 3, 64, 64), -1.0))
    assert value == pytest.approx(0.0, abs=1e-9)


def test_signals_are_put_back_whatever_they_were():
    import signal

    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(ZeroDivisionError), stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.wait(5)
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_relative_folder_gives_the_model_its_name(tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    monkeypatch.chdir("here")
    run = tools.train(Path("."), tools.make_recipe(images=32, curriculum="fixed"))
    assert run.model.card["name"] == "here"


def test_training_touches_no_global_random_state(tools, tmp_path):
    before = torch.get_rng_state().clone()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002 - it is what must not change
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tools.train(tmp_path / "run", presets.ect(images=32, batch=16, network=tools.NETWORK, ect_stages=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
