"""The ADM U-Net, as in OpenAI's consistency models and in EDM: attention at several resolutions, scale-shift normalisation.

Source: Dhariwal & Nichol 2021 (Diffusion models beat GANs on image synthesis), section 3, in the forms of the public
checkpoints of Song et al. 2023 and Karras et al. 2022. Parameter names and shapes follow EDM's (DhariwalUNet).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.networks.checks import check_flags, check_inputs, check_shape, check_tuples, check_whole
from atonce.networks.forward_mode import silu
from atonce.networks.layers import Conv, GroupNorm, GuidanceEmbedding, Linear, drop, mask_sizes, pixel_norm, self_attention

_LOWEST = {
    "size": 4,
    "image_channels": 1,
    "channels": 4,
    "blocks": 1,
    "embedding_mult": 1,
    "head_channels": 0,
    "labels": 0,
    "augment_labels": 0,
    "dropout_resolution": 0,
}


@dataclass(frozen=True)
class ADMConfig:
    """Shape of an ADM U-Net; the defaults are the published one for ImageNet-64, less its 1000 classes."""

    size: int = 64  # height and width of the images
    image_channels: int = 3  # 1 grey, 3 RGB, or any number
    channels: int = 192  # base width
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)  # width of each level, in units of `channels`
    blocks: int = 3  # residual blocks per level (the decoder has one more)
    attention: tuple[int, ...] = (32, 16, 8)  # resolutions with self-attention
    head_channels: int = 64  # channels of an attention head; 0: one head
    scale_shift: bool = True  # the embedding scales and shifts after the second norm; False: is added before it (LSUN)
    embedding_mult: int = 4  # width of the embedding, in units of `channels`
    noise_scale: float = 1.0  # factor on c_noise; 1000 in OpenAI's checkpoints, 1 in EDM's
    labels: int = 0  # classes; 0: unconditional
    augment_labels: int = 0  # width of the augmentation label vector
    guidance: bool = False  # whether the guidance scale is an input
    second_time: bool = False  # whether a second time is an input (flow maps)
    dropout_resolution: int = 0  # dropout only in blocks of at most this resolution; 0: in all
    double_norm: bool = False  # scale and shift are normalised over the channels (sCM); needs scale_shift

    def __post_init__(self) -> None:
        """Check every field; a wrong one is named with its range.

        Raises:
            InputError: A field is out of its range, or the size does not fit the levels.
        """
        check_whole(self, _LOWEST)
        check_tuples(self, ("channel_mult", "attention"))
        check_flags(self, ("scale_shift", "guidance", "second_time", "double_norm"))
        if self.double_norm and not self.scale_shift:
            raise InputError("network double_norm is True, which normalises scale and shift: set scale_shift=True")
        scale = self.noise_scale
        if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < scale < math.inf:
            raise InputError(f"network noise_scale is {scale!r}, must be a number above 0")
        check_shape(self)

    def heads(self, channels: int) -> int:
        """Attention heads of a block with ``channels`` channels."""
        return channels // self.head_channels if self.head_channels else 1


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of ADM: [cos(f c), sin(f c)], frequencies from 1 down towards 1/10000, the last not included."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        # Through the exponential, not a power of 1/10000: at arguments of 1000 the last bit of a frequency is seen in float32.
        exponent = torch.arange(half, device=c_noise.device, dtype=c_noise.dtype) * -math.log(10_000) / half
        angle = c_noise[:, None] * exponent.exp()
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Resample(nn.Module):
    """Half the resolution by averaging 2x2 pixels, or double it by repeating them."""

    def __init__(self, resample: Literal["up", "down"]) -> None:
        super().__init__()
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


class ADMBlock(nn.Module):
    """Residual block: GN, SiLU, (resample) conv, GN with scale and shift by the embedding, SiLU, dropout, conv; attention.

    Args:
        in_channels: Channels in.
        out_channels: Channels out; equal to ``in_channels`` where the block resamples.
        embedding: Width of the embedding.
        resample: ``"up"``, ``"down"`` or ``None``.
        heads: Attention heads after the convolutions; 0 for none.
        scale_shift: False: the embedding is added before the second normalisation.
        double: Scale and shift are normalised over the channels (Lu and Song 2024, equation 8).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        resample: Literal["up", "down"] | None = None,
        heads: int = 0,
        scale_shift: bool = True,
        double: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.heads = out_channels, heads
        self.scale_shift, self.double_norm = scale_shift, double
        self.norm0 = GroupNorm(in_channels, eps=1e-5)
        self.conv0 = Conv(in_channels, out_channels, 3, resample)
        self.affine = Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.norm1 = GroupNorm(out_channels, eps=1e-5)
        self.conv1 = Conv(out_channels, out_channels, 3, gain=0.0)
        self.skip: nn.Module | None = None
        if resample:
            self.skip = Resample(resample)
        elif in_channels != out_channels:
            self.skip = Conv(in_channels, out_channels, 1)
        if heads:
            self.norm2 = GroupNorm(out_channels, eps=1e-5)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = Conv(out_channels, out_channels, 1, gain=0.0)

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv0(silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            scale = 1 + scale
            if self.double_norm:
                scale, shift = pixel_norm(scale), pixel_norm(shift)
            y = self.norm1(y) * scale + shift
        else:
            y = self.norm1(y + condition)
        y = self.conv1(drop(silu(y), mask)) + (x if self.skip is None else self.skip(x))
        return y + self.proj(self_attention(self.qkv(self.norm2(y)), self.heads)) if self.heads else y


class ADM(nn.Module):
    """F(x, c_noise): the raw network under a preconditioning.

    Args:
        config: Its shape.
        seed: Of the initial weights; ``None`` leaves them at zero, for weights that are loaded next.
    """

    def __init__(self, config: ADMConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        width, emb = config.channels, config.channels * config.embedding_mult
        self.map_noise = TimestepEmbedding(width)
        self.map_augment = Linear(config.augment_labels, width, bias=False, gain=0.0) if config.augment_labels else None
        self.map_guidance = GuidanceEmbedding(width) if config.guidance else None
        self.map_second = GuidanceEmbedding(width, 1.0) if config.second_time else None
        self.map_layer0 = Linear(width, emb)
        self.map_layer1 = Linear(emb, emb)
        self.map_label = Linear(config.labels, emb, bias=False) if config.labels else None

        def block(cin: int, cout: int, resample: Literal["up", "down"] | None = None, attend: bool = False) -> ADMBlock:
            heads = config.heads(cout) if attend else 0
            return ADMBlock(cin, cout, emb, resample, heads, config.scale_shift, config.double_norm)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        out = width * config.channel_mult[0]
        skips: list[int] = []
        for level, mult in enumerate(config.channel_mult):
            res = config.size >> level
            name = f"{res}x{res}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv(config.image_channels, out, 3)
            else:
                self.enc[f"{name}_down"] = block(out, out, "down")
            skips.append(out)
            for index in range(config.blocks):
                cin, out = out, width * mult
                self.enc[f"{name}_block{index}"] = block(cin, out, attend=res in config.attention)
                skips.append(out)
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            res = config.size >> level
            name = f"{res}x{res}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{name}_in0"] = block(out, out, attend=True)
                self.dec[f"{name}_in1"] = block(out, out)
            else:
                self.dec[f"{name}_up"] = block(out, out, "up")
            for index in range(config.blocks + 1):
                cin, out = out + skips.pop(), width * mult
                self.dec[f"{name}_block{index}"] = block(cin, out, attend=res in config.attention)
        self.out_norm = GroupNorm(out, eps=1e-5)
        self.out_conv = Conv(out, config.image_channels, 3, gain=0.0)
        if seed is not None:
            initialise(self, seed)

    def embed(
        self,
        c_noise: Tensor,
        label: Tensor | None,
        augment: Tensor | None,
        guidance: Tensor | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        """Embedding [B, E] of noise level, class label, augmentation label, guidance scale and second time."""
        emb: Tensor = self.map_noise(c_noise * self.config.noise_scale)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment.to(emb.dtype))
        if self.map_guidance is not None and guidance is not None:
            emb = emb + self.map_guidance(guidance.to(emb.dtype))
        if self.map_second is not None and second is not None:
            emb = emb + self.map_second(second.to(emb.dtype))
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and label is not None:
            # One column of the weights for each class; a negative label means "no class" and adds nothing.
            onehot = F.one_hot(label.clamp(min=0), self.config.labels) * (label >= 0)[:, None]
            emb = emb + self.map_label(onehot.to(emb.dtype))
        return silu(emb)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        guidance: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: Preconditioned input [B, C, H, W]; its dtype is the dtype of the computation.
            c_noise: Noise condition [B], float32 or float64; [1] where all samples share it.
            label: Class labels int64 [B], negative for "no class"; ``None`` is the same for all.
            augment: Augmentation labels [B, A]; ``None`` means not augmented.
            guidance: Guidance scales [B] or [1], for a network with this input; ``None`` adds nothing, as before distillation.
            masks: Scaled dropout masks, one for each block, sized by :meth:`mask_sizes`; ``None`` or empty: no dropout.
            second: Second time [B] or [1] of a flow map, for a network with this input; ``None`` adds nothing.

        Returns:
            F of the input's shape and dtype.

        Raises:
            InputError: A guidance scale or a second time is given to a network without this input.
        """
        check_inputs(self.config, guidance=guidance, second_time=second)
        emb = self.embed(c_noise, label, augment, guidance, second).to(x.dtype)
        remaining = iter(masks) if masks is not None else None
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb, next(remaining) if remaining else None) if isinstance(module, ADMBlock) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb, next(remaining) if remaining else None)
        return self.out_conv(silu(self.out_norm(x)))

    @property
    def output(self) -> str:
        """How the names of the output layer's parameters begin."""
        return "out_conv."

    def mask_sizes(self) -> list[int]:
        """Elements per sample of each block's dropout mask, in the order of use; 0 for a block without dropout."""
        return mask_sizes((self.enc, self.dec), ADMBlock, self.config.dropout_resolution)


def initialise(network: ADM, seed: int) -> None:
    """Draw all weights from one seed, without touching global random state.

    As published: weights and biases uniform within 1/sqrt(fan-in), standard normal class embeddings, zeros where a residual
    branch ends (second convolution, attention's projection), on the output and on the augmentation and guidance inputs.

    Args:
        network: Changed in place.
        seed: Any integer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if not isinstance(module, (Linear, Conv)):
                continue
            bound = module.gain * module.weight[0].numel() ** -0.5
            for value in (module.weight, module.bias):
                if value is None or not bound:
                    continue  # made as zeros
                if module is network.map_label:
                    value.copy_(torch.randn(value.shape, generator=generator))
                else:
                    value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * bound)
