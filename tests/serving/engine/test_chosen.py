"""The choice of a backend is kept, so that a restart gives the same bytes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atonce.serving.backends import choose, eager
from atonce.serving.chosen import Chosen
from atonce.serving.engine import Engine
from atonce.serving.settings import ServeSettings

plain = functools.cache(eager)


class Timed:
    """Makers of networks that take a time of their own; the plain one too."""

    def __init__(self, plain: float, other: float, change: float = 1e-6) -> None:
        self.now, self.per_row, self.change = 0.0, {"eager": plain, "openvino": other}, change

    def __call__(self) -> float:
        return self.now

    def maker(self, name: str) -> Callable[..., Any]:
        def make(model: Any, threads: int | None) -> Callable[..., Tensor]:
            network = plain(model)

            def call(x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
                self.now += self.per_row[name] * x.shape[0]
                return network(x, c_noise, **condition) + (self.change if name == "openvino" else 0.0)

            return call

        return make

    def choose(self, model: Any, memory: Any, wanted: str = "auto") -> str:
        makers = {name: self.maker(name) for name in self.per_row}
        return choose(model, wanted, 8, clock=self, makers=makers, memory=memory).name


def test_a_later_start_chooses_alike_whatever_the_time_says(tiny: Any, tmp_path: Path) -> None:
    model = tiny()
    assert Timed(0.01, 0.005).choose(model, Chosen(model, tmp_path)) == "openvino"
    assert Timed(0.01, 0.05).choose(model, Chosen(model, tmp_path)) == "openvino", "slower today"
    other = tiny(seed=1)
    assert Timed(0.01, 0.05).choose(other, Chosen(other, tmp_path)) == "eager"
    assert Timed(0.01, 0.005).choose(other, Chosen(other, tmp_path)) == "eager", "faster today"
    (file,) = (path for path in (tmp_path / "backends").iterdir() if json.loads(path.read_text())["backend"] == "eager")
    file.unlink()
    assert Timed(0.01, 0.005).choose(other, Chosen(other, tmp_path)) == "openvino", "measured again when deleted"
    assert Timed(0.01, 0.005).choose(other, Chosen(other, tmp_path), "eager") == "eager", "what is named wins"
    assert Chosen(other, tmp_path).recall() == "openvino", "and changes nothing that was kept"


def test_what_is_kept_is_for_one_kind_of_machine_and_settings(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny()
    assert Chosen(model, tmp_path, rows=8).keep("openvino") == "openvino"
    assert Chosen(model, tmp_path, rows=8).recall() == "openvino"
    assert Chosen(model, tmp_path, rows=16).recall() is None
    with monkeypatch.context() as patch:
        patch.setattr("atonce.serving.chosen._processor", lambda device: "another processor")
        assert Chosen(model, tmp_path, rows=8).recall() is None
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        assert Chosen(model, tmp_path, rows=8).recall() is None
    (file,) = (tmp_path / "backends").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_of_two_processes_the_first_one_decides(tiny: Any, tmp_path: Path) -> None:
    model = tiny()

    class Late(Chosen):
        def recall(self) -> str | None:
            return super().recall() if self.asked else None

        asked = False

        def keep(self, backend: str) -> str:
            self.asked = True
            return super().keep(backend)

    Chosen(model, tmp_path).keep("openvino")
    assert Timed(0.01, 0.05).choose(model, Late(model, tmp_path)) == "openvino"


def test_a_kept_choice_that_is_no_good_any_more(tiny: Any, tmp_path: Path) -> None:
    model = tiny()
    Chosen(model, tmp_path).keep("openvino")
    assert Timed(0.01, 0.005, change=0.05).choose(model, Chosen(model, tmp_path)) == "eager", "it changes the images"
    (file,) = (tmp_path / "backends").iterdir()
    file.write_text("{")
    assert Chosen(model, tmp_path).recall() is None
    assert Chosen(model, tmp_path).keep("eager") == "eager"
    assert Chosen(model, tmp_path).recall() == "eager", "what was damaged is replaced"
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    assert Chosen(model, tmp_path).keep("eager") == "eager", "a state that cannot be written keeps nobody from starting"


def test_an_engine_keeps_its_choice(tiny: Any, tmp_path: Path) -> None:
    settings = ServeSettings(state=tmp_path / "state", max_batch=2, queue_seconds=1e6)
    model = tiny()
    for _ in range(2):
        made = Engine(model, settings, name="tiny")
        made.start()
        kept = Chosen(model, settings.state, rows=2, threads=None).recall()
        assert kept == made.status().backend
        made.stop()
