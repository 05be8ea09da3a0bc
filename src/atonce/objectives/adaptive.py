"""A weight over noise levels that is learnt beside the network, and never leaves the training run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FEATURES = 64


class AdaptiveWeight(nn.Module):
    """w(c_noise), a linear function of random Fourier features: exp(w) weighs a loss, and -w keeps it from vanishing.

    At its best w = -ln E[loss], so that all noise levels count alike. Karras et al. 2024, section 3 (their u is -w, their
    features these); Lu and Song 2024, section 4.2. It starts at 0.

    Args:
        seed: Of the features' frequencies, which are fixed.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("freqs", 2 * math.pi * torch.randn(FEATURES, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(FEATURES, generator=generator))
        self.weight = nn.Parameter(torch.zeros(FEATURES))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, c_noise: Tensor) -> Tensor:
        """The logarithm of the weight.

        Args:
            c_noise: What the network is told of the noise level [B].

        Returns:
            w [B].
        """
        features = (c_noise[:, None].to(self.freqs.dtype) * self.freqs + self.phases).cos()
        return features @ self.weight + self.bias
