"""Tiny runs, how two of them are compared, and a process that forks runs to be killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import atonce
from atonce.networks.unet import UNetConfig
from atonce.training import presets
from atonce.training.checkpoint import newest_checkpoint
from atonce.training.loop import Run
from atonce.training.recipe import Recipe
from atonce.training.rundir import RunFolder

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())
# 24 steps, a log line every 4, an evaluation every 8.
OPTIONS: dict[str, Any] = {
    "precision": "fp32",
    "quiet": True,
    "log_every": 64,
    "evaluate_every": 128,
    "evaluate_images": 32,
    "checkpoint_seconds": 1e9,
}


def make_recipe(preset: str = "ict", images: int = 384, batch: int = 16, **changes: Any) -> Recipe:
    usual: dict[str, Any] = {"network": NETWORK, "dropout": 0.1, "ema": (0.9, 0.99), "ema_rampup": 0.0}
    if preset == "ict":
        usual["s1"] = 20
    return presets.PRESETS[preset](images=images, batch=batch, **usual | changes)


def train(folder: Path, recipe: Recipe | None = None, data: Any = "digits", **options: Any) -> Run:
    callback, resume = options.pop("callback", None), options.pop("resume", True)
    return atonce.train(recipe or make_recipe(), data, folder, resume, callback=callback, **OPTIONS | options)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock on the wall says."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "rate")} for line in RunFolder(folder).read_log()]


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), f"{name} differs by up to {(value - other[name]).abs().max()}"


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs agree bit for bit: weights, averages, optimiser, meters, log, pictures and model folders."""
    a, b = (newest_checkpoint(folder / "checkpoints") for folder in (one, other))
    assert a is not None
    assert b is not None
    assert a.images_seen == b.images_seen
    assert_same_tensors(a.tensors, b.tensors)
    assert {name.split("/")[0] for name in a.tensors} >= {"network", "ema", "optimizer", "meters"}
    timed = ("seconds", "log_bytes")
    assert {k: v for k, v in a.facts.items() if k not in timed} == {k: v for k, v in b.facts.items() if k not in timed}
    assert log_of(one) == log_of(other)
    for part in ("model", "best", "samples"):
        names = sorted(path.name for path in (one / part).iterdir())
        assert names == sorted(path.name for path in (other / part).iterdir()), part
        for name in names:
            if name not in ("README.md", "config.json"):  # these name the run folder
                assert (one / part / name).read_bytes() == (other / part / name).read_bytes(), f"{part}/{name}"
    for folder in (one, other):
        hidden = [str(path) for path in folder.rglob(".*")]
        assert not hidden, f"left behind: {hidden}"


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(
        make_recipe=make_recipe,
        train=train,
        log_of=log_of,
        assert_same_tensors=assert_same_tensors,
        assert_same_run=assert_same_run,
        NETWORK=NETWORK,
        OPTIONS=OPTIONS,
    )


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The usual tiny run, uninterrupted."""
    run = train(tmp_path_factory.mktemp("reference") / "run")
    assert run.finished
    return run


@pytest.fixture(scope="session")
def victims() -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs in processes of their own: ``victims(out=..., ...)`` gives how the process ended (see victim.py).

    One process imports everything and forks for each run, so that a run costs no start.
    """
    script = Path(__file__).with_name("victim.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(**job: Any) -> dict[str, Any]:
            server.stdin.write(json.dumps(job, default=str) + "\n")
            server.stdin.flush()
            ready, _, _ = select.select([server.stdout], [], [], 200)
            assert ready, f"no answer to {job}"
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()
        server.wait(timeout=60)
