"""Several processes as one: a thin layer over ``torch.distributed`` as ``torchrun`` starts it.

One process is the usual case and needs no process group; every function here then is the identity. With more, ranks talk
over gloo on CPU and NCCL on CUDA, and a rank that waits longer than the timeout fails rather than hangs.

Before elastic launches (``torchrun`` with restarts) set ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` in the launcher's own
environment: without it restarted gloo groups often fail to meet again. It is read by the launcher, so it is too late to
set it here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from atonce.core.errors import InputError

DEFAULT_TIMEOUT = 600.0


@dataclass(frozen=True)
class World:
    """Where this process stands among those that work together.

    Attributes:
        rank: This process, 0 to size - 1; rank 0 writes files and speaks.
        size: How many processes there are.
        local_rank: This process among those of its machine; it selects the CUDA device.
        device: The device this process computes on.
        backend: ``gloo``, ``nccl``, or ``none`` for a single process without a group.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")
    backend: str = "none"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def join_world(device: torch.device | str = "cpu", *, timeout: float = DEFAULT_TIMEOUT) -> World:
    """Join the processes that ``torchrun`` started, or stand alone where it started none.

    Args:
        device: ``cpu`` or ``cuda``. A CUDA device without an index becomes the one of the local rank.
        timeout: Seconds after which a rank that waits for the others fails.

    Returns:
        This process's place. A group that exists already is used as it is.

    Raises:
        InputError: The environment's RANK, WORLD_SIZE or LOCAL_RANK is no number or out of range, the machine has fewer
            CUDA devices than processes, or the timeout is not positive.
    """
    device = torch.device(device)
    if not timeout > 0:
        raise InputError(f"timeout is {timeout}, must be more than 0 seconds")
    size = _environment_int("WORLD_SIZE", 1, low=1)
    rank = _environment_int("RANK", 0, low=0, high=size - 1)
    local_rank = _environment_int("LOCAL_RANK", rank, low=0)
    if device.type == "cuda" and device.index is None:
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise InputError(
                f"process {local_rank} of this machine has no CUDA device, there are {count}: start at most {count} "
                "processes here (--nproc_per_node) or use the CPU"
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        return World(device=device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise InputError(f"WORLD_SIZE is {size} but {' and '.join(missing)} not set: start the processes with torchrun")
        dist.init_process_group(
            backend,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=device if backend == "nccl" else None,
        )
    return World(rank=rank, size=size, local_rank=local_rank, device=device, backend=str(dist.get_backend()))


def leave_world() -> None:
    """Leave the process group, if there is one. Harmless to call twice."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this process is rank 0, or the only one."""
    return _size() == 1 or dist.get_rank() == 0


def barrier() -> None:
    """Wait until all processes are here; nothing for a single one.

    A sum of one number serves all backends, and on CUDA it is read back so that the host waits too.
    """
    if _size() > 1:
        token = torch.ones((), device=_group_device())
        dist.all_reduce(token)
        token.item()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits on each.

    Args:
        tensor: Any shape and numeric type, equal on all processes; it is not changed.

    Returns:
        A new tensor of the same shape, type and device.
    """
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if _size() > 1:
        moved = total.to(_group_device())
        dist.all_reduce(moved)
        total = moved.to(total.device)
    return total


def all_equal(value: Any) -> bool:
    """Whether ``value`` is the same on every process, by ``==``; every process gets the same answer.

    Args:
        value: Anything that can be pickled and compared (a hash, a count, a recipe). It travels between our own processes only.

    Returns:
        True for a single process.
    """
    size = _size()
    if size == 1:
        return True
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return all(other == values[0] for other in values[1:])


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _group_device() -> torch.device:
    """Where tensors must be for the group's backend."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _environment_int(name: str, default: int, *, low: int, high: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None or not text.strip():
        return default
    limits = f"at least {low}" if high is None else f"{low} to {high}"
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        raise InputError(f"the environment's {name} is {text!r}, must be a whole number, {limits}: use torchrun or unset it")
    return value
