"""The verb ``plan compare``: files and models, Markdown, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import atonce
from atonce import cli
from atonce.core.records import Metric, Record, Source, make_record
from atonce.planning import ways


def record(value: float, samples: int = 1000) -> Record:
    source = Source("digits", "cd" * 32, 1797)
    return make_record(
        {"frechet": Metric(value, (value - 0.1, value + 0.1))},
        device="cpu",
        extractor=Source("pixels", "ab" * 32),
        reference=source,
        data=source,
        samples=samples,
        steps=1,
        calls=1,
    )


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "_SINGLES", 3)
    monkeypatch.setattr(ways, "_BATCHES", 3)
    for name, value, samples in (("good", 1.0, 1000), ("bad", 3.0, 1000), ("few", 2.0, 50)):
        record(value, samples).save(tmp_path / f"{name}.json")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["plan", "compare", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_records_are_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "bad.json", "good.json")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.split()[1:2] in (["good"], ["bad"])]
    assert [(line[0], line[1]) for line in lines] == [("1", "good"), ("2", "bad")]


def test_what_may_not_be_compared_is_not_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "few.json", "good.json", "--json")
    assert status == 0
    facts = json.loads(out)
    assert not facts["ranked"]
    assert "the sample counts differ: 50 and 1000" in facts["why_not"]
    _, out, _ = call(capsys, "few.json", "good.json")
    assert "Not ranked: few and good cannot be compared: the sample counts differ" in out
    assert "rank" not in out.splitlines()[0].split()


def test_a_model_with_a_record_is_timed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = atonce.load("digits")
    type(model)(model.config, model.network, card=model.card, records=[record(2.0)]).save_pretrained(tmp_path / "model")
    status, out, _ = call(capsys, "model", "good.json", "--batch", "4", "--quiet", "--price-per-hour", "3.6", "--json")
    assert status == 0
    facts = json.loads(out)
    rows = {row["name"]: row for row in facts["rows"]}
    timed = rows["model, 1 step"]
    assert timed["rank"] == 2
    assert timed["seconds"] > 0
    assert timed["per_1000"] == pytest.approx(timed["seconds"] * 2)  # 1,000 s at half use, 0.001 a second
    assert rows["good"]["per_1000"] is None
    _, out, _ = call(capsys, "model", "good.json", "--no-measure", "--quiet", "--json")
    assert json.loads(out)["rows"][1]["seconds"] is None


def test_markdown_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = call(capsys, "good.json", "bad.json", "--markdown", "--out", "table.md")
    assert out.startswith("| rank | model | frechet (less is better) |")
    assert (tmp_path / "table.md").read_text().startswith(out.rstrip())
    call(capsys, "good.json", "bad.json", "--out", "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["ranked"]
    for name in ("table.md", "table.json"):  # ours: it may be written again
        assert call(capsys, "good.json", "bad.json", "--out", name)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["good.json"], "at least 2 rows, got 1"),
        (["good.json", "missing.json"], "cannot read missing.json"),
        (["good.json", "other.json"], "other.json is not JSON"),
        (["good.json", "no-such-model"], "no-such-model"),
        (["good.json", "bare"], "bare has no records of its own: measure it (atonce eval bare --out record.json)"),
        (["good.json", "bad.json", "--metric", "beauty"], "none of the records has the metric beauty"),
        (["good.json", "bad.json", "--price-per-hour", "-1"], "price_per_hour is -1"),
        (["good.json", "bad.json", "--utilisation", "0"], "utilisation is 0"),
        (["good.json", "bad.json", "--out", "table.csv"], "give a name that ends in .md or .json"),
        (["good.json", "bad.json", "--out", "good.json"], "good.json exists and is no table of atonce plan compare"),
        (["good.json", "bare", "--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "other.json").write_text("{")
    model = atonce.load("digits")
    type(model)(model.config, model.network).save_pretrained(tmp_path / "bare")
    before = (tmp_path / "good.json").read_bytes()
    status, out, err = call(capsys, *words)
    assert status == 2
    assert not out
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert (tmp_path / "good.json").read_bytes() == before
