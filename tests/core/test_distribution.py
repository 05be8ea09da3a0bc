from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from atonce.core.distribution import World, all_equal, all_sum, barrier, is_main, join_world, leave_world
from atonce.core.errors import InputError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

SCRIPT = """
    import json, sys
    from dataclasses import asdict
    from pathlib import Path
    import torch
    from atonce.core import distribution as d

    world = d.join_world("cpu", timeout=60)
    mine = torch.arange(6, dtype=torch.float64).reshape(2, 3) * (world.rank + 1)
    total = d.all_sum(mine.T)
    d.barrier()
    result = {
        "rank": world.rank, "size": world.size, "local_rank": world.local_rank, "backend": world.backend,
        "main": world.is_main and d.is_main(), "again": d.join_world("cpu") == world,
        "total": total.tolist(), "mine": mine.tolist(), "whole": d.all_sum(torch.tensor(2**40 + world.rank)).item(),
        "same": d.all_equal({"hash": "abc"}), "differs": d.all_equal(world.rank), "first_alike": d.all_equal(world.rank // 2),
    }
    (Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(result))
    d.leave_world()
    d.leave_world()
"""

WAITING = """
    import sys, time
    from pathlib import Path
    import torch
    from atonce.core import distribution as d

    world = d.join_world("cpu", timeout=3)
    d.barrier()
    if world.rank == 1:
        time.sleep(20)  # never comes
    else:
        try:
            d.barrier()
        except Exception as error:
            Path(sys.argv[1], "failed").write_text(str(error))
            raise
"""


@pytest.fixture
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def torchrun(script: str, folder, processes: int, timeout: float = 120) -> subprocess.CompletedProcess:
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | {
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*launcher, str(file), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def test_alone_nothing_is_started(alone):
    world = join_world("cpu")
    assert world == World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), backend="none")
    assert world.is_main
    assert is_main()
    assert not torch.distributed.is_initialized()
    barrier()
    assert all_equal(object())
    x = torch.tensor([1, 2, 3])
    total = all_sum(x)
    total += 1
    assert x.tolist() == [1, 2, 3]
    leave_world()


def test_the_world_is_frozen():
    with pytest.raises(AttributeError):
        World().rank = 1


def test_one_process_under_torchrun_needs_no_group(alone, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_world("cpu").backend == "none"
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE is 'two'.*at least 1"),
        ({"WORLD_SIZE": "0"}, r"WORLD_SIZE is '0'.*at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, r"RANK is '2'.*0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, r"RANK is '-1'.*0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, r"MASTER_ADDR and MASTER_PORT not set.*torchrun"),
    ],
)
def test_a_wrong_environment_is_named(alone, monkeypatch, values, words):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        join_world("cpu")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_wrong_timeout_is_named(alone, timeout):
    with pytest.raises(InputError, match="timeout"):
        join_world("cpu", timeout=timeout)


def test_more_processes_than_devices(alone, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="there are 1"):
        join_world("cuda")


@pytest.mark.timeout(180)
def test_two_processes_with_gloo(tmp_path):
    done = torchrun(SCRIPT, tmp_path, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    whole = (torch.arange(6, dtype=torch.float64).reshape(2, 3) * 3).T.tolist()
    for rank, result in enumerate(results):
        assert result["rank"] == result["local_rank"] == rank
        assert result["size"] == 2
        assert result["backend"] == "gloo"
        assert result["main"] is (rank == 0)
        assert result["again"] is True
        assert result["total"] == whole
        assert result["mine"] == (torch.arange(6, dtype=torch.float64).reshape(2, 3) * (rank + 1)).tolist()
        assert result["whole"] == 2**41 + 1
        assert result["same"] is True
        assert result["differs"] is False
        assert result["first_alike"] is True


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_rank_that_never_comes_fails_the_others(tmp_path):
    done = torchrun(WAITING, tmp_path, 2)
    assert done.returncode != 0
    assert (tmp_path / "failed").exists(), done.stderr[-3000:]
