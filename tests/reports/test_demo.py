"""The demo from end to end at a tiny size: files, numbers, page, and what happens when it is run again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import atonce
from atonce.core.errors import InputError
from atonce.core.records import Record
from atonce.reports import demo as module
from atonce.reports.demo import Demo, run_demo
from atonce.reports.pictures import is_ours

PICTURES = ["samples.png", "samples-two-steps.png", "loss.png", "quality.png", "curriculum.png", "by-sigma.png"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", images=640, quiet=True)


def test_the_folder_holds_a_model_that_loads(demo: Demo) -> None:
    model = atonce.load(demo.folder)
    assert model.kind == "consistency"
    assert model.shape == (1, 8, 8)
    assert model.records[0].metrics["digits_ratio"].value == pytest.approx(demo.verdict.ratio)  # type: ignore[union-attr]


def test_the_record_holds_the_verdict(demo: Demo) -> None:
    assert demo.verdict is not None
    record = Record.load(demo.folder / "record.json")
    assert record.metrics["digits_ratio"].value == pytest.approx(demo.verdict.ratio)
    assert record.metrics["digits_confidence"].value == pytest.approx(demo.verdict.confidence)
    assert (record.samples, record.steps, record.calls) == (1797, 1, 1)
    recipe = json.loads((demo.folder / "recipe.json").read_text())
    assert record.recipe == atonce.recipes.Recipe.from_dict(recipe).digest()


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_is_there_and_not_blank(demo: Demo, name: str) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(demo.folder / name).convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 10
    if name.startswith("samples"):
        assert is_ours(demo.folder / name)


def test_the_page_needs_nothing_from_outside(demo: Demo) -> None:
    page = (demo.folder / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert all(text for text in re.findall(r'<img[^>]* alt="([^"]*)"', page))
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page


def test_the_page_and_the_terminal_say_the_numbers_of_the_run(demo: Demo) -> None:
    assert demo.verdict is not None
    page = (demo.folder / "report.html").read_text()
    assert f">{demo.verdict.ratio:.3f}<" in page
    assert f">{demo.verdict.confidence:.3f}<" in page
    assert f"{demo.verdict.ratio:.2f}" in demo.text


def test_a_run_of_seconds_is_said_to_fall_short(demo: Demo) -> None:
    assert demo.verdict is not None
    assert not demo.verdict.passes("demo")
    assert "short of a limit" in demo.text
    assert "missed" in (demo.folder / "report.html").read_text()


def test_a_finished_demo_only_makes_its_report_anew(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo.folder / "report.html").unlink()
    again = run_demo(demo.folder, images=640, quiet=True)
    assert again.verdict == demo.verdict
    assert (demo.folder / "report.html").exists()


def test_another_budget_in_the_same_folder_is_refused(demo: Demo) -> None:
    with pytest.raises(InputError, match=r"images: 640 -> 1280"):
        run_demo(demo.folder, images=1280, quiet=True)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not a training run"):
        run_demo(tmp_path, images=640, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_demo_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    finished = module.fit

    def interrupted(*args: object, **options: object) -> object:
        return dataclasses.replace(finished(*args, **options), finished=False, images_seen=64)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fit", interrupted)
    stopped = run_demo(tmp_path / "run", images=640, quiet=True)
    assert stopped.verdict is None
    assert "the same command continues it" in stopped.text
