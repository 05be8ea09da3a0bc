from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atonce
from atonce.core.errors import DataError, InputError
from atonce.core.records import (
    CONDITIONS,
    Metric,
    Record,
    Source,
    command_line,
    commit,
    comparable,
    conditions,
    make_record,
    metric_differs,
)

BASE = make_record(
    {
        "frechet": Metric(1.5, (1.0, 2.0), unit="squared distance"),
        "precision": Metric(0.5, higher_is_better=True, settings="k=3"),
    },
    device="cpu",
    extractor=Source("pixels", "aa"),
    reference=Source("digits", "bb", 1797),
    data=Source("digits", "bb", 1797),
    samples=1797,
    recipe="cc",
    seed=3,
    steps=1,
    calls=1,
    notes=["a note"],
)


def record(**changes: Any) -> Record:
    return dataclasses.replace(BASE, **changes)


def test_as_dict_and_back() -> None:
    made = record()
    assert Record.from_dict(json.loads(json.dumps(made.as_dict()))) == made


NEW = {
    "model": "digits, sha256 ab", "split": "test", "sigmas": (80.0, 0.5), "guidance": 1.5, "sampler": "heun", "ema": "0.999",
    "labels": "balanced", "teacher": Source("runs/teacher", "dd"), "held_out": Source("digits (test)", "ee", 360),
}  # fmt: skip


def test_conditions_survive_json() -> None:
    made = record(**NEW, metrics={"m": Metric(1.0, count=12)})
    assert Record.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_records_of_older_versions_are_read() -> None:
    values = record().as_dict()
    for name in NEW:
        del values[name]
    for metric in values["metrics"].values():
        del metric["count"]
    assert Record.from_dict(values) == record()


def test_the_records_of_the_gallery_are_read() -> None:
    found = list((Path(atonce.__file__).parent / "gallery").glob("*/records.json"))
    assert found
    for file in found:
        for values in json.loads(file.read_text()):
            assert Record.from_dict(values).metrics


def test_conditions_in_words() -> None:
    told = conditions(record(**NEW))
    assert set(told) == set(CONDITIONS)
    assert (told["sigmas"], told["guidance"], told["teacher"], told["steps"]) == ("80, 0.5", "1.5", "runs/teacher", "1")
    assert conditions(record())["sigmas"] == "-"


def test_save_and_load(tmp_path: Path) -> None:
    made = record()
    made.save(tmp_path / "deep" / "record.json")
    assert Record.load(tmp_path / "deep" / "record.json") == made


def test_the_stamp_is_there() -> None:
    made = record()
    assert made.created.endswith("+00:00")
    assert set(made.versions) == {"python", "atonce", "torch", "numpy"}
    assert made.versions["torch"] != "source"
    assert made.rounding == "floor(clip(127.5 x + 128, 0, 255))"
    assert "/" not in made.command.split()[0]


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0, 1e6),
    st.sampled_from([True, False, None]),
    st.text(max_size=20),
)
def test_any_metric_survives_json(value: float, half: float, better: bool | None, unit: str) -> None:
    metric = Metric(value, (-half, half), better, unit)
    made = record(metrics={"m": metric})
    assert Record.from_dict(json.loads(json.dumps(made.as_dict()))).metrics["m"] == metric


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_finite(value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        Metric(value)
    with pytest.raises(InputError, match="finite"):
        Metric(1.0, (0.0, value))


def test_an_interval_has_an_order() -> None:
    with pytest.raises(InputError, match="low, high"):
        Metric(1.0, (2.0, 0.0))


def test_what_one_compares_may_differ() -> None:
    other = record(
        steps=2, calls=2, seed=9, recipe="zz", device="cuda", commit=None, notes=(), guidance=2.0, sampler="heun", ema="0.9",
        sigmas=(80.0, 1.0), labels="balanced", model="another",
    )  # fmt: skip
    assert comparable(record(), other) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extractor": Source("inception", "ff")}, "extractors differ: pixels and inception"),
        ({"extractor": Source("pixels", "ff")}, "extractors differ: pixels with digests aa and ff"),
        ({"reference": Source("digits", "dd", 1797)}, "references differ"),
        (
            {"reference": Source("digits", "bb", 1437)},
            r"digits \(1797 images\) and digits \(1437 images\)",
        ),
        ({"samples": 1000}, "sample counts differ: 1797 and 1000"),
        ({"rounding": "floor(127.5 (x + 1))"}, "rounded differently"),
        ({"metrics": {"kid": Metric(0.1)}}, "share no metric"),
        ({"metrics": {"precision": Metric(0.5, settings="k=5")}}, "precision has different settings: k=3 and k=5"),
        ({"labels": "all 3"}, "classes asked for differ: none and all 3"),
        ({"labels": "given, sha256 12"}, "classes asked for differ"),
        ({"extractor": Source("pixels", "aa", seen_in_training=True)}, "seen in training"),
    ],
)
def test_what_must_not_be_compared(changes: dict[str, object], reason: str) -> None:
    assert re.search(reason, comparable(record(), record(**changes)) or "")
    assert comparable(record(**changes), record()) is not None


def test_distances_to_different_teachers() -> None:
    metrics = {"teacher_distance": Metric(0.1)}
    one, other = (record(metrics=metrics, teacher=Source(name, name)) for name in ("a", "b"))
    assert comparable(one, other) == "the teachers differ: a and b"
    assert comparable(one, one) is None
    assert comparable(record(teacher=Source("a", "a")), record(teacher=Source("b", "b"))) is None  # no such distance


def test_metrics_of_the_data_need_the_same_data() -> None:
    metrics = {"class_accuracy": Metric(0.9), "frechet": Metric(1.0)}
    one, other = (record(metrics=metrics, data=Source("digits", digest)) for digest in ("aa", "bb"))
    assert comparable(one, other) == "the data differ: digits with digests aa and bb"
    assert metric_differs("frechet", one, other) is None
    assert comparable(one, one) is None


def test_neighbours_need_the_same_held_out_images() -> None:
    metrics = {"neighbour_ratio": Metric(1.0)}
    one, other = (record(metrics=metrics, held_out=Source("test", digest)) for digest in ("aa", "bb"))
    assert comparable(one, other) == "the held-out images differ: test aa and test bb"
    assert comparable(one, record(metrics=metrics)) == "the held-out images differ: test aa and none"
    assert comparable(record(metrics=metrics), record(metrics=metrics)) is None  # both of an older version


def test_damaged_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match="cannot read"):
        Record.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Record.load(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="holds no record"):
        Record.load(path)
    values = record().as_dict()
    for broken in (
        {k: v for k, v in values.items() if k != "metrics"},
        {k: v for k, v in values.items() if k != "samples"},
        values | {"surprise": 1},
        values | {"metrics": {"m": {"worth": 1}}},
        values | {"extractor": None},
        values | {"metrics": 3},
        values | {"teacher": "one"},
        values | {"sigmas": ["high"]},
        values | {"sigmas": "80"},
        values | {"metrics": {"m": {"value": 1.0, "interval": [5]}}},
        values | {"metrics": {"m": {"value": 1.0, "interval": [1, 2, 3]}}},
        values | {"metrics": {"m": {"value": 1.0, "interval": ["a", "b"]}}},
        values | {"metrics": {"m": {"value": "high"}}},
        values | {"metrics": {"m": {"value": True}}},
        values | {"metrics": {"m": {"value": 10**400}}},
        values | {"metrics": {"m": {"value": 1.0, "higher_is_better": "yes"}}},
        values | {"metrics": {"m": 3}},
        values | {"extractor": {"name": "pixels", "digest": 5}},
        values | {"reference": {"name": "digits", "digest": "bb", "count": "all"}},
        values | {"samples": "many"},
        values | {"samples": 0},
        values | {"steps": "x"},
        values | {"steps": True},
        values | {"notes": "one"},
        values | {"versions": ["one"]},
        values | {"held_out": "test"},
    ):
        with pytest.raises(DataError, match="damaged"):
            Record.from_dict(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"r\.json: the record is damaged"):
            Record.load(path)
    with pytest.raises(DataError, match="format"):
        Record.from_dict(values | {"format": 99})
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        Record.load(path)
    for name in ("samples", "reference"):
        with pytest.raises(DataError, match=f"damaged \\({name} is missing\\)"):
            Record.from_dict({k: v for k, v in values.items() if k != name})


def test_command_line_has_no_machine_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(["/usr/local/bin/atonce", "eval", "runs/a", "--n", "100"]) == "atonce eval runs/a --n 100"
    assert command_line(["/x/site-packages/atonce/__main__.py", "eval"]) == "python -m atonce eval"
    assert command_line(["atonce", str(tmp_path / "runs" / "a")]) == "atonce runs/a"
    assert command_line(["atonce", "--out=/home/someone/runs/a", "/home/someone/pictures"]) == "atonce --out=a pictures"
    assert command_line(["atonce", "two words"]) == "atonce 'two words'"
    assert command_line(["-c"]) == "python"
    assert command_line([""]) == "python"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package."""\n')
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    return package


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_of_a_checkout(checkout: Path) -> None:
    assert commit(checkout) is None  # not tracked yet
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    head = git(checkout, "rev-parse", "HEAD")
    assert commit(checkout) == head
    (checkout.parent.parent / "note.txt").write_text("outside the package")
    assert commit(checkout) == head
    (checkout / "new.py").write_text("x = 1\n")
    assert commit(checkout) == f"{head}+changes"


def test_an_installed_copy_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None
