"""What the phases share: a notebook that is on disk after each line, the clock, settings of arithmetic, facts of the device."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from atonce.core.files import write_json


class Notebook:
    """Results of a phase, written after each entry: a phase that is cut short leaves all it had found.

    Args:
        path: The file.
        until: ``time.time()`` at which the phase must have ended.
    """

    def __init__(self, path: Path, until: float = float("inf")) -> None:
        self.path, self.until = path, until
        self.values: dict[str, Any] = {}
        self.skipped: list[dict[str, str]] = []

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.time()

    def put(self, name: str, value: Any) -> None:
        """Enter a result."""
        self.values[name] = value
        self._write()

    def skip(self, name: str, why: str) -> None:
        """Say that something was not done."""
        self.skipped.append({"what": name, "why": why})
        say(f"{name}: skipped, {why}")
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"results": self.values, "skipped": self.skipped})


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], Any], device: torch.device, *, budget: float = 1.0, most: int = 30) -> float:
    """Median time of ``work`` on the device.

    Args:
        work: What is timed; called twice before.
        device: Where it runs.
        budget: Seconds to spend, about.
        most: Repeats at most.

    Returns:
        Seconds. On CUDA by events around each call, with several calls in flight.
    """
    for _ in range(2):
        work()
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    once = time.perf_counter() - start
    repeats = max(3, min(most, int(budget / max(once, 1e-6))))
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    synchronise(device)
    return statistics.median(a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False))


@contextlib.contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Float32 products with TensorFloat-32 inputs (10 bits of mantissa) or in full, for matrices and convolutions alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer spellings exist, but must not be mixed with these
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """The same sums in the same order each time, where the libraries can. CUBLAS_WORKSPACE_CONFIG is set by the caller."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[2:]


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory and settings of the device as it was found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf32 = {
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        }
    facts: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.type != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(device)
    facts |= {
        "name": properties.name,
        "memory, GiB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "TF32 as found": tf32,
    }
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,utilization.gpu,memory.used"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            words = ["nvidia-smi", query, "--format=csv,noheader"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
            facts["driver, SM clock, memory clock, load, memory used"] = done.stdout.strip()
    return facts


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||, in float64."""
    x, y = a.detach().double().flatten(), b.detach().double().flatten()
    return float((x - y).norm() / y.norm().clamp(min=1e-300))
