from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from atonce.core.errors import InputError
from atonce.core.records import Metric, Record, Source, make_record
from atonce.evaluation.compare import compare

BASE = make_record(
    {
        "frechet": Metric(2.0, (1.8, 2.2), unit="squared distance"),
        "precision": Metric(0.7, (0.6, 0.8), higher_is_better=True, settings="k=3"),
        "class_share:a": Metric(0.5, (0.4, 0.6), higher_is_better=None),
    },
    device="cpu",
    extractor=Source("pixels", "aa"),
    reference=Source("digits", "bb", 1797),
    data=Source("digits", "bb", 1797),
    samples=1000,
    seed=0,
    steps=1,
    calls=1,
    model="digits, sha256 12",
    guidance=1.5,
)


def record(frechet: Metric | None = None, **changes: Any) -> Record:
    metrics = dict(BASE.metrics) | ({} if frechet is None else {"frechet": frechet})
    return dataclasses.replace(BASE, **{"metrics": metrics, **changes})


def test_which_differences_exceed_their_intervals() -> None:
    found = compare([record(), record(Metric(1.6, (1.4, 1.8)), steps=2)], ["one", "two"])
    (difference,) = [each for each in found.differences if each.metric == "frechet"]
    assert difference.value == pytest.approx(-0.4)
    assert difference.half == pytest.approx((0.2**2 + 0.2**2) ** 0.5)
    assert difference.exceeds
    assert difference.better == "two"
    assert found.best("frechet") == "two"
    near = compare([record(), record(Metric(1.8, (1.6, 2.0)))])
    assert not next(each for each in near.differences if each.metric == "frechet").exceeds


def test_the_sides_that_face_each_other_count() -> None:
    """The lower value may reach far down and the higher one far up: neither says anything about the gap between them."""
    wide = compare([record(Metric(1.0, (0.0, 1.1))), record(Metric(2.0, (1.9, 9.0)))])
    difference = next(each for each in wide.differences if each.metric == "frechet")
    assert difference.half == pytest.approx((0.1**2 + 0.1**2) ** 0.5)
    assert difference.exceeds


def test_a_metric_without_a_better_end_or_without_an_interval() -> None:
    found = compare([record(), record(Metric(1.0))])
    by_name = {each.metric: each for each in found.differences}
    assert by_name["class_share:a"].better is None
    assert found.best("class_share:a") is None
    assert by_name["frechet"].exceeds is None
    assert by_name["frechet"].better == "digits#2"
    assert "without intervals nobody can say" in found.table()


def test_the_table_shows_values_intervals_conditions_and_what_stands_out() -> None:
    found = compare([record(), record(Metric(1.6, (1.4, 1.8)), steps=2, guidance=2.0, labels="balanced")], ["one", "two"])
    lines = found.table().splitlines()
    assert lines[0].split() == ["one", "two"]
    assert lines[1].split("  ")[0] == "frechet"
    assert "1.6 (1.4 to 1.8) *" in lines[1]
    assert "2 (1.8 to 2.2) *" not in lines[1]
    shown = {line.split()[0]: line.split()[1:] for line in lines[4:7]}
    assert shown == {"steps": ["1", "2"], "guidance": ["1.5", "2"], "labels": ["-", "balanced"]}
    assert "frechet: one and two differ by 0.4 ± 0.28: two is better" in lines
    assert "precision: one and two do not differ beyond chance (0 ± 0.14)" in lines
    assert set(found.differing) == {"steps", "guidance", "labels"}


def test_the_comparison_as_json() -> None:
    found = compare([record(), record(Metric(1.6, (1.4, 1.8)))], ["one", "two"]).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["best"]["frechet"] == "two"
    assert found["differences"][0]["exceeds"] is True
    assert found["records"][0]["conditions"]["guidance"] == "1.5"


def test_three_records_make_three_pairs() -> None:
    found = compare([record(), record(), record(Metric(0.5, (0.4, 0.6)))])
    assert found.names == ("digits#1", "digits#2", "digits#3")
    assert [(each.one, each.other) for each in found.differences if each.metric == "frechet"] == [
        ("digits#1", "digits#2"),
        ("digits#1", "digits#3"),
        ("digits#2", "digits#3"),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 999}, "one and two cannot be compared: the sample counts differ: 1000 and 999"),
        ({"extractor": Source("inception", "cc")}, "the extractors differ: pixels and inception"),
        ({"labels": "all 3"}, "the classes asked for differ: none and all 3"),
        ({"metrics": {"kid": Metric(0.1)}}, "they share no metric"),
    ],
)
def test_what_must_not_be_compared_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        compare([record(), record(**changes)], ["one", "two"])


def test_metrics_that_rest_on_different_counts_are_left_out_with_the_reason() -> None:
    more = {"frechet_class:a": Metric(1.0, count=100), "frechet": Metric(1.0, (0.9, 1.1)), "kid": Metric(0.1)}
    fewer = {"frechet_class:a": Metric(1.4, count=94), "frechet": Metric(1.2, (1.1, 1.3))}
    found = compare([record(metrics=more), record(metrics=fewer)])
    assert found.shared == ("frechet",)
    assert found.left_out == {
        "frechet_class:a": "it rests on 100 and 94 items, and fewer items change such a number",
        "kid": "it is in 1 of 2 records",
    }
    assert "kid: not compared, it is in 1 of 2 records" in found.table()
    close = compare([record(metrics=more), record(metrics={**fewer, "frechet_class:a": Metric(1.4, count=96)})])
    assert "frechet_class:a" in close.shared


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="at least 2 records, got 1"):
        compare([record()])
    with pytest.raises(InputError, match="1 names are given for 2 records"):
        compare([record(), record()], ["one"])
    three = [record(metrics={"frechet": Metric(1.0), "kid": Metric(1.0)}), record(), record(metrics={"kid": Metric(1.0)})]
    with pytest.raises(InputError, match="share no metric"):
        compare(three)
    counted = [record(metrics={"frechet": Metric(1.0, count=n)}) for n in (10, 20)]
    with pytest.raises(InputError, match="have no metric to compare: frechet: it rests on 10 and 20 items"):
        compare(counted)


OTHER = Source("digits", "cc", 1797)


@pytest.mark.parametrize("name", ["consistency_gap", "consistency_gap_largest", "neighbour_ratio", "class_accuracy",
                                  "class_share:a", "classifier_score", "frechet_class:a", "frechet_class_mean"])  # fmt: skip
def test_what_rests_on_the_data_is_left_out_where_they_differ(name: str) -> None:
    one = record(metrics={"frechet": Metric(1.0), name: Metric(1.0)})
    found = compare([one, dataclasses.replace(one, data=OTHER)])
    assert found.shared == ("frechet",)
    assert found.left_out == {name: "the data differ: digits with digests bb and cc"}
    assert compare([one, one]).shared == ("frechet", name)


def test_neighbours_of_other_held_out_images_are_left_out() -> None:
    one = record(metrics={"frechet": Metric(1.0), "neighbour_ratio": Metric(1.0)}, held_out=Source("test", "ee", 360))
    for held_out, said in ((Source("test", "ff", 360), "test ee and test ff"), (None, "test ee and none")):
        found = compare([one, dataclasses.replace(one, held_out=held_out)])
        assert found.left_out == {"neighbour_ratio": f"the held-out images differ: {said}"}
        assert found.shared == ("frechet",)
    assert "neighbour_ratio" in compare([one, one]).shared


def test_one_metric_with_other_settings_or_another_teacher_is_left_out() -> None:
    metrics = {"frechet": Metric(1.0), "precision": Metric(0.5, settings="k=3"), "teacher_distance": Metric(0.1)}
    one = record(metrics=metrics, teacher=Source("a", "a"))
    other = record(metrics={**metrics, "precision": Metric(0.5, settings="k=5")}, teacher=Source("b", "b"))
    found = compare([one, other])
    assert found.shared == ("frechet",)
    assert found.left_out == {
        "precision": "precision has different settings: k=3 and k=5",
        "teacher_distance": "the teachers differ: a and b",
    }


def test_an_interval_without_width_is_none() -> None:
    """Six of six and five of six: an older record says 1 to 1, and that would make any difference certain."""
    all_in, most = (Metric(1.0, (1.0, 1.0), True, "share"), Metric(0.83, (0.6, 0.99), True, "share"))
    (difference,) = compare([record(metrics={"precision": each}) for each in (all_in, most)]).differences
    assert difference.exceeds is None
    wilson = Metric(1.0, (0.61, 1.0), True, "share")
    (difference,) = compare([record(metrics={"precision": each}) for each in (wilson, most)]).differences
    assert difference.half == pytest.approx((0.39**2 + 0.16**2) ** 0.5)
    assert difference.exceeds is False
