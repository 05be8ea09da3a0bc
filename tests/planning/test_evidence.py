"""What is known of the methods: up to date with the records, and found by size and start."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from atonce.planning.candidates import METHODS, recipe_of, settings_of
from atonce.planning.evidence import PUBLISHED, best_line, known_runs, speaking_for, table


def test_the_table_is_what_the_records_say(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again by its script; where this fails, run `python benchmarks/plan.py table`."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    before = set(sys.modules)
    try:
        made = json.loads(json.dumps(importlib.import_module("plan").table()))
    finally:
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == repository / "benchmarks":
                del sys.modules[name]
    assert made == json.loads((repository / "src/atonce/planning/methods.json").read_text("utf-8"))


def test_a_line_of_the_table_is_the_mean_of_its_records(repository: Path) -> None:
    files = sorted((repository / "benchmarks/records/methods/digits").glob("ict.*.json"))
    values = [json.loads(file.read_text("utf-8"))["measured"]["1 step"]["frechet"] for file in files]
    line = next(line for line in table() if (line.data, line.cell) == ("digits", "ict"))
    assert line.one is not None
    assert line.one[0] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert (line.seeds, line.size, line.images, line.teacher) == (len(files), 8, 80_000, False)


def test_distillation_has_a_teacher_and_ours_is_better_than_ct() -> None:
    cd, ct = best_line(("cd",), 8), best_line(("ct",), 8)
    assert cd is not None
    assert ct is not None
    assert cd.teacher
    assert cd.one is not None
    assert ct.one is not None
    assert cd.one[0] < ct.one[0]
    assert best_line(("ect",), 8) is None  # not in our table


def test_runs_speak_for_images_of_their_size_only() -> None:
    assert speaking_for("ict", "data", 8)[0].images == 80_000
    assert speaking_for("ict", "data", 32)[0].images == 409_600_000
    assert speaking_for("ict", "data", 512) == []
    assert speaking_for("ect", "teacher", 64)[0].data == "ImageNet"
    assert speaking_for("cd", "teacher", 28)[0].data == "fashion-mnist (28x28)"


def test_published_and_measured_are_told_apart() -> None:
    assert {run.source for run in known_runs()} == {"measured", "published"}
    assert all(run.source == "published" for run in PUBLISHED)
    assert all("published" in run.sentence and run.reference for run in PUBLISHED)
    assert any("measured by us" in run.sentence for run in known_runs())
    assert len({run.sentence for run in known_runs()}) == len(known_runs())


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_the_table_make_a_recipe(method: str) -> None:
    settings = settings_of(method, 8, short=True)
    recipe = recipe_of(method, images=64_000, batch=64, network="tiny", settings=settings)
    assert recipe.method == method
    assert all(getattr(recipe, name) == value for name, value in settings.items())
    assert settings_of(method, 8, short=False) == {}
    assert bool(settings) == (method != "ect")
