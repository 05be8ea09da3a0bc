"""A job that was begun with a version ends with it, although another one serves by then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="no FastAPI: pip install 'atonce[serve]'")
pytest.importorskip("sqlalchemy", reason="no SQLAlchemy: pip install 'atonce[serve]'")

import atonce
from atonce.exchange import registry
from atonce.serving.access import Principal
from atonce.serving.hosts import Hosts
from atonce.serving.jobs import Jobs
from atonce.serving.keys import SCOPES
from atonce.serving.schemas import GenerateRequest
from atonce.serving.settings import ServeSettings

CALLER = Principal("key:1", "shop", frozenset(SCOPES), "", "")


def changed(folder: Path, factor: float) -> Path:
    model = atonce.load("digits")
    with torch.no_grad():
        for value in model.network.parameters():
            value.mul_(factor)
    model.save_pretrained(folder)
    return folder


def run(settings: ServeSettings, job: str | None = None, **request: Any) -> Any:
    """One life of a process: a job is submitted (and left), or waited for."""
    hosts = Hosts(settings)
    hosts.start()
    jobs = Jobs(settings, hosts)
    jobs.start()
    try:
        if job is None:
            return jobs.submit(CALLER, "generate", GenerateRequest(**request))[0].id
        end = time.monotonic() + 200
        while not (found := jobs.get(CALLER, job)).ended:
            assert time.monotonic() < end
            time.sleep(0.05)
        return found, jobs.result(CALLER, job)[1].read_bytes()
    finally:
        jobs.stop()
        hosts.stop()


def test_a_job_ends_with_the_version_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atonce.serving import job_work

    monkeypatch.setattr(job_work, "PART", 16)
    promote = lambda folder: registry.promote(folder, tmp_path / "models", "digits", force="a test")
    promote(atonce_folder := changed(tmp_path / "one", 1.0))
    common = {"models": (str(tmp_path / "models" / "digits"),), "backend": "eager", "max_batch": 16, "queue_seconds": 1e6}
    whole = ServeSettings(state=tmp_path / "whole", **common)
    wanted = {"n": 48, "seed": 5, "format": "npz"}
    expected = run(whole, run(whole, **wanted))[1]
    settings = ServeSettings(state=tmp_path / "state", **common)

    with monkeypatch.context() as patch:  # the process ends within the second part
        write, written = job_work.Parts.write, []

        def stop(self: Any, first: int, *rest: Any) -> None:
            if written:
                raise SystemExit
            written.append(first)
            write(self, first, *rest)

        patch.setattr(job_work.Parts, "write", stop)
        hosts = Hosts(settings)
        hosts.start()
        jobs = Jobs(settings, hosts)
        jobs.start()
        job = jobs.submit(CALLER, "generate", GenerateRequest(**wanted))[0].id
        end = time.monotonic() + 100
        while not written:
            assert time.monotonic() < end
            time.sleep(0.02)
        jobs.stop()
        hosts.stop()
    promote(changed(tmp_path / "two", 0.9))
    assert atonce_folder.exists()
    found, content = run(settings, job)
    assert (found.status, found.version, found.note) == ("done", "0001", None), found
    assert content == expected, "the same to the byte as without the interruption"
