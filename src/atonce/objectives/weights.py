"""Loss weights as functions of the noise levels."""

from __future__ import annotations

from torch import Tensor


def inverse_delta(t: Tensor, r: Tensor) -> Tensor:
    """1 / (t - r), of iCT and ECT. Song and Dhariwal 2023, section 3.4; Geng et al. 2024.

    Args:
        t: Noise levels of the student [B].
        r: Noise levels of the target [B].

    Returns:
        [B].
    """
    return 1.0 / (t - r)


def edm(t: Tensor, sigma_data: float) -> Tensor:
    """(t^2 + sigma_data^2) / (t sigma_data)^2, of the denoiser's training. Karras et al. 2022, Table 1.

    Args:
        t: Noise levels [B].
        sigma_data: Standard deviation of the data.

    Returns:
        [B].
    """
    return (t**2 + sigma_data**2) / (t * sigma_data) ** 2
