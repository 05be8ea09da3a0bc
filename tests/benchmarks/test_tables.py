"""What the benchmarks' tables are made of: means and intervals over seeds, the power law, cells that were not run."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import atonce
from atonce.core import records
from atonce.core.records import ROUNDING

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def row(value: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    return {"measured": {"1 step": {"frechet": value, "interval": list(interval or ())}}}


def test_three_seeds_give_students_interval(module):
    """Mean 2, standard deviation 1, three values: half width 4.303 / sqrt(3)."""
    mean, interval = module("cells").summary([row(1.0), row(2.0), row(3.0)], "1 step", "frechet")
    assert mean == 2.0
    assert interval == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


def test_one_seed_gives_its_resampling_interval_and_none_is_not_run(module):
    cells = module("cells")
    assert cells.summary([row(5.0, (4.5, 5.5))], "1 step", "frechet") == (5.0, (4.5, 5.5))
    assert cells.summary([row(5.0)], "2 steps", "frechet") is None
    assert cells.text_of(None) == "not run"
    assert cells.text_of((5.0, (4.5, 5.5))) == "5 ± 0.5"


def test_the_power_law_is_found(module):
    n = [10.0, 20.0, 40.0, 80.0]
    a, b, rest = module("tables").power_law(n, [7.0 * v**-0.6 for v in n])
    assert (a, b, rest) == pytest.approx((7.0, 0.6, 0.0), abs=1e-12)


def test_every_cell_of_every_table_is_a_recipe_with_a_name_of_its_own(module):
    for table in ("ablation", "methods"):
        made = module(table)
        for data in made.SEEDS:
            lines = made.cells(data)
            assert len({line.name for line in lines}) == len(lines)
            recipes = [line.recipe(1) for line in lines]
            assert {recipe.images for recipe in recipes} == {made.BUDGET[data]}
            assert {recipe.seed for recipe in recipes} == {1}
            assert len({str(recipe) for recipe in recipes}) == len(recipes)


def test_an_ablation_switches_one_thing(module):
    """Each line differs from the first in one field, or in what its one choice needs."""
    made = module("ablation")
    together = {"teacher": {"target", "mu", "mu0"}, "curriculum": {"curriculum", "s0", "s1"}, "N": {"curriculum", "s1"}}
    together["dropout"] = {"dropout", "shared_dropout"}
    first, *others = made.cells("digits")
    base = first.recipe(0).as_dict()
    for line in others:
        theirs = line.recipe(0).as_dict()
        changed = {name for name in base if base[name] != theirs[name]}
        assert changed
        assert len(changed) == 1 or changed <= together[line.group], line.name


def test_settings_that_are_not_the_presets_are_named(module):
    report, recipes = module("methods_report"), atonce.recipes
    assert report.settings(recipes.cd(images=6400, batch=8, seed=3, network="tiny").as_dict()) == "the preset's"
    changed = recipes.ct(images=80_000, batch=80, s1=20, mu0=0.5, lr=2e-3, ema=(0.999,)).as_dict()
    assert report.settings(changed) == "s1 20 (150), mu0 0.5 (0.9), lr 0.002 (0.0004), ema 0.999 (0.9999)"
    # The published pages say it of every measured line.
    methods = (BENCHMARKS.parent / "docs" / "methods.md").read_text()
    for cell in module("methods").cells("digits"):
        (line,) = [line for line in methods.splitlines() if line.startswith(f"*Measured* {cell.name},")]
        assert line.endswith(f"*Settings:* {report.settings_text('digits', cell)}.")


def test_a_cell_is_trained_measured_and_reported(module, monkeypatch, tmp_path):
    """The whole way at tiny size, with a teacher: train, resume as a no-op, judge, table, page."""
    cells, methods, report = module("cells"), module("methods"), module("methods_report")
    monkeypatch.setattr(cells, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cells, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(cells, "SAMPLES", 100)
    monkeypatch.setattr(methods, "BUDGET", {"digits": 800, "fashion-14": 800})
    monkeypatch.setattr(report, "BUDGET", methods.BUDGET)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PICTURES", tmp_path / "docs" / "pictures")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "methods.md").write_text("# x\n\n<!-- measured cd-euler -->\n\nend\n")
    lines = {cell.name: cell for cell in methods.cells("digits")}
    cells.train_cell("methods", "digits", lines["cd-euler"], 0)
    assert not (tmp_path / "runs" / "methods" / "digits" / "cd-euler").exists()  # its teacher comes first
    for name in ("teacher", "cd-euler"):
        cells.train_cell("methods", "digits", lines[name], 0)
        cells.judge_cell("methods", "digits", lines[name], 0)
    (found,) = cells.results("methods", "digits", "cd-euler")
    assert found["measured"]["2 steps"]["calls"] == 2
    assert found["recipe"]["teacher"].startswith("0, sha256 ")  # no path of the machine in what is committed
    assert str(tmp_path) not in str(found)
    assert found["command"]
    assert len(found["commit"]) >= 40
    assert found["rounding"] == ROUNDING
    assert found["device"].startswith("cpu")
    assert found["extractor"]["seen_in_training"] is False
    assert (found["reference"]["count"], len(found["reference"]["digest"])) == (1797, 64)
    assert found["measured"]["2 steps"]["sample"] == {"seed": 0, "steps": 2}
    monkeypatch.setattr(records, "commit", lambda: None)  # a copy without its history
    with pytest.raises(SystemExit, match="a record must name its commit: say --commit HASH"):
        cells.judge_cell("methods", "digits", lines["cd-euler"], 0, again=True)
    monkeypatch.setattr(cells, "SAMPLES", 10)
    model = tmp_path / "runs" / "methods" / "digits" / "cd-euler" / "0" / "model" / "config.json"
    values = json.loads(model.read_text())
    values["card"]["extractors_seen"] = [found["extractor"]["digest"]]
    model.write_text(json.dumps(values))
    cells.judge_cell("methods", "digits", lines["cd-euler"], 0, True, "f" * 40)
    (again,) = cells.results("methods", "digits", "cd-euler")
    assert (again["commit"], again["extractor"]["seen_in_training"]) == ("f" * 40, True)
    monkeypatch.setattr(atonce, "train", None)
    cells.train_cell("methods", "digits", lines["cd-euler"], 0)  # trained already: nothing is done
    report.write()
    report.write()
    page = (tmp_path / "docs" / "comparison.md").read_text()
    assert "| improved consistency training | 1 step |  | not run | not run | not run | not run | s1 640 (1280), " in page
    assert (tmp_path / "docs" / "pictures" / "methods-digits.png").stat().st_size > 1000
    text = (tmp_path / "docs" / "methods.md").read_text()
    assert text.count("*Measured* cd-euler, digits: 1 step: ") == 1
    assert "*Settings:* pairs lognormal-intervals (karras), path euler (heun), distance pseudo-huber (l2)" in text
    assert text.endswith("\nend\n")
    assert torch.get_num_threads() == 1
