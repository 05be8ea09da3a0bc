"""The audit log: whole lines, rotated by size, bounded, and never in the way of a request."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from atonce.serving.audit import Audit
from atonce.serving.settings import ServeSettings


def lines(folder: Path, name: str = "audit.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def all_lines(folder: Path) -> list[dict[str, Any]]:
    return [event for path in folder.glob("audit*.jsonl") for event in lines(folder, path.name)]


def test_events_become_lines_in_order(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path / "state"))
    assert not (tmp_path / "state").exists()  # nothing is made before there is something to write
    for k in range(3000):
        audit.write({"k": k, "model": "digits"})
    audit.close()
    found = lines(tmp_path / "state")
    assert [event["k"] for event in found] == list(range(3000))
    assert all(set(event) == {"time", "k", "model"} for event in found)
    assert stat.S_IMODE((tmp_path / "state" / "audit.jsonl").stat().st_mode) == 0o600
    assert audit.lost == 0


def test_nobody_can_forge_a_line(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path))
    audit.write({"model": 'x"}\n{"forged": true}', "more": "\u2028\r\0é"})
    audit.close()
    text = (tmp_path / "audit.jsonl").read_bytes()
    assert text.count(b"\n") == 1
    assert text.isascii()
    assert lines(tmp_path)[0]["model"] == 'x"}\n{"forged": true}'


def test_what_json_cannot_hold_does_not_fail(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path))
    loop: list[Any] = []
    loop.append(loop)
    audit.write({"a": Path("x"), "b": {1, 2}.__class__})
    audit.write({"a": loop})
    audit.write({"fine": 1})
    audit.close()
    found = lines(tmp_path)
    assert len(found) == 3
    assert found[1]["event"] == "unwritable"


def test_an_old_log_is_continued(tmp_path: Path) -> None:
    for k in range(2):
        audit = Audit(ServeSettings(state=tmp_path))
        audit.write({"k": k})
        audit.close()
    assert [event["k"] for event in lines(tmp_path)] == [0, 1]


def test_files_are_put_aside_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path), max_bytes=2000, kept_files=3)
    for k in range(300):
        audit.write({"k": k})
        if k % 10 == 9:
            audit.flush()  # else all go out at once
    audit.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.1.jsonl", "audit.2.jsonl", "audit.3.jsonl", "audit.jsonl"]
    order = [event["k"] for name in reversed(["audit.jsonl", *names[:3]]) for event in lines(tmp_path, name)]
    assert order == list(range(order[0], 300))  # the newest, without a gap
    assert order[0] > 0
    assert all(2000 <= (tmp_path / name).stat().st_size < 3000 for name in names[:3])


def _write_many(folder: Path, who: int) -> None:
    audit = Audit(ServeSettings(state=folder), max_bytes=5000, kept_files=100)
    for k in range(400):
        audit.write({"who": who, "k": k})
        if k % 7 == 0:
            audit.flush()
    audit.close()
    assert audit.lost == 0


def test_two_processes_share_a_log_and_lose_no_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, who)) for who in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    found = sorted((event["who"], event["k"]) for event in all_lines(tmp_path))
    assert found == [(who, k) for who in range(2) for k in range(400)]
    assert len(list(tmp_path.iterdir())) > 3


def test_a_full_disk_loses_lines_says_so_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(ServeSettings(state=tmp_path))
    audit.write({"k": 0})
    audit.flush()
    true_write = os.write
    full = True

    def write(file: int, content: bytes) -> int:
        if full:
            true_write(file, content[:5])  # a disk that fills up takes a part
            return 5
        return true_write(file, content)

    monkeypatch.setattr("atonce.serving.audit.os.write", write)
    for k in range(1, 4):
        audit.write({"k": k})
        audit.flush()
    assert audit.lost == 3
    assert caplog.text.count("cannot be written") == 1
    assert [event["k"] for event in lines(tmp_path)] == [0]  # no half line
    full = False
    audit.write({"k": 4})
    audit.flush()
    assert [event.get("k", (event.get("event"), event.get("lines"))) for event in lines(tmp_path)] == [0, ("lines_lost", 3), 4]
    audit.close()


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    audit = Audit(ServeSettings(state=tmp_path / "state"))
    audit.write({"k": 0})
    audit.flush()
    assert audit.lost == 1
    audit.close()


def test_a_slow_disk_fills_the_queue_and_then_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(ServeSettings(state=tmp_path), waiting=10)
    go, entered = threading.Event(), threading.Event()
    true_write = os.write

    def write(file: int, content: bytes) -> int:
        entered.set()
        assert go.wait(60)
        return true_write(file, content)

    monkeypatch.setattr("atonce.serving.audit.os.write", write)
    audit.write({"k": 0})
    assert entered.wait(60)
    for k in range(1, 31):  # returns at once every time, although nothing is written
        audit.write({"k": k})
    assert audit.lost == 20
    go.set()
    audit.close()
    assert [event["k"] for event in lines(tmp_path) if "k" in event] == list(range(11))
    assert [event["lines"] for event in lines(tmp_path) if "lines" in event] == [20]


def test_after_the_end_nothing_hangs(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path))
    audit.close()
    audit.close()
    audit.write({"k": 0})
    audit.flush()
    assert audit.lost == 1


def test_a_log_moved_away_by_another_tool_is_begun_anew(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path))
    audit.write({"k": 0})
    audit.flush()
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.old")
    audit.write({"k": 1})
    audit.close()
    assert [event["k"] for event in lines(tmp_path)] == [1]
