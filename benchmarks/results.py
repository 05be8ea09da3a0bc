"""RESULTS.md from the records: ``python benchmarks/results.py``. Nothing in it is written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import ROOT

RECORDS = ROOT / "benchmarks" / "records"
FLAT = ("start-up", "speed", "gallery", "demo", "fashion-mnist")
PAGES = (
    ("The methods side by side", "docs/comparison.md", "methods"),
    ("What each ingredient of iCT is worth", "docs/ablation.md", "ablation"),
    ("Editing against simple methods", "docs/editing.md", "editing"),
)


def text() -> str:
    """The page."""
    lines = ["# Results", "", "Built by `python benchmarks/results.py` from `benchmarks/records/`; not edited by hand."]
    tables = [f"- [{title}]({page})" for title, page, name in PAGES if _has(name)]
    if tables:
        lines += ["", "Tables with pages of their own, built from their records in the same way:", "", *tables]
    for name in FLAT:
        if record := _read(name):
            lines += [*_head(name, record["what"]), "| | |", "|---|---|"]
            lines += [f"| {key} | {shown(value)} |" for key, value in record["measured"].items()]
            lines += ["", _source(record)]
    if record := _read("search"):
        lines += _searches(record)
    if record := _read("effnet"):
        lines += _effnet(record)
    if record := _read("quality"):
        lines += _quality(record)
    return "\n".join(lines) + "\n"


def _searches(record: Mapping[str, Any]) -> list[str]:
    lines = _head("search", "Searches for the second of two time points against the exhaustive scan of the same levels.")
    lines += [f"Grid: {record['grid']}. All choices of a model are measured with the same noise; distances of different", ""]
    lines[-2] += (
        " extractors do not compare. *Other noise* measures the chosen points again with noise that no search has seen."
    )
    lines += ["| model | samples, extractor | points by | second sigma | Fréchet distance | other noise | evaluations |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for model, found in record["measured"].items():
        again = found["with other noise"]
        rows = {name: found[name] for name in ("scan", "golden", "ternary", "default")}
        rows |= {f"bad, {bad['sigma']:g}": bad for bad in found["bad defaults"]}
        for name, row in rows.items():
            other = shown(again[name][0]) if name in again else ""
            low, high = row["interval"]
            cells = [model, f"{found['n']:,}, {found['extractor']['name']}", name, shown(row["sigma"])]
            cells += [f"{row['value']:.4g} ({low:.4g} to {high:.4g})", other, str(row.get("evaluations", ""))]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", _source(record)]


def _effnet(record: Mapping[str, Any]) -> list[str]:
    lines = _head("FD-EffNet-Lite0", record["what"] + ". It is not FID.")
    lines += ["| test images | distance | 95 % interval | known figure |", "|---|---|---|---|"]
    for name, row in record["measured"].items():
        low, high = row["interval"]
        lines.append(f"| {name} | {row['frechet']:.4g} | {low:.4g} to {high:.4g} | {row['expected']:g} |")
    return [*lines, "", _source(record)]


def _quality(record: Mapping[str, Any]) -> list[str]:
    lines = _head("Quality against cost", record["what"])
    trained = [
        f"{name}: {facts['method']}, {facts['images seen']:,} images seen, {facts['parameters']:,} parameters"
        for name, facts in record["models"].items()
    ]
    lines += [f"The models are not of one size or budget ({'; '.join(trained)}). {record['samples']:,} samples a point."]
    lines += ["", "![distance against calls and seconds](docs/pictures/quality-digits.png)", ""]
    lines += ["| model | sampler | steps | network calls | Fréchet distance | 95 % interval | ms an image |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in record["measured"]:
        low, high = row["interval"]
        cells = [row["model"], row["sampler"], str(row["steps"]), str(row["calls"]), f"{row['frechet']:.4g}"]
        cells += [f"{low:.4g} to {high:.4g}", f"{1000 * row['seconds per image']:.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"{_source(record)}; sampled on {record['sampled on']}"]


def shown(value: Any) -> str:
    """A value for a table."""
    if isinstance(value, list):
        return ", ".join(shown(v) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _head(title: str, what: str) -> list[str]:
    return ["", f"## {title}", "", what, ""]


def _source(record: Mapping[str, Any]) -> str:
    day = str(record.get("created", ""))[:10]
    parts = (f"`{record['command']}` at {str(record['commit'])[:12]}", day, record["machine"])
    return ", ".join(part for part in parts if part)


def _has(name: str) -> bool:
    return (RECORDS / name).is_dir() or (RECORDS / f"{name}.json").exists()


def _read(name: str) -> dict[str, Any] | None:
    file = RECORDS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def write() -> None:
    """Write RESULTS.md."""
    (ROOT / "RESULTS.md").write_text(text())


if __name__ == "__main__":
    write()
