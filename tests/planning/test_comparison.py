"""The table of models: ranked only where it may be, with what stands out of the noise, and in Markdown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from atonce.core.errors import DataError, InputError
from atonce.core.records import Metric, Record, Source, make_record
from atonce.planning.comparison import Row, comparison_table, rows_of_file
from atonce.planning.returns import Terms

PIXELS = Source("pixels", "ab" * 32)
DATA = Source("digits", "cd" * 32, 1797)


def record(value: float, half: float = 0.1, **changes: Any) -> Record:
    metrics = {"frechet": Metric(value, (value - half, value + half)), "precision": Metric(0.5, None, True)}
    facts = {"device": "cpu", "extractor": PIXELS, "reference": DATA, "data": DATA, "samples": 1000, "steps": 1, "calls": 1}
    return make_record(metrics, **(facts | changes))


def test_ranked_by_quality_with_ties_and_cost() -> None:
    rows = [Row("b", record(2.0), 0.036), Row("a", record(1.0), 0.36), Row("c", record(1.1))]
    made = comparison_table(rows, Terms(price_per_hour=1.0, utilisation=0.5))
    assert made.ranked
    assert [row.name for row in made.rows] == ["a", "c", "b"]
    assert made.ties == (True, True, False)  # 0.1 apart, intervals of 0.14 together
    assert made.per_1000[0] == pytest.approx(0.2)  # 360 s, paid twice: 0.2 h
    assert made.per_1000[1] is None
    head, cells = made.cells()
    assert head[:3] == ["rank", "model", "frechet (less is better)"]
    assert [row[0] for row in cells] == ["1", "like 1", "3"]
    assert cells[0][2:4] == ["1", "0.9 to 1.1"]
    assert cells[1][6:] == ["-", "-"]


def test_more_is_better_for_precision() -> None:
    better = dataclasses.replace(record(9.0), metrics={"precision": Metric(0.9, (0.88, 0.92), True)})
    worse = dataclasses.replace(record(9.0), metrics={"precision": Metric(0.4, (0.38, 0.42), True)})
    made = comparison_table([Row("worse", worse), Row("better", better)], metric="precision")
    assert [row.name for row in made.rows] == ["better", "worse"]
    assert "more is better" in made.cells()[0][2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 50}, "the sample counts differ: 1000 and 50"),
        ({"extractor": Source("inception", "ef" * 32)}, "the extractors differ: pixels and inception"),
        ({"reference": Source("digits", "00" * 32, 1797)}, "the references differ"),
        ({"extractor": Source("pixels", "ab" * 32, seen_in_training=True)}, "was seen in training"),
    ],
)
def test_what_may_not_be_compared_is_not_ranked_and_says_why(changes: dict[str, Any], reason: str) -> None:
    made = comparison_table([Row("a", record(2.0)), Row("b", record(1.0, **changes))])
    assert not made.ranked
    assert reason in made.why_not
    assert [row.name for row in made.rows] == ["a", "b"]  # as they were given
    assert made.cells()[0][0] == "model"
    assert f"Not ranked: a and b cannot be compared: {reason}" in made.markdown() or reason in made.markdown()
    values = made.to_json()
    assert values["ranked"] is False
    assert [row["rank"] for row in values["rows"]] == [None, None]


def test_a_metric_that_not_all_have_is_shown_but_not_ranked() -> None:
    without = dataclasses.replace(record(1.0), metrics={"precision": Metric(0.5, None, True)})
    made = comparison_table([Row("a", record(2.0)), Row("b", without)], metric="frechet")
    assert not made.ranked
    assert made.values[1] is None
    assert made.cells()[1][1][1] == "-"


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least 2 rows, got 1"):
        comparison_table([Row("a", record(1.0))])
    with pytest.raises(InputError, match="none of the records has the metric beauty; there are frechet, precision"):
        comparison_table([Row("a", record(1.0)), Row("b", record(2.0))], metric="beauty")


def test_rows_that_are_called_alike_are_numbered() -> None:
    made = comparison_table([Row("a", record(1.0)), Row("a", record(2.0))])
    assert [row.name for row in made.rows] == ["a (1)", "a (2)"]


def test_markdown_is_a_table(tmp_path: Path) -> None:
    made = comparison_table([Row("a|b", record(1.0), 0.01, "measured here"), Row("c", record(2.0), 0.02, "measured here")])
    lines = made.markdown().splitlines()
    assert lines[0].startswith("| rank | model | frechet (less is better) |")
    assert set(lines[1]) <= set("|-: ")
    assert lines[2].startswith("| 1 | a\\|b | 1 | 0.9 to 1.1 | 1 | 1 | 0.01 |")
    assert "Seconds: measured here." in lines
    assert any(line.startswith("Cost: 2.5 USD a device hour at 50%") for line in lines)


def test_files_of_records_and_of_points(tmp_path: Path, repository: Path) -> None:
    record(1.0).save(tmp_path / "one.json")
    (only,) = rows_of_file(tmp_path / "one.json")
    assert (only.name, only.seconds) == ("one", None)
    points = rows_of_file(repository / "benchmarks/records/quality.json")
    assert len(points) > 4
    assert all(row.seconds is not None and row.seconds > 0 for row in points)
    assert comparison_table(points).ranked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ('{"points": []}', "holds no points"),
        ('{"points": [{"model": "a"}]}', "holds points that cannot be read"),
        ('{"points": [3]}', "holds points that cannot be read"),
        ('{"a": 1}', "not a record"),
        ("[1]", "holds no record"),
    ],
)
def test_files_that_hold_nothing_of_the_kind_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        rows_of_file(file)
    assert "x.json" in str(caught.value)


def test_json_can_be_written() -> None:
    made = comparison_table([Row("a", record(1.0), 0.5), Row("b", record(2.0))])
    values = json.loads(json.dumps(made.to_json()))
    assert values["rows"][0]["rank"] == 1
    assert values["rows"][0]["frechet"]["value"] == 1.0
    assert values["rows"][1]["per_1000"] is None
