"""How a run is carried out: device, precision, cadence. None of it changes what is learnt beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from atonce.core.errors import InputError


@dataclass(frozen=True)
class Options:
    """Settings of one run on one machine."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # auto: bf16 where the device has it and rounding is small beside the pairs
    )
    compile: bool = False  # torch.compile, with fallback to eager
    microbatch: int | None = None  # images per forward pass and process; more are accumulated
    log_every: int | None = None  # images between two log lines; default 1/200 of the budget
    evaluate_every: int | None = None  # images between two evaluations; default 1/12 of the budget, 8 evaluate_images at least
    evaluate_images: int = 1000  # samples of an evaluation
    checkpoint_seconds: float = 120.0  # between two checkpoints
    keep: int = 3  # checkpoints kept
    snapshots: int = 32  # saved of each power-function average, for making other widths after the training
    quiet: bool = False  # no progress display

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: One is out of its range.
        """
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}, must be auto, fp32 or bf16")
        for name in ("microbatch", "log_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, must be at least 1")
        if not isinstance(self.snapshots, int) or self.snapshots < 0:
            raise InputError(f"snapshots is {self.snapshots!r}, must be a whole number of at least 0 (0: none)")
        if self.keep < 1 or self.evaluate_images < 2 or self.checkpoint_seconds < 0:
            raise InputError("keep must be at least 1, evaluate_images at least 2 and checkpoint_seconds at least 0")


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA where there is one, else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The device.

    Raises:
        InputError: The device is not known or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but this machine has no CUDA device that PyTorch can use; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; use auto, cpu or cuda")
    return device


def exact_float32() -> None:
    """Let float32 be float32 on CUDA: PyTorch's convolutions would round their inputs to TF32's 10 bits.

    Where the ends of a pair are close, that is as coarse as what bfloat16 was given up for. It holds for the whole process.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively (elsewhere it would only be slower)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())
