"""The record of a leg and its table on the screen."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from gpu_jobs import Job
from gpu_state import WEIGHTS, Limits

from atonce.core.files import sha256_file, write_json
from atonce.core.records import command_line, commit, versions

RECORD = "record.json"


def start_record(given: argparse.Namespace, job: Job) -> dict[str, Any]:
    """What is known before the first phase."""
    return {
        "what": "a leg on a lent GPU",
        "job": job.name,
        "describes": job.what,
        "command": command_line(),
        "commit": given.commit or commit(),
        "versions": versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": given.minutes,
        "phases": {},
        "failed": [],
    }


def finish_record(record: dict[str, Any], work: Path, out: Path, limits: Limits, phases: list[str]) -> None:
    """Say what failed and what was skipped, weigh the files, and write the record.

    Args:
        record: Changed in place.
        work: The working folder.
        out: What is brought back.
        limits: What may be.
        phases: Those that were asked for.
    """
    failed, skipped = [], []
    for phase, found in record["phases"].items():
        if "broke off" in found:
            failed.append(f"{phase}: {found['broke off']}")
        if "cut short" in found:
            skipped.append(f"the rest of phase {phase}: {found['cut short']}")
        skipped += [f"{entry['what']}: {entry['why']}" for entry in found.get("skipped", [])]
        results = found.get("results", {})
        record.setdefault("device", results.get("device"))
        if phase == "checks":
            failed += [f"check {name}: {r.get('why')}" for name, r in results.items() if r.get("result") == "fail"]
            skipped += [f"check {name}: {r.get('why')}" for name, r in results.items() if r.get("result") == "skip"]
    skipped += [f"phase {name}: not reached" for name in phases if name not in record["phases"]]
    if problem := record.get("state", {}).get("problem"):
        failed.append(f"state: {problem}")
    record["failed"], record["skipped"] = failed, skipped
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file() and path.name != RECORD}
    record["files"] = {name: {"bytes": size, "sha256": sha256_file(out / name)} for name, size in files.items()}
    ours = [name for name in files if name.startswith("state-") or name in (WEIGHTS, "curves.png", "samples.png")]
    too_large = [name for name in ours if files[name] > limits.file_bytes]
    if len(ours) + 1 > limits.files or too_large or sum(files[n] for n in ours) > limits.total_bytes:
        record["failed"].append(
            f"{len(ours) + 1} files of {sum(files[n] for n in ours):,} bytes are more than may be brought back"
        )
    write_json(out / RECORD, record)


def table(record: dict[str, Any]) -> str:
    """The leg on one screen."""
    device = record.get("device") or {}
    lines = [
        f"{record['job']} on {device.get('name', device.get('device', 'an unknown device'))}, torch {device.get('torch', '?')}"
    ]
    results = {name: found.get("results", {}) for name, found in record["phases"].items()}
    checks = [(name, r) for name, r in results.get("checks", {}).items() if name != "device"]
    if checks:
        lines.append("")
    lines += [f"  {r['result']:5} {name:18} {r['seconds']:7.1f} s  {r.get('why', '')}"[:150].rstrip() for name, r in checks]
    speed = results.get("speed", {})
    if "matrix products" in speed:
        rates = "  ".join(f"{name} {value:,.4g}" for name, value in speed["matrix products"].items())
        lines += ["", f"  matrix products: {rates}"]
    for name, found in speed.items():
        for row in found.get("training", []) if isinstance(found, dict) else []:
            part = f"{100 * row['of the best matrix rate']:.2g} % of the matrix rate, {row['over its passes']:.2f} x its passes"
            lines.append(f"  {name:14} train  {row['precision']:9} x{row['batch']:<5} {row['images/s']:12,.0f} img/s  {part}")
        for row in found.get("sampling", []) if isinstance(found, dict) else []:
            part = f"{100 * row['of the best matrix rate']:.2g} % of the matrix rate, {row['over the bare network']:.2f} x bare"
            lines.append(f"  {name:14} sample {row['precision']:9} x{row['at once']:<5} {row['images/s']:12,.0f} img/s  {part}")
    if "compiling" in speed:
        lines.append(
            "  compiling: " + ", ".join(f"{k} {v:,.4g}" for k, v in speed["compiling"].items() if isinstance(v, float))
        )
    for leg in results.get("train", {}).get("legs", []):
        rate = f", {leg['images/s']:,.0f} img/s" if "images/s" in leg else ""
        done = "finished" if leg["finished"] else "to be continued"
        lines += ["", f"  {leg['stage']}: {leg['images_seen']:,} images in {leg['seconds']} s{rate}, {done}"]
    for way, found in results.get("evaluate", {}).items():
        values = {k: v["value"] for k, v in found.items() if isinstance(v, dict) and "value" in v}
        values |= {k: v for k, v in found.items() if isinstance(v, float)}
        if values:
            lines.append(f"  {way}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
    if "state" in record and "means" in record["state"]:
        state = record["state"]
        lines += [
            "",
            f"  state: {state['level']}, {state['bytes'] / 2**20:.3g} MiB in {len(state['files'])} files: {state['means']}",
        ]
        lines.append(f"  weights: {state['weights']}")
    lines += ["", *(f"  skipped: {text}"[:150] for text in record.get("skipped", []))]
    lines += [f"  FAILED: {text}"[:400] for text in record["failed"]]
    return "\n".join([*lines, f"  {record['seconds']:.0f} s in all; {len(record['files']) + 1} files"])
