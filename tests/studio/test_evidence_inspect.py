"""Inspection pages of served models: through the engine, the same as without it, nothing left behind on the network."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch

from atonce.core.errors import InputError
from atonce.exchange.open import open_model
from atonce.reports.inspection_work import inspect_model
from atonce.serving.access import Principal
from atonce.serving.engine import Engine
from atonce.serving.settings import ServeSettings
from atonce.studio import evidence_inspect
from atonce.studio.context import Person, Studio
from atonce.studio.evidence_desk import CARDS, INSPECTION, METHODS, SECTIONS, Desk, page_html, progress_html
from atonce.studio.evidence_inspect import Inspections, Progress, _Counted, page_of, read_page


@pytest.fixture(scope="module")
def engine():
    made = Engine(open_model("digits"), ServeSettings(backend="eager", threads=1), name="digits", version="v1")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def desk(tmp_path, engine) -> Desk:
    host: Any = SimpleNamespace(engine=lambda person, version=None: engine)
    hosts: Any = SimpleNamespace(names=lambda: ["digits"], host=lambda name: host, default="digits")
    service: Any = SimpleNamespace(settings=ServeSettings(state=tmp_path), keys=None, hosts=hosts)
    return Desk(Studio(service, tmp_path / "runs", (), tmp_path / "private"))


def somebody(folder: Any, name: str = "me") -> Person:
    return Person(name, Principal(f"ip:{name}", name, frozenset({"generate"})), folder / "private" / name)


def wait(inspections: Inspections, person: str, *states: str, seconds: float = 240) -> Progress:
    end = time.monotonic() + seconds
    while (now := inspections.progress(person)) is None or now.state not in states:
        assert time.monotonic() < end, now
        time.sleep(0.05)
    return now


def test_the_numbers_are_those_of_the_model_itself_and_progress_is_told(engine):
    told: list[tuple[int, int]] = []
    with engine.calls("bulk", kind="inspect") as model:
        counted = _Counted(model)
        through = inspect_model(counted, samples=4, quiet=True, told=lambda done, total: told.append((done, total)))
    alone = inspect_model(open_model("digits"), samples=4, quiet=True)
    torch.testing.assert_close(through.samples, alone.samples, atol=1e-5, rtol=0)
    assert through.numbers()["change_by_steps"] == pytest.approx(alone.numbers()["change_by_steps"], abs=1e-4)
    assert told[-1][0] == told[-1][1]  # all that was planned went through, and nothing else
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert not engine.model.network._forward_hooks
    assert not engine._source.network._forward_hooks
    assert engine.status().failures == 0


def test_a_page_is_made_in_the_background_kept_for_one_person_and_shown(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_inspect, "SAMPLES", 4)
    monkeypatch.setattr(evidence_inspect, "material_of", lambda model: (None, "it is left out here"))
    me, she = somebody(tmp_path), somebody(tmp_path, "she")
    assert "There is no page" in desk.inspected(me, "digits")[1]
    desk.inspect(me, "digits")
    with pytest.raises(InputError, match="another inspection"):
        desk.inspect(she, "digits")
    assert desk.inspected(me, "digits")[2]
    assert wait(desk.inspections, "me", "done", "failed").state == "done"
    told, page, busy = desk.inspected(me, "digits")
    assert (told, busy) == ("", False)
    assert "it is left out here" in page
    assert 'sandbox=""' in page
    assert "Inside digits" in page
    assert "<script" not in page
    assert "There is no page" in desk.inspected(she, "digits")[1]
    assert "Inside digits" in Desk(desk.studio).inspected(me, "digits")[1]  # also after a restart


def test_it_can_be_stopped_and_another_one_made(desk, tmp_path, monkeypatch):
    begun = threading.Event()

    def slow(model: Any, material: Any, **given: Any) -> Any:
        for done in range(10_000):
            given["told"](done, 10_000)
            begun.set()
            time.sleep(0.01)

    monkeypatch.setattr(evidence_inspect, "material_of", lambda model: (None, "none"))
    monkeypatch.setattr(evidence_inspect, "inspect_model", slow)
    me = somebody(tmp_path)
    desk.inspect(me, "digits")
    begun.wait(30)
    while not desk.inspections.progress("me").done:
        time.sleep(0.01)
    assert desk.inspections.progress("me").left > 0
    assert 'aria-valuenow="0"' in desk.inspected(me, "digits")[0]
    desk.inspections.stop("somebody else")
    desk.inspections.stop("me")
    assert wait(desk.inspections, "me", "stopped", "failed").state == "stopped"
    monkeypatch.setattr(evidence_inspect, "inspect_model", lambda *_, **__: (_ for _ in ()).throw(InputError("one line")))
    desk.inspect(me, "digits")
    assert wait(desk.inspections, "me", "failed").line == "one line"
    assert "one line" in desk.inspected(me, "digits")[0]
    monkeypatch.setattr(evidence_inspect, "inspect_model", lambda *_, **__: 1 / 0)
    desk.inspect(me, "digits")
    end = time.monotonic() + 30
    while "went wrong" not in desk.inspections.progress("me").line and time.monotonic() < end:
        time.sleep(0.01)
    assert "division" not in desk.inspections.progress("me").line  # what is ours goes to the log


def test_pages_of_versions_are_kept_apart(tmp_path, engine):
    assert page_of(tmp_path, engine).name == "digits-v1.html"
    assert read_page(tmp_path / "nothing.html") is None
    shown = page_html('<p title="a">&amp;</p>', 'a"b.html', "<m>")
    assert "&lt;p title=&quot;a&quot;&gt;&amp;amp;" in shown
    assert "<m>" not in shown
    assert progress_html(None) == ""
    assert dataclasses.replace(Progress("a", "running"), done=0).left is None


def test_sections_work_without_any_record(desk, tmp_path):
    me = somebody(tmp_path)
    for name in SECTIONS:
        shown = desk.section(me, name)
        assert "<section" in shown
        assert ("<figure" in shown or "ev-nothing" in shown or "<table" in shown) == (name not in (CARDS, INSPECTION))
    assert desk.section(me, "nothing like it") == ""
    assert "the model digits" in desk.section(me, SECTIONS[-1])
    assert "arXiv" in desk.section(me, METHODS)


def test_cards_are_of_served_models_the_gallery_and_own_runs(desk, tmp_path):
    folder = tmp_path / "runs" / "mine" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "recipe.json").write_text("{}")
    (folder / "README.md").write_text("# mine\n<script>1</script>")
    me = somebody(tmp_path)
    keys = [key for _, key in desk.cards(me)]
    assert keys == ["served:digits", "gallery:fashion-mnist", "run:mine"]
    for key in keys:
        assert f"<h3>{key.partition(':')[2]}</h3>" in desk.card(me, key)
    assert "<script" not in desk.card(me, "run:mine")
    assert "Choose a model" in desk.card(me, None)
    for key in ("run:../secret", "gallery:../../etc", "served:none", "x"):
        with pytest.raises((InputError, gr.Error)):
            desk.card(me, key)
