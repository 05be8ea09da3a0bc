"""What this machine has and lacks, for people who ask why something does not run or runs slowly."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from atonce.core.errors import AtonceError
from atonce.core.version import VERSION
from atonce.data.bundled import data_folder
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.model import ConsistencyModel
from atonce.training.options import has_bf16

EXTRAS = {
    "data": ("datasets", "huggingface_hub"),
    "fid": ("torchmetrics", "torch_fidelity"),
    "serve": ("fastapi", "uvicorn"),
    "studio": ("gradio",),
    "cpu": ("openvino", "onnxruntime"),
    "track": ("wandb", "mlflow"),
    "sweep": ("optuna",),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        value: What was found, in a line.
        mark: ``ok``, ``--`` (absent, not needed) or ``!!`` (something will not work).
    """

    name: str
    value: str
    mark: str = "ok"


def examine() -> list[Finding]:
    """Look at versions, devices, arithmetic, disk, extras, data and gallery; about two seconds."""
    findings = [
        Finding("atonce", VERSION),
        Finding("python", f"{platform.python_version()} at {sys.prefix}", "ok" if sys.version_info >= (3, 11) else "!!"),
        _torch(),
        Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"),
    ]
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        findings += [Finding(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    else:
        findings.append(Finding("cuda", "no device that PyTorch can use; training runs on the CPU", "--"))
    for name in devices:
        findings += _arithmetic(torch.device(name))
    free = shutil.disk_usage(Path.cwd()).free
    findings.append(Finding("disk", f"{free / 2**30:.1f} GiB free here", "ok" if free > 2**30 else "!!"))
    findings.append(_package("tensorboard", "event files", "pip install tensorboard"))
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        value = f"without {', '.join(missing)}: pip install 'atonce[{extra}]'" if missing else "installed"
        findings.append(Finding(f"extra {extra}", value, "--" if missing else "ok"))
    return [*findings, _data(), *_gallery()]


def _torch() -> Finding:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    new_enough = version >= (2, 11)
    return Finding(
        "torch", torch.__version__ + ("" if new_enough else ": 2.11 or newer is needed"), "ok" if new_enough else "!!"
    )


def _arithmetic(device: torch.device) -> list[Finding]:
    """Rates of a matrix product and of a small convolution's training step."""
    size = 4096 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device)
    product = _seconds(lambda: a @ a, device)
    x = torch.ones(64, 32, 16, 16, device=device, requires_grad=True)
    w = torch.ones(32, 32, 3, 3, device=device, requires_grad=True)
    step = _seconds(lambda: torch.nn.functional.conv2d(x, w, padding=1).sum().backward(), device)
    flops = 3 * 2 * 64 * 16 * 16 * 32 * 32 * 9
    native = "native bf16" if has_bf16(device) else "no native bf16: training stays in float32"
    return [
        Finding(f"{device} matrices", f"{2 * size**3 / product / 1e9:,.0f} GFLOP/s in float32; {native}"),
        Finding(f"{device} convolutions", f"{flops / step / 1e9:,.0f} GFLOP/s in float32, forward and backward"),
    ]


def _seconds(work: Callable[[], object], device: torch.device, limit: float = 0.3) -> float:
    """Shortest time of ``work`` within about ``limit`` seconds."""
    best, start = float("inf"), time.perf_counter()
    work()
    while time.perf_counter() - start < limit:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best if best < float("inf") else time.perf_counter() - start


def _package(name: str, purpose: str, remedy: str) -> Finding:
    found = importlib.util.find_spec(name) is not None
    return Finding(name, purpose if found else f"absent, so no {purpose}: {remedy}", "ok" if found else "--")


def _data() -> Finding:
    folder = data_folder()
    if folder is None:
        return Finding("data folder", "none: set ATONCE_DATA to a folder with fashion-mnist, cifar10, ...", "--")
    present = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return Finding("data folder", f"{folder}: {', '.join(present) or 'empty'}")


def _gallery() -> list[Finding]:
    findings = []
    for name in gallery_names():
        try:
            model = ConsistencyModel.from_pretrained(gallery_folder() / name)
            findings.append(Finding(f"gallery {name}", f"loads: {model.kind}, {'x'.join(map(str, model.shape))}"))
        except AtonceError as error:
            findings.append(Finding(f"gallery {name}", str(error), "!!"))
    return findings or [Finding("gallery", "empty", "!!")]
