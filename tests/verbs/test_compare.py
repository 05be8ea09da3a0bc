"""The verb ``bench compare``: a table, JSON, and refusals with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from atonce.core.commands import parse
from atonce.core.errors import AtonceError
from atonce.core.records import Metric, Source, make_record
from atonce.verbs.compare import bench_compare

BASE = make_record(
    {"frechet": Metric(2.0, (1.8, 2.2), unit="squared distance")},
    device="cpu",
    extractor=Source("pixels", "aa"),
    reference=Source("digits", "bb", 1797),
    data=Source("digits", "bb", 1797),
    samples=1000,
    seed=0,
    steps=1,
    calls=1,
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    better = dataclasses.replace(BASE, metrics={"frechet": Metric(1.5, (1.4, 1.6))}, steps=2)
    fewer = dataclasses.replace(BASE, samples=500)
    for name, record in (("one", BASE), ("two", better), ("few", fewer)):
        record.save(tmp_path / f"{name}.json")
    return [str(tmp_path / f"{name}.json") for name in ("one", "two", "few")]


def run(*words: str) -> int:
    return parse("atonce bench compare", bench_compare, words)()


def test_a_table(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["one", "two"]
    assert "1.5 (1.4 to 1.6) *" in lines[1]
    assert "frechet: one and two differ by 0.5 ± 0.22: two is better" in lines


def test_json_and_a_file(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison.json"
    for _ in range(2):  # a comparison may be replaced
        assert run(*files[:2], "--json", "--out", str(out)) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == json.loads(out.read_text())
    assert found["best"] == {"frechet": "two"}
    with pytest.raises(AtonceError, match="exists and is no comparison: choose another name"):
        run(*files[:2], "--out", files[2])


def test_records_that_must_not_be_compared(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(AtonceError, match="one and few cannot be compared: the sample counts differ: 1000 and 500"):
        run(*files)
    with pytest.raises(AtonceError, match="at least 2 records, got 1"):
        run(files[0])
    with pytest.raises(AtonceError, match="cannot read the record"):
        run(files[0], str(tmp_path / "none.json"))


def test_a_damaged_record_is_named_with_its_file(files: list[str]) -> None:
    values = json.loads(Path(files[1]).read_text())
    for broken in ({"samples": "many"}, {"metrics": {"frechet": {"value": 1.0, "interval": [5]}}}):
        Path(files[1]).write_text(json.dumps({**values, **broken}))
        with pytest.raises(AtonceError, match=r"two\.json: the record is damaged \(.*\): make it again"):
            run(*files[:2])


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("atonce bench compare", bench_compare, ["--help"])() == 0
    assert "Example: atonce bench compare one-step.json two-steps.json" in capsys.readouterr().out
