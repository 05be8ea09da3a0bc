"""Preconditionings: the small objects that turn a raw network F into f(x, sigma) and convert sigma to the network's own time.

f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from atonce.core.errors import InputError

Network = Callable[..., Tensor]
Kind = Literal["edm", "boundary", "trigflow", "flow"]
Clock = Literal["log", "time"]


@dataclass(frozen=True)
class Preconditioning:
    """How a raw network F becomes a function of variance-exploding states x = y + sigma z.

    ``"edm"`` (Karras et al. 2022, Table 1) is the identity at sigma = 0; ``"boundary"`` (Song et al. 2023, Appendix C) replaces
    sigma by sigma - sigma_end in c_skip and in the numerator of c_out, so that it is the identity at sigma = sigma_end.
    c_out keeps the unshifted sigma in its denominator, and c_noise = ln(sigma) / 4 in both.

    The other two know the noise level ``to`` of the result; they are flow maps where the network is told it.

    ``"trigflow"`` (Lu and Song 2024) is the rotation x_s = cos(t - s) x_t - sin(t - s) sigma_data F of states
    x_t = cos t y + sin t sigma_data z = cos t x with t = arctan(sigma / sigma_data). Divided by cos s that is

        f(x, sigma, to) = (sigma_data^2 + sigma to) / (sigma_data^2 + sigma^2) x
                          - (sigma - to) sigma_data / sqrt(sigma_data^2 + sigma^2) F(c_in x, ...),

    so at to = 0 it is ``"edm"`` with the sign of F turned, and for any ``to`` the map "simple_edm" of IMM (Zhou et al. 2025).

    ``"flow"`` (Geng et al. 2025) is the step z_r = z_t - (t - r) F of states z_t = (1 - t) y + t z = (1 - t) x with
    t = sigma / (1 + sigma); divided by 1 - r that is f = (1 + to) / (1 + sigma) x - (sigma - to) / (1 + sigma) F.

    Attributes:
        kind: ``"edm"``, ``"boundary"``, ``"trigflow"`` or ``"flow"``.
        sigma_data: Standard deviation of the data.
        sigma_end: Where f is the identity: sigma_min for ``"boundary"``, 0 for the others.
        clock: What the network is told: ``"log"`` ln(sigma) / 4, or ``"time"``, t as defined above.
        second: Whether the network is told t(sigma) - t(to) too: then this is a flow map.
    """

    kind: Kind = "boundary"
    sigma_data: float = 0.5
    sigma_end: float = 0.002
    clock: Clock = "log"
    second: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: A value is out of its range.
        """
        if self.kind not in get_args(Kind):
            raise InputError(f"preconditioning {self.kind!r} is not known; known: {', '.join(get_args(Kind))}")
        if self.clock not in get_args(Clock):
            raise InputError(f"clock {self.clock!r} is not known; known: {', '.join(get_args(Clock))}")
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data is {self.sigma_data}, must be above 0")
        if self.kind != "boundary" and self.sigma_end != 0:
            raise InputError(
                f"sigma_end is {self.sigma_end}: the {self.kind} preconditioning ends at 0; use boundary for a shifted end"
            )
        if not 0 <= self.sigma_end < math.inf:
            raise InputError(f"sigma_end is {self.sigma_end}, must be 0 or more")
        maps = self.kind in ("trigflow", "flow")
        if self.clock == "time" and not maps:
            raise InputError(f"clock is 'time': the {self.kind} preconditioning has none but ln(sigma), use clock='log'")
        if self.second and not maps:
            raise InputError(f"second is True: the {self.kind} preconditioning goes to the end only, use trigflow or flow")

    def time(self, sigma: Tensor) -> Tensor:
        """The method's own time t: arctan(sigma / sigma_data) of TrigFlow, sigma / (1 + sigma) of the flow."""
        return torch.atan(sigma / self.sigma_data) if self.kind == "trigflow" else sigma / (1.0 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told of sigma (any shape). Below 1e-8, so also at 0, the logarithm is that of 1e-8."""
        # ln 0 has no place in a network's input; at sigma = 0 the output is x whatever F says, as long as F is finite.
        return self.time(sigma) if self.clock == "time" else 0.25 * sigma.clamp(min=1e-8).log()

    def coefficients(self, sigma: Tensor, to: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise.

        Args:
            sigma: Noise levels, any shape, float32 or float64. Below 1e-8, so also at 0, ln(sigma) is that of 1e-8.
            to: Noise levels of the result, for ``"trigflow"`` and ``"flow"``.

        Returns:
            Four tensors of the shape of ``sigma``.
        """
        c_noise = self.c_noise(sigma)
        if self.kind == "flow":
            c_in = 1.0 / (1.0 + sigma)
            return (1.0 + to) * c_in, (to - sigma) * c_in, c_in, c_noise
        var_data = self.sigma_data**2
        if self.kind == "trigflow":
            variance = sigma**2 + var_data
            c_in = variance.rsqrt()
            return (var_data + sigma * to) / variance, (to - sigma) * self.sigma_data * c_in, c_in, c_noise
        shifted = sigma - self.sigma_end
        c_skip = var_data / (shifted**2 + var_data)
        c_out = shifted * self.sigma_data / (sigma**2 + var_data).sqrt()
        c_in = 1.0 / (sigma**2 + var_data).sqrt()
        return c_skip, c_out, c_in, c_noise

    def __call__(
        self,
        network: Network,
        x: Tensor,
        sigma: Tensor,
        *,
        to: Tensor | float | None = None,
        dtype: torch.dtype | None = None,
        **condition: Any,
    ) -> Tensor:
        """f(x, sigma), or for a flow map f(x, sigma, to).

        Args:
            network: F(x, c_noise, **condition); of a flow map it is told ``second`` too.
            x: Noisy images [B, C, H, W].
            sigma: Noise levels [B]. The coefficients are computed in float32 at least.
            to: Noise levels of the result, [B] or one, for flow maps; ``None`` for the end.
            dtype: Precision in which the network runs; default: that of ``x``.
            condition: Passed on to the network (label, augment, masks).

        Returns:
            [B, C, H, W] in the dtype of ``x``.
        """
        end = 0.0 if to is None else to
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma, end)
        if self.second:
            condition["second"] = self.time(sigma) - self.time(torch.as_tensor(end, dtype=sigma.dtype, device=sigma.device))
        b = (slice(None),) + (None,) * (x.dim() - 1)
        raw = network((c_in[b] * x).to(dtype or x.dtype), c_noise, **condition)
        return c_skip[b] * x + c_out[b] * raw.to(x.dtype)
