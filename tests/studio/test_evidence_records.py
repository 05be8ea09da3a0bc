"""Records as the Evidence tab finds and draws them, with known answers, damaged files, and none at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atonce.core.errors import InputError
from atonce.core.records import Metric, Record, Source
from atonce.planning.comparison import Row
from atonce.planning.evidence import PUBLISHED as PLANNED
from atonce.studio.evidence_published import published, published_about
from atonce.studio.evidence_records import Found, gather, read
from atonce.studio.evidence_statistics import falling, mean_interval, power_law
from atonce.studio.evidence_tables import groups, sweep
from atonce.studio.evidence_views import ablation_html, grid_html, methods_html, places_html, steps_html


def record(value: float = 2.0, calls: int = 1, *, seen: bool = False, extractor: str = "e", metric: str = "frechet") -> Record:
    return Record(
        metrics={metric: Metric(value, (value - 0.1, value + 0.1), False)},
        command="atonce eval",
        recipe=None,
        commit=None,
        device="cpu",
        extractor=Source("pixels", extractor, None, seen),
        reference=Source("digits", "r", 1797),
        data=Source("digits", "d", 1797),
        samples=2000,
        seed=0,
        steps=calls,
        calls=calls,
    )


def cell(folder: Path, name: str, seed: int, frechet: float, *, s1: int = 640, seen: bool = False, digest: str = "e") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "cell": name, "seed": seed, "what": f"what {name} is", "samples": 5000,
        "recipe": {"method": "ict", "curriculum": "fixed" if name.startswith(("n-", "curr")) else "ict", "s1": s1},
        "extractor": {"name": "classifier", "digest": digest, "seen_in_training": seen},
        "measured": {"1 step": {"frechet": frechet, "interval": [frechet - 1, frechet + 1], "calls": 1},
                     "2 steps": {"frechet": frechet / 2, "interval": [frechet / 2 - 1, frechet / 2 + 1], "calls": 2}},
    }  # fmt: skip
    (folder / f"{name}.{seed}.json").write_text(json.dumps(values))


def rows(*records: Record) -> Found:
    return Found(tuple(Row(f"model {i}", each) for i, each in enumerate(records)), (), (), (), 0)


# ---- statistics


def test_the_interval_over_seeds_is_students():
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert interval is not None
    assert interval[1] - 2.0 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # the table's t for two degrees of freedom
    assert mean_interval([5.0], (4.0, 6.0)) == (5.0, (4.0, 6.0))
    assert mean_interval([5.0]) == (5.0, None)
    with pytest.raises(InputError):
        mean_interval([])


@given(
    a=st.floats(0.01, 1e4),
    b=st.floats(-2, 2),
    n=st.lists(st.integers(1, 10_000), min_size=2, max_size=8, unique=True),
)
def test_a_power_law_is_found_again(a: float, b: float, n: list[int]):
    found_a, found_b, rest = power_law(n, [a * k**-b for k in n])
    assert found_a == pytest.approx(a, rel=1e-6)
    assert found_b == pytest.approx(b, abs=1e-6)
    assert rest < 1e-6


def test_a_power_law_needs_two_places():
    for n, y in (([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([1, 2], [1])):
        with pytest.raises(InputError):
            power_law(n, y)


def test_the_points_that_fall_end_with_the_lowest():
    assert falling([(3, 1.0), (1, 5.0), (2, 2.0), (4, 9.0)]) == [(1, 5.0), (2, 2.0), (3, 1.0)]
    assert falling([]) == []


# ---- records


def test_the_committed_records_give_what_their_report_says(repository):
    folder = repository / "benchmarks" / "records"
    if not folder.is_dir():
        pytest.skip("an installed package carries no records")
    found = gather([folder])
    assert found.problems == ()
    assert found.others >= 1
    (digits,) = [group for group in groups(found.cells, "ablation") if group.data == "digits"]
    made = sweep(digits)
    assert made is not None
    report = (repository / "docs" / "ablation.md").read_text(encoding="utf-8")
    assert made.law is not None
    a, b, rest = made.law
    assert f"{a:.3g} (N-1)^-{b:.2f} up to N = {made.fitted[-1][0] + 1:.0f}, rms of ln {rest:.2f}" in report
    for name in digits.names:
        value, interval = digits.value(name, "1 step")
        half = (interval[1] - interval[0]) / 2
        assert f"{value:.3g} ± {half:.2g}" in report, name
    comparison = (repository / "docs" / "comparison.md").read_text(encoding="utf-8")
    for group in groups(found.cells, "methods"):
        for name in group.names:
            for way in group.ways(name):
                assert f"{group.value(name, way)[0]:.3g}" in comparison, (name, way)
    shown = grid_html(found)
    assert "58.8 (N-1)^-0.44" in shown
    assert steps_html(found).count('<svg class="ev-chart"') >= 2


def test_none_at_all_is_said_and_published_numbers_are_still_there(tmp_path):
    nothing = gather([tmp_path / "nowhere"], tmp_path / "no-runs")
    assert nothing.rows == nothing.cells == ()
    assert "is here yet" in steps_html(nothing)
    assert "No run with one N" in grid_html(nothing)
    assert "published" in methods_html(nothing)
    assert "squared L2" in ablation_html(nothing)
    assert f"{tmp_path.name}/nowhere" in places_html(nothing)
    assert str(tmp_path) not in places_html(nothing)
    assert "No place" in places_html(gather([]))


def test_files_that_hold_something_else_or_are_damaged_spoil_nothing(tmp_path):
    record().save(tmp_path / "good.json")
    (tmp_path / "points.json").write_text(
        json.dumps(
            {"points": [{"model": "m", "sampler": "heun", "steps": 5, "seconds": 0.1, "record": record(3.0, 9).as_dict()}]}
        )
    )
    (tmp_path / "torn.json").write_text('{"format": 1')
    (tmp_path / "other.json").write_text('{"section": "speed", "measured": {"a": 1}}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "damaged.json").write_text(json.dumps(record().as_dict() | {"samples": "many"}))
    (tmp_path / "cell.json").write_text('{"cell": "x", "measured": {}}')
    (tmp_path / ".hidden.json").write_text("{")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "binary.json").write_bytes(b"\xff\xfe\x00")
    found = gather([tmp_path])
    assert [row.name for row in found.rows] == ["good", "m, 5 heun steps"]
    assert found.others == 3
    assert len(found.problems) == 4
    assert not any(str(tmp_path) in line for line in found.problems)
    assert found.places == ((f"{tmp_path.parent.name}/{tmp_path.name}", 2),)
    assert "Not read" in places_html(found)


def test_records_of_models_and_runs_are_found_too(tmp_path):
    folder = tmp_path / "runs" / "table" / "a" / "model"
    folder.mkdir(parents=True)
    (folder / "records.json").write_text(json.dumps([record(1.0).as_dict(), record(0.5, 2).as_dict()]))
    found = gather([], tmp_path / "runs", [("digits", [record(3.0)])])
    assert [row.name for row in found.rows] == ["table/a", "table/a", "digits"]
    assert "table/a" in steps_html(found)


def test_a_single_file_is_a_place_and_huge_ones_are_not_read(tmp_path, monkeypatch):
    record().save(tmp_path / "one.json")
    assert len(gather([tmp_path / "one.json"]).rows) == 1
    monkeypatch.setattr("atonce.studio.evidence_records.LARGEST", 10)
    assert "at most 10 are read" in gather([tmp_path / "one.json"]).problems[0]
    assert read.__doc__


# ---- what may stand together


def test_only_numbers_that_were_measured_alike_stand_in_one_chart():
    shown = steps_html(rows(record(2.0, 1), record(1.0, 2), record(5.0, 1, extractor="f"), record(4.0, 2, extractor="f")))
    assert shown.count('<svg class="ev-chart"') == 2
    assert shown.count("the comparison</summary>") == 2


def test_an_extractor_that_was_seen_in_training_ranks_nothing(tmp_path):
    shown = steps_html(rows(record(2.0, 1, seen=True), record(1.0, 2, seen=True)))
    assert '<svg class="ev-chart"' not in shown
    assert "rank nothing" in shown
    assert "Not ranked" in shown
    assert ">rank<" not in shown
    folder = tmp_path / "methods" / "digits"
    cell(folder, "ict", 0, 7.0, seen=True)
    cell(folder, "ct", 0, 9.0)
    for name, value in (("n-10", 20.0), ("n-20", 10.0), ("n-40", 5.0)):
        cell(tmp_path / "ablation" / "digits", name, 0, value, s1=int(name[2:]), seen=True)
    found = gather([tmp_path])
    assert "seen in training" in methods_html(found)
    assert "No run with one N" in grid_html(found)


def test_runs_judged_by_different_extractors_are_different_groups(tmp_path):
    cell(tmp_path / "methods" / "digits", "ict", 0, 7.0)
    cell(tmp_path / "methods" / "digits", "ct", 0, 9.0, digest="another")
    assert [group.names for group in groups(gather([tmp_path]).cells, "methods")] == [["ct"], ["ict"]]


def test_the_sweep_over_n_has_its_law(tmp_path):
    for n in (10, 20, 40, 80):
        for seed in (0, 1, 2):
            cell(tmp_path / "ablation" / "digits", f"n-{n}", seed, 100 * n**-0.5, s1=n)
    cell(tmp_path / "ablation" / "digits", "curriculum-fixed", 0, 60.0, s1=640)
    cell(tmp_path / "ablation" / "digits", "ict", 0, 3.0)
    (group,) = groups(gather([tmp_path]).cells, "ablation")
    made = sweep(group)
    assert made is not None
    assert [n for n, _, _ in made.points] == [10, 20, 40, 80, 640]
    assert made.law == (pytest.approx(100), pytest.approx(0.5), pytest.approx(0, abs=1e-9))
    assert group.names[0] == "ict"


# ---- published numbers


def test_every_published_number_has_a_source_and_is_called_published():
    lines = published()
    assert len(lines) > 40
    assert all(line.source and line.fid > 0 and line.calls >= 1 for line in lines)
    assert {line.table for line in lines} >= {"CIFAR-10, unconditional", "ImageNet 64x64, class-conditional"}
    shown = methods_html(Found((), (), (), (), 0))
    assert "(published)" in shown
    assert "arXiv 2303.01469" in shown
    assert "cannot be compared with published ones" in shown
    assert "none is quoted" in published_about()[1]


@pytest.mark.parametrize(
    ("ours", "calls", "fid"),
    [("cd", 1, 3.55), ("ct", 1, 8.70), ("ict", 1, 2.83), ("progressive", 1, 8.34), ("diffusion", 35, 1.97)],
)
def test_the_known_numbers_of_cifar10(ours: str, calls: int, fid: float):
    table = [line for line in published() if line.table.startswith("CIFAR") and (line.ours, line.calls) == (ours, calls)]
    assert fid in [line.fid for line in table]


def test_published_numbers_agree_with_those_of_the_planner():
    fids = {f"{line.fid:.2f}" for line in published()}
    for known in PLANNED:
        if known.data == "CIFAR-10" and "one step" in known.result and "ADCM" not in known.reference:
            assert known.result.split("FID ")[1].split(" ")[0] in fids, known


def test_names_in_records_are_text(tmp_path):
    cell(tmp_path / "methods" / "<b>x", "<script>1", 0, 3.0)
    (tmp_path / "<img src=x>.json").write_text("{")
    found = gather([tmp_path], models=[("<i>m</i>", [record()])])
    for shown in (methods_html(found), steps_html(found), places_html(found), ablation_html(found)):
        for tag in ("<script", "<b>", "<img src=x", "<i>m"):
            assert tag not in shown
