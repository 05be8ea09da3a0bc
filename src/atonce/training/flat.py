"""All parameters of a network in one tensor, so that optimiser, averages and gradient sums are single operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatParameters:
    """Moves a network's parameters and gradients into two flat tensors; the parameters become views of them.

    A step then costs a handful of kernels for the optimiser instead of one for each of some hundred tensors. Convolution
    weights keep their channels-last strides. The network is used, saved and loaded as before.

    Args:
        network: On its final device; its parameters must share one dtype.

    Attributes:
        values: All parameters [P], a leaf that an optimiser can take.
        names: Names of the parameters in the order of the flat tensor.
    """

    def __init__(self, network: nn.Module) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self._parameters = list(network.parameters())
        self.shapes = [p.shape for p in self._parameters]
        first = self._parameters[0]
        self.values = torch.empty(sum(p.numel() for p in self._parameters), device=first.device, dtype=first.dtype)
        self.values.grad = torch.zeros_like(self.values)
        values, gradients = self.views(self.values), self.views(self.values.grad)
        with torch.no_grad():
            for p, value, gradient in zip(self._parameters, values, gradients, strict=True):
                value.copy_(p)
                p.data = value
                p.grad = gradient

    @property
    def gradient(self) -> Tensor:
        """All gradients [P]."""
        assert self.values.grad is not None  # made in the constructor, never replaced
        return self.values.grad

    def views(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor as the tensors of the parameters, sharing its memory."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return [_shaped(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """:meth:`views` by parameter name."""
        return dict(zip(self.names, self.views(flat), strict=True))


def _shaped(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:  # channels-last in memory
        o, i, h, w = shape
        return part.view(o, h, w, i).permute(0, 3, 1, 2)
    return part.view(shape)
