"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from atonce.core import files
from atonce.core.errors import StorageError
from atonce.core.files import sha256_file, sha256_json, write_atomic, write_bytes, write_json, write_text


def test_checksums(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert sha256_json({"b": 1, "a": (2, 3)}) == sha256_json({"a": [2, 3], "b": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_writing_and_reading(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "a.txt", "grüße\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text(encoding="utf-8") == "grüße\n"
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5, None]}
    write_bytes(tmp_path / "a.json", b"\x00")
    assert (tmp_path / "a.json").read_bytes() == b"\x00"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "deep"]
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_failed_write_changes_nothing(tmp_path: Path, failure: BaseException) -> None:
    write_text(tmp_path / "a", "before")

    def write(path: Path) -> None:
        path.write_text("half of")
        raise failure

    with pytest.raises(StorageError if isinstance(failure, OSError) else type(failure)):
        write_atomic(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, number: int) -> None:
    def write(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match="no space left on the disk while writing .*resume") as caught:
        write_atomic(tmp_path / "a", write)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write .*file"):
        write_text(tmp_path / "file" / "below", "y")
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path, "a folder is no file")


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a", "x")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    script = f"""
        import os, signal
        from pathlib import Path
        from atonce.core.files import write_atomic
        def write(path):
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(Path({str(tmp_path)!r}) / "a", write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "before"
    write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "after"
