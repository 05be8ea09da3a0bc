"""Building blocks of the U-Net family: convolutions that resample, normalisation, embeddings, attention, the residual block.

Weights are kept in float32 and cast to the dtype of the input at each use, so one network runs in float32, bfloat16 or float64
without autocast. Parameter names and shapes follow the public EDM checkpoints (SongUNet).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.networks import forward_mode
from atonce.networks.forward_mode import silu


class Linear(nn.Module):
    """y = x W^T + b with Xavier-uniform weights times ``gain`` (drawn by :func:`initialise`)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return forward_mode.affine(lambda v, b: F.linear(v, weight, b), x, bias)


class Conv(nn.Module):
    """A convolution with optional resampling by two through a separable low-pass filter.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Kernel size, 1 or 3.
        resample: ``"up"``, ``"down"`` or ``None``; the filter comes before the convolution unless ``fused``.
        taps: Filter taps, e.g. (1, 1) for a box or (1, 3, 3, 1).
        fused: Filter after the convolution (only with ``"down"``; the image pyramid of NCSN++). The convolution then reaches
            past the border by the filter's padding, and the bias comes last, so that the two act as one strided kernel.
        gain: Factor on the Xavier-uniform initialisation.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        resample: Literal["up", "down"] | None = None,
        taps: tuple[int, ...] = (1, 1),
        fused: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.kernel, self.resample, self.fused, self.gain = kernel, resample, fused, gain
        self.box, self.margin = taps == (1, 1), (len(taps) - 1) // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2, persistent=False)

    def _filter(self, x: Tensor) -> Tensor:
        """Halve or double the resolution with the low-pass filter."""
        if self.box:
            return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.resample == "down":
            return F.conv2d(x, taps, stride=2, padding=0 if self.fused else self.margin, groups=channels)
        return F.conv_transpose2d(x, taps * 4, stride=2, padding=self.margin, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        return forward_mode.affine(lambda v, b: self._convolve(v, weight, b), x, self.bias.to(x.dtype))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.resample and self.fused:
            x = self._filter(F.conv2d(x, weight, padding=self.kernel // 2 + self.margin))
            return x if bias is None else x + bias[:, None, None]
        return F.conv2d(self._filter(x) if self.resample else x, weight, bias, padding=self.kernel // 2)


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C / 4) groups, or the next smaller number that divides C; statistics in float32."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        # The published widths are multiples of 32; joined with a skip, others give 144 channels, say, which 32 does not divide.
        self.groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return forward_mode.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding of DDPM++: [sin(f c), cos(f c)], frequencies from 1 down to 1/10000, both ends included."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, device=c_noise.device, dtype=c_noise.dtype) / (half - 1)
        angle = c_noise[:, None] * (1.0 / 10_000) ** exponent
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class GuidanceEmbedding(nn.Module):
    """The guidance scale w as a condition: a linear map, without bias, of the sinusoidal embedding of 1000 w.

    Source: Luo et al. 2023 (Latent Consistency Models), section 4.2: added to the embedding of the noise. The weights
    start at zero, so that a student that takes over its teacher's weights is exactly its teacher at every w. The second
    time of a flow map is told in the same way, with factor 1.
    """

    def __init__(self, channels: int, factor: float = 1000.0) -> None:
        super().__init__()
        self.factor = factor
        self.features = PositionalEmbedding(channels)
        self.weight = nn.Parameter(torch.zeros(channels, channels))

    def forward(self, guidance: Tensor) -> Tensor:
        return F.linear(self.features(guidance * self.factor), self.weight.to(guidance.dtype))


class FourierEmbedding(nn.Module):
    """Random Fourier features of NCSN++: [sin(2 pi f c), cos(2 pi f c)], f ~ N(0, scale^2) and fixed.

    Scale 16 is the published NCSN++; iCT lowers it to 0.02, without which training from data is unstable.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("freqs", torch.zeros(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * (2.0 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Block(nn.Module):
    """Residual block: GN, SiLU, conv (may resample), + embedding, GN, SiLU, dropout, conv; residual times sqrt(1/2); attention.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        embedding: Width of the embedding.
        resample: ``"up"``, ``"down"`` or ``None``.
        taps: Taps of the resampling filter.
        heads: Attention heads after the convolutions; 0 for none.
        double: The embedding scales and shifts after the second norm, both normalised over the channels (Lu and Song 2024,
            equation 8); otherwise it is added before.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        resample: Literal["up", "down"] | None = None,
        taps: tuple[int, ...] = (1, 1),
        heads: int = 0,
        double: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.double_norm = out_channels, double
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = Conv(in_channels, out_channels, 3, resample, taps)
        self.affine = Linear(embedding, 2 * out_channels if double else out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv(out_channels, out_channels, 3, gain=1e-5)
        self.skip = None
        if in_channels != out_channels or resample:
            self.skip = Conv(in_channels, out_channels, 1, resample, taps)
        self.heads = heads
        if heads:
            self.norm2 = GroupNorm(out_channels)
            self.qkv = Conv(out_channels, 3 * out_channels, 1, gain=math.sqrt(0.2))
            self.proj = Conv(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv0(silu(self.norm0(x)))
        y = silu(self.adapt(y, self.affine(emb)[:, :, None, None]))
        y = drop(y, mask)
        y = (self.conv1(y) + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        return (y + self.attend(y)) * math.sqrt(0.5) if self.heads else y

    def adapt(self, y: Tensor, condition: Tensor) -> Tensor:
        """The second normalisation and the embedding's say in it."""
        if self.double_norm:
            scale, shift = condition.chunk(2, dim=1)
            return self.norm1(y) * pixel_norm(1 + scale) + pixel_norm(shift)
        return self.norm1(y + condition)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of [B, C, H, W] between 1x1 convolutions, without the residual."""
        return self.proj(self_attention(self.qkv(self.norm2(x)), self.heads))


def pixel_norm(x: Tensor, eps: float = 1e-4) -> Tensor:
    """X / sqrt(mean(x^2) + eps) over the channels of [B, C, ...] (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    """Dropout by a given mask [B, C H W], already scaled; ``None`` or an empty one leaves ``x`` [B, C, H, W] as it is."""
    return x if mask is None or not mask.numel() else x * mask.view(x.shape).to(x.dtype)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q.k / sqrt(c)) v over all positions, for each head of c channels.

    Args:
        qkv: [B, 3 C, H, W]; the channels run over (head, channel, q|k|v), as in the public EDM checkpoints.
        heads: Number of heads.

    Returns:
        [B, C, H, W].
    """
    b, c, h, w = qkv.shape[0], qkv.shape[1] // 3, *qkv.shape[2:]

    def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # One copy to [3, B, heads, HW, C / heads]: with strided q, k, v the products on a CPU become a loop over the batch.
        q, k, v = qkv.reshape(b, heads, c // heads, 3, h * w).permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        return q, k, v

    return forward_mode.attention(qkv, split).transpose(-1, -2).reshape(b, c, h, w)


def mask_sizes(parts: Iterable[nn.ModuleDict], kind: type[nn.Module], dropout_resolution: int) -> list[int]:
    """Elements per sample of each block's dropout mask, in the order of use.

    Args:
        parts: Blocks by name; a name starts with the resolution, as in ``16x16_block0``.
        kind: The class of the blocks; others have no dropout.
        dropout_resolution: The highest resolution with dropout; 0: all.

    Returns:
        C H W for each block, 0 for one without dropout.
    """
    sizes: list[int] = []
    for part in parts:
        for name, module in part.items():
            if isinstance(module, kind):
                resolution, channels = int(name.split("x")[0]), int(module.out_channels)  # type: ignore[arg-type]
                sizes.append(channels * resolution**2 if not 0 < dropout_resolution < resolution else 0)
    return sizes


def initialise(network: nn.Module, seed: int) -> None:
    """Draw all weights from one seed, without touching global random state: Xavier-uniform times each layer's gain.

    As configured by EDM (Karras et al. 2022): factor 1e-5 on the last convolution of a block, on the attention's projection and
    on the output, sqrt(0.2) on q, k, v, zero biases.

    Args:
        network: A network made of this module's layers; changed in place.
        seed: Any integer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (Linear, Conv)):
                w = module.weight
                receptive = w[0, 0].numel() if w.dim() == 4 else 1
                bound = math.sqrt(6.0 / ((w.shape[0] + w.shape[1]) * receptive)) * module.gain
                w.copy_((torch.rand(w.shape, generator=generator) * 2 - 1) * bound)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, GuidanceEmbedding):
                module.weight.zero_()
            elif isinstance(module, GroupNorm):
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, FourierEmbedding):
                module.freqs.copy_(torch.randn(module.freqs.shape, generator=generator) * module.scale)
