"""Exponential moving averages of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from atonce.training.flat import FlatParameters


class Average:
    """One moving average of a network's parameters, on their device.

    Args:
        flat: The parameters; the average starts from their values.
    """

    def __init__(self, flat: FlatParameters) -> None:
        self._flat = flat
        self.values = flat.values.detach().clone()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move on: decay * average + (1 - decay) * parameters, in one pass that never waits for the device.

        Args:
            decay: In [0, 1).
        """
        self.values.lerp_(self._flat.values, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name; the tensors are views of the live one."""
        return self._flat.named(self.values)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the values of :meth:`state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
