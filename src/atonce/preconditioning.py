"""Preconditionings: the small objects that turn a raw network F into f(x, sigma) and convert sigma to the network's own time.

f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from atonce.core.errors import InputError

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Preconditioning:
    """EDM's preconditioning and its form with the boundary shifted to ``sigma_end``.

    ``"edm"`` (Karras et al. 2022, Table 1) is the identity at sigma = 0; ``"boundary"`` (Song et al. 2023, Appendix C) replaces
    sigma by sigma - sigma_end in c_skip and in the numerator of c_out, so that it is the identity at sigma = sigma_end.
    c_out keeps the unshifted sigma in its denominator, and c_noise = ln(sigma) / 4 in both.

    Attributes:
        kind: ``"edm"`` or ``"boundary"``.
        sigma_data: Standard deviation of the data.
        sigma_end: Where f is the identity: 0 for ``"edm"``, sigma_min for ``"boundary"``.
    """

    kind: Literal["edm", "boundary"] = "boundary"
    sigma_data: float = 0.5
    sigma_end: float = 0.002

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: A value is out of its range.
        """
        if self.kind not in ("edm", "boundary"):
            raise InputError(f"preconditioning {self.kind!r} is not known; known: edm, boundary")
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data is {self.sigma_data}, must be above 0")
        if self.kind == "edm" and self.sigma_end != 0:
            raise InputError(
                f"sigma_end is {self.sigma_end}: the edm preconditioning ends at 0; use boundary for a shifted end"
            )
        if not 0 <= self.sigma_end < math.inf:
            raise InputError(f"sigma_end is {self.sigma_end}, must be 0 or more")

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise.

        Args:
            sigma: Noise levels, any shape, float32 or float64. Below 1e-8, so also at 0, c_noise is that of 1e-8.

        Returns:
            Four tensors of the shape of ``sigma``.
        """
        shifted = sigma - self.sigma_end
        var_data = self.sigma_data**2
        c_skip = var_data / (shifted**2 + var_data)
        c_out = shifted * self.sigma_data / (sigma**2 + var_data).sqrt()
        c_in = 1.0 / (sigma**2 + var_data).sqrt()
        # ln 0 has no place in a network's input; at sigma = 0 the output is x whatever F says, as long as F is finite.
        c_noise = 0.25 * sigma.clamp(min=1e-8).log()
        return c_skip, c_out, c_in, c_noise

    def __call__(
        self, network: Network, x: Tensor, sigma: Tensor, *, dtype: torch.dtype | None = None, **condition: Any
    ) -> Tensor:
        """f(x, sigma).

        Args:
            network: F(x, c_noise, **condition).
            x: Noisy images [B, C, H, W].
            sigma: Noise levels [B]. The coefficients are computed in float32 at least.
            dtype: Precision in which the network runs; default: that of ``x``.
            condition: Passed on to the network (label, augment, masks).

        Returns:
            [B, C, H, W] in the dtype of ``x``.
        """
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        b = (slice(None),) + (None,) * (x.dim() - 1)
        raw = network((c_in[b] * x).to(dtype or x.dtype), c_noise, **condition)
        return c_skip[b] * x + c_out[b] * raw.to(x.dtype)
