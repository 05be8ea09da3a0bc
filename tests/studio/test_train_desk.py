"""The Train tab's work: who may train, what is refused before anything runs, estimates, and a whole small run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.images import save_png
from atonce.data.sources import open_data
from atonce.planning.measure import Measurement
from atonce.serving.access import Principal
from atonce.serving.settings import ServeSettings
from atonce.studio import train_desk, train_estimate
from atonce.studio.context import Person, Studio
from atonce.studio.train_desk import Desk
from atonce.studio.train_estimate import StoppedError, estimate, estimate_text
from atonce.studio.train_form import Form, recipe_of
from atonce.studio.train_sources import Source
from atonce.training.start import resolve


def studio(folder: Path, host: str = "127.0.0.1") -> Studio:
    settings = ServeSettings(models=("digits",), host=host, state=folder / "state")
    service: Any = SimpleNamespace(settings=settings, keys=None, hosts=None)
    return Studio(service, folder / "runs", (), folder / "private")


def somebody(folder: Path, name: str = "me") -> Person:
    return Person(name, Principal(f"ip:{name}", name, frozenset({"generate"})), folder / "private" / name)


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(studio(tmp_path))


@pytest.fixture
def me(tmp_path) -> Person:
    return somebody(tmp_path)


def asked(**changes: object) -> dict[str, Any]:
    return {"name": "run", "preset": "digits", "data": "digits", "images": 640, "batch": 32, "small": True, **changes}


def test_training_is_for_the_owner(tmp_path, me):
    public = Desk(studio(tmp_path, "0.0.0.0"))
    with pytest.raises(gr.Error, match="admin"):
        public.start(me, asked())
    for action in (public.stop, public.resume):
        with pytest.raises(gr.Error, match="admin"):
            action(me, "run")
    assert public.locked(me).startswith("Training needs an owner: this needs the scope admin")
    assert Desk(studio(tmp_path)).locked(me) == ""
    assert public.names(me) == []
    assert public.run(me, "run") is None
    assert "disk" not in [key for _, key in public.data(me)]
    assert not (tmp_path / "runs").exists()


def test_the_recipe_is_shown_whole_and_is_the_one_that_is_trained(desk, me):
    text, line = desk.recipe_text(me, asked(lr=0.001))
    shown = json.loads(text)
    recipe = resolve(recipe_of(Form("run", images=640, batch=32, lr=0.001), 8), open_data("digits"))
    assert shown.pop("digest") == recipe.digest()
    assert shown == json.loads(json.dumps(recipe.as_dict()))
    assert shown["sigma_data"] == pytest.approx(0.7523)
    assert line.startswith("atonce train digits --data digits --out ")
    assert "lr=0.001" in line


def test_a_persons_own_place_is_not_in_the_command(desk, me, tmp_path):
    for k in range(4):
        save_png(me.folder / "packs" / "mine" / f"{k}.png", torch.full((8, 8, 3), 60 * k, dtype=torch.uint8))
    _, line = desk.recipe_text(me, asked(data="pack:mine"))
    assert str(tmp_path / "private") not in line
    assert "--data DATA" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 8}, "at least one batch"),
        ({"data": "pack:gone"}, "not there"),
        ({"data": None}, "no data are chosen"),
        ({"data": "disk", "place": "/nowhere/at/all"}, "does not exist"),
        ({"preset": "cd"}, "distils a diffusion model"),
        ({"preset": "cd", "start": "gallery:digits"}, "needed is a denoiser"),
        ({"start": "run:gone"}, "not there"),
        ({"start": "gallery:gone"}, "not there"),
        ({"name": "a/b"}, "'a/b'"),
        ({"size": 3}, "size is 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(desk, me, changes: dict[str, Any], said: str):
    with pytest.raises(InputError) as refused:
        desk.start(me, asked(**changes))
    assert said in str(refused.value)
    assert desk.trainings.launches() == {}
    assert not (desk.studio.runs / "run").exists()


def test_the_next_free_name_is_offered(desk, me):
    assert desk.free_name(me, "digits") == "digits-1"
    (desk.studio.runs / "digits-1").mkdir(parents=True)
    assert desk.free_name(me, "digits") == "digits-2"


def test_buttons_without_a_run_say_so(desk, me):
    for action in (desk.stop, desk.resume):
        with pytest.raises(InputError, match="no run is chosen"):
            action(me, None)
    with pytest.raises(InputError, match="no finished model"):
        desk.serve(me, "gone", "digits")


def test_an_estimate_tells_how_far_it_is_and_one_runs_at_a_time(desk, me, tmp_path, monkeypatch):
    go = threading.Event()

    def slow(form: Form, source: Source, stop: threading.Event, told: Any, seconds: float = 1.0) -> Any:
        told(0.5, "measuring")
        while not go.is_set():
            if stop.is_set():
                raise StoppedError
            time.sleep(0.01)
        return "made"

    monkeypatch.setattr(train_desk, "estimate", slow)
    monkeypatch.setattr(train_desk, "estimate_text", lambda found: [("whole run", f"3 min {found}")])
    pages = desk.estimated(me, asked())
    assert 'aria-valuenow="50"' in next(pages)
    with pytest.raises(InputError, match="another estimate"):
        next(desk.estimated(somebody(tmp_path, "she"), asked()))
    desk.stop_estimate(somebody(tmp_path, "she"))  # not hers to stop
    go.set()
    assert "3 min made" in next(pages)
    assert list(pages) == []
    go.clear()
    pages = desk.estimated(me, asked())
    next(pages)
    desk.stop_estimate(me)
    assert "was stopped" in next(pages)
    pages = desk.estimated(me, asked())  # free again; and a page that is closed ends its estimate
    next(pages)
    pages.close()
    assert next(desk.estimated(me, asked()))


def test_an_estimates_error_is_told_and_frees_the_place(desk, me, monkeypatch):
    def broken(*_: object) -> Any:
        raise InputError("a line")

    monkeypatch.setattr(train_desk, "estimate", broken)
    for _ in range(2):
        with pytest.raises(InputError, match="a line"):
            list(desk.estimated(me, asked()))


def test_the_estimate_is_the_planners(monkeypatch):
    found = Measurement(
        batches=(16, 64), steps=(0.02, 0.05), quartiles=(0.049, 0.052), memory=(300 << 20, 340 << 20), device_memory=(0, 0),
        floor=200 << 20, startup=3.0, evaluation=0.2, sample=0.001, calls=1, checkpoint=0.1, save=0.1, log=0.001,
        checkpoint_bytes=5 << 20, model_bytes=1 << 20, picture_bytes=9000, line_bytes=600.0, parameters=309_345,
        precision="float32", tensorboard=True,
    )  # fmt: skip
    seen: dict[str, Any] = {}

    def probe(recipe: Any, data: Path, **given: Any) -> Measurement:
        seen.update(given, recipe=recipe, bytes=data.stat().st_size)
        given["told"](0.5, "64 images a step")
        return found

    monkeypatch.setattr(train_estimate, "measure", probe)
    told: list[tuple[float, str]] = []
    form, source = Form("run", images=6400, batch=64), Source("digits", "digits", "digits")
    made = estimate(form, source, threading.Event(), lambda share, text: told.append((share, text)))
    assert made.parts["training"] == pytest.approx(100 * 0.05 + 100 * 0.001)
    assert made.time.low < made.time.value < made.time.high
    assert (seen["batch"], seen["teacher"], len(seen["labels"])) == (64, None, 10)
    assert seen["recipe"].sigma_data == pytest.approx(0.7523)
    assert seen["bytes"] > 1437 * 64
    assert told[-1] == (pytest.approx(0.55), "measuring: 64 images a step")
    lines = dict(estimate_text(made))
    assert lines["memory"].startswith("340 MiB")
    assert lines["network"] == "309,345 parameters"
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        estimate(form, source, stop, lambda share, text: None)


@pytest.mark.slow  # two starts of a whole process
@pytest.mark.timeout(600)
def test_a_small_run_is_started_stopped_continued_and_served_by_name(tmp_path, me):
    """Also what the loop itself writes is what the tab reads."""
    desk = Desk(studio(tmp_path))
    desk.start(me, asked(images=40_000, batch=16, network="tiny"))
    with pytest.raises(InputError, match="not overwritten"):
        desk.start(me, asked())

    def wait(*states: str) -> Any:
        end = time.monotonic() + 280
        while (run := desk.run(me, "run")) is None or run.state not in states:
            assert time.monotonic() < end, run
            time.sleep(0.2)
        return run

    run = wait("running", "failed")
    while run.state == "running" and not run.images_seen:
        time.sleep(0.2)
        run = desk.run(me, "run")
    assert run.state == "running", run.problem
    desk.stop(me, "run")
    run = wait("stopped", "failed", "interrupted")
    assert run.state == "stopped"
    seen = run.images_seen
    assert 0 < seen < 40_000
    assert (desk.studio.runs / "run" / "checkpoints").is_dir()
    another = Desk(studio(tmp_path))  # as after a restart of the server
    another.resume(me, "run")
    while (run := another.run(me, "run")) is not None and run.images_seen <= seen:
        assert run.alive, run.problem
        time.sleep(0.2)
    another.stop(me, "run")
    end = time.monotonic() + 120
    while another.trainings.launch("run").alive and time.monotonic() < end:
        time.sleep(0.2)
    run = another.run(me, "run")
    assert run is not None
    assert run.state == "stopped"
    images = [line["images"] for line in run.log]
    assert images == sorted(set(images))  # the log goes on as if nothing had happened
    assert another.starts(me)[0][1] == ""
