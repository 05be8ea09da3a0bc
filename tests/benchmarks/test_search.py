"""The benchmark of the searches: its verdict, and that the committed record says what is asked of the searches."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("search")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def test_the_scan_has_its_levels_from_end_to_end(benchmark: Any) -> None:
    levels = benchmark.scan_grid()
    assert len(levels) >= 36
    assert (levels[0], levels[-1]) == (pytest.approx(0.1), pytest.approx(20.0))


def test_the_verdict_asks_for_both_quality_and_cost(benchmark: Any) -> None:
    scan = {"value": 1.0, "interval": [0.9, 1.1], "evaluations": 40}
    met = benchmark.verdict({"value": 1.05, "evaluations": 13}, scan)
    assert met == {"inside the interval of the scan's best": True, "evaluations over those of the scan": 0.325, "met": True}
    assert not benchmark.verdict({"value": 1.05, "evaluations": 14}, scan)["met"]
    dear = benchmark.verdict({"value": 1.11, "evaluations": 13}, scan)
    assert not dear["met"]
    assert not dear["inside the interval of the scan's best"]


def test_a_measurement_has_all_its_parts(benchmark: Any, tmp_path: Path) -> None:
    """On the digits model with few samples: the searches choose from the values of the scan."""
    measured, golden = benchmark.measure("digits", 50, points=5, ledgers=tmp_path)
    curve = {sigma: value for sigma, value, _ in measured["scan"]["curve"]}
    assert len(curve) == measured["scan"]["evaluations"] == 5
    assert measured["scan"]["value"] == min(curve.values())
    for name in ("golden", "ternary"):
        assert curve[measured[name]["sigma"]] == measured[name]["value"]
        assert measured[name]["evaluations"] <= 5
    assert [row["sigma"] for row in measured["bad defaults"]] == list(benchmark.BAD)
    assert any("gain of golden, with other noise" in row for row in measured["bad defaults"])
    assert set(measured["with other noise"]) >= {"scan", "default", "golden", "ternary"}
    assert golden.method == "golden"
    json.dumps(measured)


@pytest.mark.parametrize("name", ["digits", "digits, briefly trained", "fashion-mnist"])
def test_the_record_holds_what_is_claimed(benchmark: Any, name: str) -> None:
    """Inside the 95 % interval of the best of the scan, at a third of its evaluations; a bad default is improved on."""
    measured = json.loads(benchmark.FILE.read_text())["measured"][name]
    scan = measured["scan"]
    assert scan["evaluations"] == len(scan["curve"]) >= 36
    assert scan["value"] == min(value for _, value, _ in scan["curve"])
    for search in ("golden", "ternary"):
        assert benchmark.verdict(measured[search], scan)["met"]
    worst = max(measured["bad defaults"], key=lambda row: row["value"])
    before = worst.get("gain of golden, from the same noise")  # the noise by which was chosen: records until November 2026
    gain = before or worst["gain of golden, with other noise"]
    # 300 samples of Fashion-MNIST are too few to tell; of the digits there are enough.
    assert gain["interval"][0] > 0 or name == "fashion-mnist"
    if before:
        assert before["value"] == pytest.approx(worst["value"] - measured["golden"]["value"])
