"""A network recorded as a graph that runs without Python, in memory only."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from atonce.model import ConsistencyModel


class _Inputs(nn.Module):
    """The network with its inputs in a row, as recording wants them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, c_noise: Tensor, *others: Tensor) -> Tensor:
        return self.network(x, c_noise, **dict(zip(self.names, others, strict=True)))


def condition_names(model: ConsistencyModel) -> tuple[str, ...]:
    """What the network of a model is told besides x and c_noise, in order."""
    config = model.config.network
    second = ["second"] if model.config.preconditioning.second else []
    return (*(["label"] if config.labels else []), *(["guidance"] if config.guidance else []), *second)


def example(model: ConsistencyModel) -> tuple[Tensor, ...]:
    """Inputs of two rows: x, c_noise and what the network is told besides."""
    device = model.device
    given = {name: torch.ones(2, device=device) for name in ("guidance", "second")}
    given["label"] = torch.zeros(2, dtype=torch.int64, device=device)
    x = torch.zeros(2, *model.shape, device=device, dtype=model.dtype)
    return (x, torch.zeros(2, device=device), *(given[name] for name in condition_names(model)))


@torch.no_grad()
def recorded(model: ConsistencyModel, network: nn.Module) -> Any:
    """The graph of a network, for any number of rows.

    Args:
        model: Whose inputs it takes.
        network: The network; nothing in it may depend on values.

    Returns:
        A function of x [B, C, H, W], c_noise [B], and what the network is told besides, in order.
    """
    inputs = example(model)
    inputs = (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated some day; there is nothing yet that does the same
        traced = torch.jit.trace(_Inputs(network, condition_names(model)).eval(), inputs, check_trace=False)
        return torch.jit.freeze(traced)
