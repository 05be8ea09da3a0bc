"""The verb ``search``: what it prints, where it stores, what it refuses before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import atonce
from atonce.core.commands import parse
from atonce.core.errors import AtonceError, DataError, InputError
from atonce.evaluation import search as searching
from atonce.evaluation.shared_noise import SharedNoise
from atonce.exchange.gallery import gallery_folder
from atonce.reports import search_plot
from atonce.verbs.search import search


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = parse("atonce search", search, words)()
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder, in an empty working folder, whose two steps begin badly: it is untrained, so choices differ clearly."""
    monkeypatch.chdir(tmp_path)
    model = atonce.load("digits")
    config = dataclasses.replace(model.config, time_points={2: (80.0, 0.01)})
    type(model)(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


QUICK = ("--n", "60", "--grid", "5", "--quiet")


def test_the_found_time_points_are_stored_and_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "model", *QUICK, "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["before"]["sigmas"] == [80.0, 0.01]
    assert facts["improved"]
    assert facts["found"]["value"] < facts["before"]["value"]
    assert facts["stored"].startswith("stored in model")
    stored = atonce.load("model").config.time_points[2]
    assert list(stored) == facts["sigmas"] == facts["found"]["sigmas"]
    assert torch.equal(atonce.load("model").sample(3, steps=2), atonce.load("model").sample(3, sigmas=stored))
    assert facts["sure"]
    assert facts["gain"]["interval"][0] > 0
    assert facts["gain"]["seed"] == 1
    assert facts["record"]["model"].startswith("model, sha256 ")
    assert facts["record"]["sigmas"] == facts["sigmas"]
    with Image.open("search.png") as picture:
        assert picture.info["Software"] == "atonce"
    assert json.loads(Path("search.json").read_text())["result"]["sigmas"] == facts["sigmas"]
    assert json.loads(Path("model", "time_search.json").read_text())["searches"]["2"]["verdict"] == "a sure gain"
    # The same command finds the values it kept; what it found is no longer better than what is used.
    status, out, _ = call(capsys, "model", *QUICK)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("before   80, ")
    assert lines[1].startswith("found    80, ")
    assert lines[-1] == "not stored: no better than what the model uses"
    assert "choices by golden search" in out


def test_a_run_folder_stores_in_its_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "run").mkdir()
    folder.rename(folder.parent / "run" / "model")
    (folder.parent / "run" / "recipe.json").write_text("{}")
    assert call(capsys, "run", *QUICK)[0] == 0
    assert atonce.load("run/model").config.time_points[2] != (80.0, 0.01)


def test_a_gallery_model_is_not_changed_but_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = atonce.load("digits").config
    start(monkeypatch, 0.01)
    # The model is so good at one step that 60 samples cannot tell what a second is worth.
    status, out, _ = call(capsys, "digits", *QUICK, "--save", "copy", "--method", "scan")
    assert status == 0
    lines = out.splitlines()
    assert lines[2].startswith("gain: ")
    assert lines[2].endswith(", with other noise: no sure gain: 0 lies inside its interval")
    assert lines[-1] == "not stored: no sure gain; --force stores them"
    assert not Path("copy").exists()
    status, out, _ = call(capsys, "digits", *QUICK, "--save", "copy", "--method", "scan", "--force")
    assert status == 0
    assert "stored in copy" in out
    kept = json.loads(Path("copy", "time_search.json").read_text())["searches"]["2"]
    assert (kept["improved"], kept["sure"]) == (True, False)
    assert kept["verdict"] == "no sure gain: 0 lies inside its interval"
    copy = atonce.load("copy")
    assert len(copy.config.time_points[2]) == 2
    assert (tmp_path / "copy" / "time_search.json").exists()
    assert atonce.load("digits").config == before
    status, out, _ = call(capsys, "digits", *QUICK, "--no-store")
    assert (status, out.splitlines()[-1]) == (0, "not stored")
    start(monkeypatch, copy.config.time_points[2][1])
    status, out, _ = call(capsys, "digits", *QUICK, "--save", "second", "--force")
    assert (status, out.splitlines()[-1]) == (0, "not stored: no better than what the model uses")
    assert not (tmp_path / "second").exists()


def test_another_model_is_never_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    atonce.load("digits").save_pretrained("other")
    before = contents(Path("other"))
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(InputError, match="other holds another model, nothing was changed: choose another name"):
        call(capsys, "model", *QUICK, "--save", "other", "--force")
    assert contents(Path("other")) == before
    monkeypatch.undo()
    monkeypatch.chdir(folder.parent)

    def meanwhile(result: object) -> Figure:
        """Somebody saves a model there while the search is under way."""
        atonce.load("digits").save_pretrained("later")
        return Figure()

    monkeypatch.setattr(search_plot, "search_figure", meanwhile)
    with pytest.raises(InputError, match="later holds another model"):
        call(capsys, "model", *QUICK, "--save", "later")
    assert contents(Path("later"))["model.safetensors"] == before["model.safetensors"]


def test_a_folder_of_the_same_model_gets_the_time_points_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "model", *QUICK, "--save", "copy")[0] == 0
    Path("copy", "README.md").write_text("by hand")
    Path("copy", "records.json").write_text("[ ]")
    Path("copy", "notes.txt").write_text("mine")
    before = contents(Path("copy"))
    assert call(capsys, "model", *QUICK, "--steps", "3", "--save", "copy", "--out", "three.png", "--force")[0] == 0
    after = contents(Path("copy"))
    assert {name for name in after if after[name] != before[name]} == {"config.json", "time_search.json"}
    assert set(atonce.load("copy").config.time_points) == {2, 3}
    assert atonce.load("model").config.time_points == {2: (80.0, 0.01)}


def test_a_damaged_file_of_searches_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "time_search.json").write_text("half a fi")
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    for words in ((), ("--save", "model")):
        with pytest.raises(DataError, match=r"time_search.json cannot be read: move it away"):
            call(capsys, "model", *QUICK, *words)
    assert (folder / "time_search.json").read_text() == "half a fi"


def start(monkeypatch: pytest.MonkeyPatch, second: float) -> None:
    """Two steps of models without time points begin here."""
    monkeypatch.setattr(searching, "restart_times", lambda *_: [80.0, second])


def test_progress_is_shown_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = call(capsys, "model", "--n", "50", "--grid", "3")
    assert "searching  3/3 choices" in err


def test_an_interrupted_search_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, made = SharedNoise.images, []

    def stop(self: SharedNoise, sigmas: tuple[float, ...]) -> torch.Tensor:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(sigmas)
        return images(self, sigmas)

    monkeypatch.setattr(SharedNoise, "images", stop)
    with pytest.raises(KeyboardInterrupt):
        call(capsys, "model", *QUICK)
    assert atonce.load("model").config.time_points[2] == (80.0, 0.01)
    monkeypatch.setattr(SharedNoise, "images", images)
    capsys.readouterr()
    facts = json.loads(call(capsys, "model", *QUICK, "--json")[1])
    assert facts["measured"] == facts["evaluations"] + 1 - 3  # and that of before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits",), "digits is no folder to store time points in: give --save FOLDER for a copy of it, or --no-store"),
        ((str(gallery_folder() / "digits"),), "is no folder to store time points in"),
        (("model", "--out", "curve.pdf"), "give a name that ends in .png"),
        (("model", "--out", "mine.png"), "mine.png exists and was not made by atonce"),
        (("model", "--save", "mine"), "mine exists and is not a model folder"),
        (("model", "--save", "mine.png"), "mine.png exists and is not a model folder"),
        (("model", "--grid", "5", "--sigmas", "1", "2"), "give either --grid"),
        (("model", "--sigmas", "1", "200"), "must hold noise levels between"),
        (("model", "--steps", "1"), "steps is 1"),
        (("model", "--n", "10"), "n is 10"),
        (("model", "--n", "100000000000"), "give a smaller n"),
        (("model", "--out", "holds-more.png"), "holds-more.json holds no search of time points"),
        (("no-such-model", "--no-store"), "no-such-model"),
        (("model", "--data", "no-such-data"), "no-such-data"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    Path("mine.png").write_text("mine")
    Path("mine").mkdir()
    Path("mine", "letter.txt").write_text("mine")
    Path("holds-more.json").write_text('{"mine": 1}')
    monkeypatch.setattr(SharedNoise, "images", lambda *_: pytest.fail("samples were made"))
    with pytest.raises(AtonceError) as refused:
        parse("atonce search", search, words)()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert Path("mine.png").read_text() == "mine"
    assert Path("holds-more.json").read_text() == '{"mine": 1}'


def test_unknown_words_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "digits", "--method", "guess")
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_the_choices_of_the_verb_are_those_of_the_search() -> None:
    offered = get_args(get_type_hints(search)["method"])
    assert offered == get_args(searching.Method)
