"""Whatever a server keeps, no other account of the machine can read it."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

import torch

from atonce.serving.audit import Audit
from atonce.serving.private import private_file, private_folder
from atonce.serving.schemas import EDITS, EXAMPLE_PICTURE
from atonce.serving.settings import ServeSettings

sys.path.insert(0, str(Path(__file__).parent))
from jobs_process import ALICE


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_mask() -> Any:
    """The file mask that most systems have: others may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_everything_below_the_state_is_closed(make: Any, tmp_path: Path) -> None:
    jobs, _ = make(job_workers=1)
    request = EDITS["variations"].model_validate({"image": EXAMPLE_PICTURE, "n": 3, "seed": 1})
    job, _ = jobs.submit(ALICE, "variations", request)
    waiting = [path for path in jobs.settings.state.rglob("*") if path.name.startswith("jobs.sqlite")]
    assert len(waiting) == 3, "the file, its log and its index"
    until = time.monotonic() + 60
    while not jobs.get(ALICE, job.id).ended:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert jobs.get(ALICE, job.id).status == "done"
    parts = jobs._open.files.parts(job.id, "x")
    parts.write(0, torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    assert parts.size(7) == 7
    audit = Audit(jobs.settings)
    audit.write({"k": 1})
    audit.close()
    found = {path.relative_to(jobs.settings.state): mode(path) for path in jobs.settings.state.rglob("*")}
    del found[Path("log")]  # of the test's own engine
    assert mode(jobs.settings.state) == 0o700
    folders = {str(path): value for path, value in found.items() if (jobs.settings.state / path).is_dir()}
    assert len(folders) == 3
    assert set(folders.values()) == {0o700}, folders
    files = {str(path): value for path, value in found.items() if str(path) not in folders}
    assert {"jobs.sqlite", "jobs/.place", "audit.jsonl"} <= set(files)
    assert any("result-" in name for name in files)
    assert any(name.endswith(".part") for name in files)
    assert set(files.values()) == {0o600}, files


def test_a_state_of_before_is_closed_and_a_group_that_was_let_in_stays(tmp_path: Path) -> None:
    for before, after in ((0o755, 0o700), (0o750, 0o750), (0o2770, 0o2770), (0o700, 0o700)):
        folder = tmp_path / oct(before)
        folder.mkdir()
        folder.chmod(before)
        assert mode(private_folder(folder)) == after
        file = tmp_path / f"{before:o}.sqlite"
        file.write_text("kept")
        file.chmod(before & 0o666)
        assert mode(private_file(file)) == (0o600 if before & 0o007 else before & 0o666 & 0o777)
        assert file.read_text() == "kept"


def test_the_audit_log_makes_its_folder_closed(tmp_path: Path) -> None:
    audit = Audit(ServeSettings(state=tmp_path / "a" / "state"))
    audit.write({"k": 1})
    audit.close()
    assert mode(tmp_path / "a" / "state") == 0o700
    assert mode(tmp_path / "a" / "state" / "audit.jsonl") == 0o600
