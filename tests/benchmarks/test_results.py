"""RESULTS.md is what the records say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results(repository: Path):
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        yield importlib.import_module("results")
    finally:
        sys.path.remove(str(repository / "benchmarks"))


def test_the_page_is_built_from_the_records_that_are_committed(results, repository: Path) -> None:
    assert (repository / "RESULTS.md").read_text() == results.text(), "run python benchmarks/results.py"


def test_absent_records_leave_nothing_behind(results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    assert results.text().splitlines() == [
        "# Results",
        "",
        "Built by `python benchmarks/results.py` from `benchmarks/records/`; not edited by hand.",
    ]


def test_each_linked_page_exists(results, repository: Path) -> None:
    for _, page, name in results.PAGES:
        assert not results._has(name) or (repository / page).is_file()
