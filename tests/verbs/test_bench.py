"""The verb ``bench quality``."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
from PIL import Image

from atonce.core.commands import parse
from atonce.core.errors import AtonceError
from atonce.reports import quality
from atonce.verbs.bench import bench_quality, table_text

QUICK = ("--n", "50", "--steps", "1", "2", "--quiet")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = parse("atonce bench quality", bench_quality, words)()
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_a_plot_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "digits", *QUICK)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["model", "sampler", "steps", "calls"]
    assert [line.split()[:4] for line in lines if line.startswith("digits")] == [
        ["digits", "restart", "1", "1"],
        ["digits", "restart", "2", "2"],
    ]
    assert lines[-1].startswith("50 samples a point, pixels, cpu (")
    assert "1 thread)" in lines[-1]
    points = json.loads(Path("quality.json").read_text())["points"]
    assert [point["record"]["calls"] for point in points] == [1, 2]
    assert [point["record"]["sampler"] for point in points] == ["restart", "restart"]
    assert all(point["record"]["model"].startswith("digits") for point in points)
    assert all(point["record"]["metrics"]["frechet"]["interval"] for point in points)
    with Image.open("quality.png") as picture:
        assert picture.info["Software"] == "atonce"
    # The same command measures nothing, and gives the same points.
    status, out, _ = call(capsys, "digits", *QUICK, "--json")
    assert json.loads(out)["points"] == points
    assert json.loads(out)["plot"] == "quality.png"


def test_progress_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = call(capsys, "digits", "--n", "50", "--steps", "1")
    assert "measuring  1/1 points" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits", "--out", "quality.csv"), "give a name that ends in .json"),
        (("digits", "--out", "mine.json"), "mine.png exists and was not made by atonce"),
        (("digits", "--out", "other.json"), "other.json holds no points of a comparison"),
        (("digits", "digits"), "each can be named once"),
        (("digits", "--steps", "0"), "steps is [0]"),
        (("digits", "--n", "2"), "n is 2"),
        (("no-such-model",), "no-such-model"),
        (("digits", "--data", "no-such-data"), "no-such-data"),
    ],
)
def test_bad_input_is_refused_before_any_work(words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.png").write_text("mine")
    Path("other.json").write_text("{}")
    monkeypatch.setattr(quality, "evaluate", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(AtonceError) as refused:
        parse("atonce bench quality", bench_quality, words)()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert Path("mine.png").read_text() == "mine"
    assert not Path("quality.json").exists()


def test_without_a_model_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status, out, err = call(capsys)
    except AtonceError as error:
        status, out, err = 2, "", str(error)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_the_table_needs_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    head, rows = ["model", "calls"], [["digits", "1"], ["a longer name", "12"]]
    drawn = table_text(head, rows)
    importing = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return importing(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    plain = table_text(head, rows)
    assert plain.splitlines() == ["model          calls", "digits         1", "a longer name  12"]
    for text in (drawn, plain):
        assert [line.split() for line in text.splitlines() if line[:1].isalpha()] == [r.split() for r in plain.splitlines()]
