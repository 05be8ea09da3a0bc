"""The doctor finds what is there and names what is not, and never raises."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from atonce.reports import doctor


def test_every_finding_is_one_marked_line() -> None:
    findings = doctor.examine()
    names = [f.name for f in findings]
    assert {"atonce", "python", "torch", "cpu", "disk", "data folder"} <= set(names)
    assert all(f.mark in {"ok", "--", "!!"} and f.value and "\n" not in f.value for f in findings)
    assert len(names) == len(set(names))


def test_absent_extras_come_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("gradio", "tensorboard") else found(name, *rest),
    )
    findings = {f.name: f for f in doctor.examine()}
    assert "pip install 'atonce[studio]'" in findings["extra studio"].value
    assert findings["extra studio"].mark == "--"
    assert findings["tensorboard"].mark == "--"


def test_a_damaged_gallery_model_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    monkeypatch.setattr(doctor, "gallery_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "gallery_names", lambda: ["broken"])
    (finding,) = doctor._gallery()
    assert finding.mark == "!!"
    assert "cannot be read" in finding.value


def test_a_torch_that_is_too_old_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch, "__version__", "2.3.1+cpu")
    assert doctor._torch().mark == "!!"
