"""The verb ``inspect``: the page it leaves, what it prints, and what it refuses before any work."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Any

import pytest

import atonce
from atonce.core.commands import parse
from atonce.core.errors import AtonceError
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.reports import inspection_work
from atonce.reports.page import is_page
from atonce.verbs.inspect import inspect


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = parse("atonce inspect", inspect, words)()
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a model that nobody trained, and a denoiser of its shape."""
    monkeypatch.chdir(tmp_path)
    network = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())
    for name, kind in (("model", "consistency"), ("teacher", "denoiser")):
        kind_of: Any = kind
        ConsistencyModel(ModelConfig(network, Preconditioning("edm", 0.5, 0.0), kind=kind_of)).save_pretrained(tmp_path / name)
    wide = UNetConfig(size=8, image_channels=3, channels=8, channel_mult=(1,), blocks=1, attention=())
    ConsistencyModel(ModelConfig(wide, Preconditioning("edm", 0.5, 0.0), kind="denoiser")).save_pretrained(tmp_path / "rgb")
    return tmp_path


def test_the_digits_of_the_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "inspect.html"
    status, said, err = call(capsys, "digits", "--out", str(out), "--samples", "16", "--json")
    assert status == 0
    assert "inspecting" in err
    facts = json.loads(said)
    assert facts["out"] == str(out)
    assert (facts["kind"], facts["samples"], facts["data"], facts["without_data"]) == ("consistency", 16, "digits", None)
    assert 0.7 < facts["neighbour_ratio"] < 1.5
    gap = facts["consistency_gap"]
    assert len(gap["sigma"]) == len(gap["rms"]) == len(facts["consistency_gap_gaussian"]) == 16
    # A trained model knows more than the covariance where the noise is moderate.
    ours, linear = facts["error"], facts["error_linear"]
    at = min(range(len(linear)), key=lambda i: abs(ours["sigma"][i] - 0.2))
    assert ours["rms"][at] + 3 * ours["error"][at] < linear[at]
    page = out.read_text()
    assert is_page(out)
    assert "the data that the card names (the checksum agrees)" in page
    assert len(page) < 3_000_000


def test_a_model_without_data_has_a_page_that_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, err = call(capsys, "model", "--samples", "4", "--quiet")
    assert (status, err) == (0, "")
    assert said == "inspect.html; without real images: the model's card does not name its training data\n"
    assert "made without real images" in Path("inspect.html").read_text()


def test_data_and_teacher_that_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection_work, "ODE_STEPS", 4)
    words = ("model", "--data", "digits", "--teacher", "teacher", "--samples", "4", "--quiet", "--seed", "3")
    status, said, _ = call(capsys, *words, "--json")
    assert status == 0
    facts = json.loads(said)
    assert facts["seed"] == 3
    assert facts["data"] == "digits"
    assert len(facts["teacher_distance"]["sigma"]) == 4
    before = Path("inspect.html").read_text()
    status, _, _ = call(capsys, *words)  # ours, so the same command works twice, and makes the same
    assert status == 0
    assert Path("inspect.html").read_text().split("<footer>")[0] == before.split("<footer>")[0]


def test_the_page_is_shown_where_that_is_wanted(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    assert call(capsys, "model", "--samples", "4", "--quiet")[0] == 0
    assert shown == []
    assert call(capsys, "model", "--samples", "4", "--quiet", "--open")[0] == 0
    assert shown == [(here / "inspect.html").as_uri()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nobody",), "there is no model 'nobody'"),
        (("model", "--data", "nowhere"), "'nowhere' is neither a known data set"),
        (("rgb", "--data", "digits"), r"images of digits are 1x8x8, the model's 3x8x8: .*--channels 3"),
        (("model", "--size", "8"), "size and channels are for the images of --data"),
        (("model", "--teacher", "nobody"), "there is no model 'nobody'"),
        (("model", "--teacher", "rgb"), "the teacher makes images of 3x8x8, the model of 1x8x8"),
        (("model", "--teacher", "model"), "the teacher is a consistency model"),
        (("teacher", "--teacher", "teacher"), "this is a denoiser itself"),
        (("model", "--samples", "1"), "samples is 1, must be from 2"),
        (("model", "--seed", "-1"), "seed is -1"),
        (("model", "--device", "tpu"), "tpu"),
        (("model", "--out", "page.png"), r"'\.png'.*give NAME.html"),
        (("model", "--out", "taken.html"), "taken.html exists and was not made by atonce"),
        (("model", "--out", "folder.html"), "is a folder"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    (here / "taken.html").write_text("precious")
    (here / "folder.html").mkdir()

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(inspection_work, "_parts", work)
    with pytest.raises(AtonceError, match=message):
        call(capsys, *words)
    assert (here / "taken.html").read_text() == "precious"
    assert not (here / "inspect.html").exists()


def test_words_that_are_no_numbers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "digits", "--samples", "many")
    assert status == 2
    assert err.count("\n") == 1


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert "atonce inspect digits --out inspect.html" in " ".join(out.split())


@pytest.mark.data
@pytest.mark.slow
def test_the_clothes_of_the_gallery(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (data_root / "fashion-mnist").is_dir():
        pytest.skip(f"no Fashion-MNIST in {data_root}")
    monkeypatch.setenv("ATONCE_DATA", str(data_root))
    out = tmp_path / "inspect.html"
    status, said, _ = call(capsys, "fashion-mnist", "--out", str(out), "--quiet", "--json")
    assert status == 0
    facts = json.loads(said)
    assert 0.9 < facts["neighbour_ratio"] < 1.6
    page = out.read_text()
    assert len(page) < 3_000_000
    assert all(f">{name}<" in page for name in atonce.load("fashion-mnist").labels or [])
