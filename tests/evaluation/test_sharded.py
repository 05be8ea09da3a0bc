"""One, two and three processes, and any batch: the same distances to 1e-9, the same rows, one cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.records import Source
from atonce.data.dataset import ImageData
from atonce.evaluation.cache import reference_features, reference_moments
from atonce.evaluation.extractors import Extractor
from atonce.evaluation.frechet import BLOCKS, frechet_distance, frechet_metric, joined
from atonce.evaluation.gather import gather
from atonce.evaluation.reference import Reference, data_source

N, WIDTH = 331, 24


def images(n: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def network(name: str = "float32") -> Extractor:
    """A small random network in float32, whose last bits depend on the size of its batch; or the same in float64."""
    generator = torch.Generator().manual_seed(5)
    dtype = getattr(torch, name)
    first = torch.randn(32, 3, 3, 3, generator=generator).to(dtype) / 5
    second = torch.randn(WIDTH, 32, generator=generator).to(dtype) / 6

    def function(x: Tensor) -> Tensor:
        return F.linear(F.relu(F.conv2d(x.to(dtype) / 255, first, padding=1)).mean((2, 3)), second)

    return Extractor(f"random {name}", f"random {name}", WIDTH, function, batch=16)


def measured(batch: int, sharded: bool, name: str) -> dict[str, Any]:
    """Everything that an evaluation draws on, as numbers."""
    samples, extractor = images(N, 0), network(name)
    real = ImageData(images(200, 1))
    reference = Reference(data_source(real), real.images)
    moments = reference_moments(reference, extractor, batch=batch, sharded=sharded)
    theirs = reference_features(reference, extractor, batch=batch, sharded=sharded)
    got = gather(
        lambda first, count: samples[first : first + count],
        N,
        extractor,
        batch=batch,
        blocks=BLOCKS,
        keep_features=True,
        keep_images=True,
        sharded=sharded,
    )
    metric = frechet_metric(got.blocks, moments)
    assert metric.interval is not None
    assert got.features is not None
    assert got.images is not None
    assert torch.equal(got.images, samples)
    assert metric.value == frechet_distance(joined(got.blocks), moments)
    return {
        "frechet": metric.value,
        "low": metric.interval[0],
        "high": metric.interval[1],
        "rows": [got.features.double().sum().item(), got.features.double().square().sum().item(), str(got.features.dtype)],
        "theirs": theirs.double().sum().item(),
        "moments": moments.covariance.sum().item(),
    }


PROGRAM = textwrap.dedent(
    """
    import importlib.util, json, sys
    spec = importlib.util.spec_from_file_location("sharded", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.process(sys.argv[2], sys.argv[3])
    """
)


def process(kind: str, out: str) -> None:
    """What each of several processes does; called in a process of its own."""
    from atonce.core.distribution import join_world, leave_world

    torch.set_num_threads(1)
    world = join_world("cpu", timeout=120)
    if kind == "few":
        few = images(5, 0)
        got = gather(
            lambda a, n: few[a : a + n], 5, network(), batch=4, blocks=1, keep_features=True, keep_images=True, sharded=True
        )
        assert got.images is not None
        assert torch.equal(got.images, few)
        assert got.features is not None
        found = {"features": got.features.tolist(), "frechet": joined(got.blocks).count}
    elif kind == "cache":
        found = _cached(world.rank)
    else:
        name, batch = kind.split()
        found = measured(int(batch), True, name)
    Path(f"{out}.{world.rank}").write_text(json.dumps(found))
    leave_world()  # an interpreter that ends with the group's threads still running may abort


def _cached(rank: int) -> dict[str, Any]:
    """The same extraction three times: computed, found, and, after one process lost its file, computed by all."""
    from atonce.evaluation import cache

    cache.WORTH_SECONDS = 0.0
    # Each process has a folder of its own, as on machines that share no disk.
    os.environ["ATONCE_CACHE"] = f"{os.environ['ATONCE_CACHE']}-{rank}"
    os.environ["LOCAL_RANK"] = "0"
    real = ImageData(images(200, 1))
    reference = Reference(Source("r", real.digest(), 200), real.images)
    counts: list[int] = []
    inner = network()

    def counting(x: Tensor) -> Tensor:
        counts[-1] += len(x)
        return inner.function(x)

    extractor = Extractor("counting", "counting", WIDTH, counting, batch=16)
    sums = []
    for turn in range(3):
        if turn == 2 and rank == 1:
            (path,) = (cache.cache_folder() / "references").glob("*.safetensors")
            path.unlink()
        counts.append(0)
        sums.append(reference_features(reference, extractor, sharded=True).double().sum().item())
    return {"counts": counts, "sums": sums}


def run(processes: int, kind: str, folder: Path) -> list[dict[str, Any]]:
    """Start processes and collect what each found."""
    out = folder / f"{processes}-{kind.replace(' ', '-')}"
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        "ATONCE_CACHE": str(folder / f"cache-{out.name}"),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, __file__, kind, str(out)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for each in started:
        _, said = each.communicate(timeout=200)
        assert each.returncode == 0, said
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Distances to 1e-9 relative, rows to the last bit."""
    assert found["rows"] == expected["rows"]
    assert found["theirs"] == expected["theirs"]
    for name in ("frechet", "low", "high", "moments"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_any_batch_gives_the_same(name: str) -> None:
    expected = measured(N, False, name)
    assert expected["low"] < expected["frechet"] < expected["high"]
    for batch in (1, 2, 3, 5, 8, 15, 16, 17, 32, 33, 100, 330, 332, 10_000):
        assert_same(measured(batch, False, name), expected)


@pytest.mark.parametrize(("processes", "batch"), [(2, 7), (3, 50)])
def test_any_number_of_processes_gives_the_same(processes: int, batch: int, tmp_path: Path) -> None:
    expected = measured(64, False, "float32")
    for found in run(processes, f"float32 {batch}", tmp_path):
        assert_same(found, expected)


def test_processes_without_images_get_the_whole_too(tmp_path: Path) -> None:
    """Five images are one chunk: the first of three processes has it all."""
    few = images(5, 0)
    expected = network()(few)
    for found in run(3, "few", tmp_path):
        assert torch.equal(torch.tensor(found["features"]), expected)
        assert found["frechet"] == 5


def test_processes_agree_on_what_is_kept(tmp_path: Path) -> None:
    first, second = run(2, "cache", tmp_path)
    assert first["sums"] == second["sums"]
    assert len(set(first["sums"])) == 1
    # 200 images are 13 chunks of 16, shared as 7 and 6; found the second time; the third time one process has nothing.
    assert (first["counts"], second["counts"]) == ([112, 0, 112], [88, 0, 88])
