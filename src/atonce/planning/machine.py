"""This machine: what it is called, peak memory of this process and of its device, how much memory there is."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import re
import sys
from pathlib import Path

import torch

from atonce.data.limits import memory_bytes

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Most bytes that this process has held in memory.

    On Linux from its own accounts: what ``getrusage`` says after an ``exec`` still counts the program that was there before.
    """
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace")):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def release_memory() -> None:
    """Give freed memory back to the system, so that what comes next is accounted by itself."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Begin the account of the peak anew, where the system lets us; that of a CUDA device always.

    Args:
        device: Where the work is done.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int:
    """Most bytes that PyTorch has reserved on a CUDA device; 0 elsewhere."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


def available_memory(device: torch.device) -> int | None:
    """Bytes that a run could take now on a device; ``None`` where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")):
            return int(found[1]) * 1024
    return memory_bytes()


def machine(device: torch.device) -> str:
    """The device and what its speed depends on, in words that name no one's machine."""
    if device.type == "cuda" and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(device)})"
    processor = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{device.type} ({processor}, {threads} thread{'s' if threads > 1 else ''})"
