"""The U-Net family of score models: DDPM++ and NCSN++ as in EDM, for any square size that its levels admit.

Source: Song et al. 2021 (Score-based generative modelling through SDEs) in the form of Karras et al. 2022 (EDM), Table 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.networks.checks import check_flags, check_inputs, check_shape, check_tuples, check_whole
from atonce.networks.forward_mode import silu
from atonce.networks.layers import (
    Block,
    Conv,
    FourierEmbedding,
    GroupNorm,
    GuidanceEmbedding,
    Linear,
    PositionalEmbedding,
    initialise,
    mask_sizes,
)

_LOWEST = {
    "size": 4,
    "image_channels": 1,
    "channels": 4,
    "blocks": 1,
    "embedding_mult": 1,
    "noise_mult": 1,
    "head_channels": 0,
    "labels": 0,
    "augment_labels": 0,
    "dropout_resolution": 0,
}


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net, on one screen."""

    size: int = 32  # height and width of the images
    image_channels: int = 3  # 1 grey, 3 RGB, or any number
    channels: int = 128  # base width
    channel_mult: tuple[int, ...] = (2, 2, 2)  # width of each level, in units of `channels`
    blocks: int = 4  # residual blocks per level (the decoder has one more)
    attention: tuple[int, ...] = (16,)  # resolutions with self-attention
    head_channels: int = 0  # channels of an attention head; 0: one head
    embedding: Literal["positional", "fourier"] = "positional"  # of c_noise
    fourier_scale: float = 16.0  # 16: published NCSN++; 0.02: iCT
    embedding_mult: int = 4  # width of the embedding, in units of `channels`
    noise_mult: int = 1  # width of the noise features, in units of `channels`
    encoder: Literal["standard", "residual"] = "standard"  # residual: with the image pyramid of NCSN++
    taps: tuple[int, ...] = (1, 1)  # resampling filter
    labels: int = 0  # classes; 0: unconditional
    augment_labels: int = 0  # width of the augmentation label vector
    guidance: bool = False  # whether the guidance scale is an input
    second_time: bool = False  # whether a second time is an input (flow maps)
    dropout_resolution: int = 0  # dropout only in blocks of at most this resolution; 0: in all
    double_norm: bool = False  # the embedding scales and shifts, both normalised (sCM); False: is added before the second norm

    def __post_init__(self) -> None:
        """Check every field; a wrong one is named with its range.

        Raises:
            InputError: A field is out of its range, or the size does not fit the levels.
        """
        check_whole(self, _LOWEST)
        check_tuples(self, ("channel_mult", "attention", "taps"))
        check_flags(self, ("guidance", "second_time", "double_norm"))
        for name in ("embedding", "encoder"):
            known = get_args(get_type_hints(UNetConfig)[name])
            if getattr(self, name) not in known:
                raise InputError(f"network {name} is {getattr(self, name)!r}, must be one of {', '.join(known)}")
        if not isinstance(self.fourier_scale, (int, float)) or not 0 < self.fourier_scale < math.inf:
            raise InputError(f"network fourier_scale is {self.fourier_scale!r}, must be a number above 0")
        if len(self.taps) % 2 or not self.taps:
            raise InputError(f"network taps is {self.taps}, must be an even number of taps, for example (1, 1) or (1, 3, 3, 1)")
        check_shape(self)

    def heads(self, channels: int) -> int:
        """Attention heads of a block with ``channels`` channels."""
        return channels // self.head_channels if self.head_channels else 1


def ddpmpp(size: int = 32, image_channels: int = 3, **changes: object) -> UNetConfig:
    """DDPM++ (EDM's "VP" network): positional embedding, plain encoder, box filter. 55,732,739 parameters at the defaults."""
    return UNetConfig(size=size, image_channels=image_channels, **changes)  # type: ignore[arg-type]


def ncsnpp(size: int = 32, image_channels: int = 3, **changes: object) -> UNetConfig:
    """NCSN++ (EDM's "VE" network): Fourier embedding, image pyramid, filter [1, 3, 3, 1]. 56,395,523 parameters by default."""
    values: dict[str, object] = {"embedding": "fourier", "noise_mult": 2, "encoder": "residual", "taps": (1, 3, 3, 1)} | changes
    return UNetConfig(size=size, image_channels=image_channels, **values)  # type: ignore[arg-type]


class UNet(nn.Module):
    """F(x, c_noise): the raw network under a preconditioning.

    Args:
        config: Its shape.
        seed: Of the initial weights; ``None`` leaves them at zero, for weights that are loaded next.
    """

    def __init__(self, config: UNetConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        width, emb, noise = config.channels, config.channels * config.embedding_mult, config.channels * config.noise_mult
        self.map_noise: nn.Module = (
            PositionalEmbedding(noise) if config.embedding == "positional" else FourierEmbedding(noise, config.fourier_scale)
        )
        self.map_label = Linear(config.labels, noise) if config.labels else None
        self.map_augment = Linear(config.augment_labels, noise, bias=False) if config.augment_labels else None
        self.map_guidance = GuidanceEmbedding(noise) if config.guidance else None
        self.map_second = GuidanceEmbedding(noise, 1.0) if config.second_time else None
        self.map_layer0 = Linear(noise, emb)
        self.map_layer1 = Linear(emb, emb)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips: list[int] = []
        out, aux = width, config.image_channels
        for level, mult in enumerate(config.channel_mult):
            res = config.size >> level
            name = f"{res}x{res}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv(config.image_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = Block(out, out, emb, "down", config.taps, double=config.double_norm)
                if config.encoder == "residual":
                    self.enc[f"{name}_aux_residual"] = Conv(aux, out, 3, "down", config.taps, fused=True)
                    aux = out
            skips.append(out)
            for index in range(config.blocks):
                cin, out = out, width * mult
                heads = config.heads(out) if res in config.attention else 0
                self.enc[f"{name}_block{index}"] = Block(cin, out, emb, heads=heads, double=config.double_norm)
                skips.append(out)
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            res = config.size >> level
            name = f"{res}x{res}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{name}_in0"] = Block(out, out, emb, heads=config.heads(out), double=config.double_norm)
                self.dec[f"{name}_in1"] = Block(out, out, emb, double=config.double_norm)
            else:
                self.dec[f"{name}_up"] = Block(out, out, emb, "up", config.taps, double=config.double_norm)
            for index in range(config.blocks + 1):
                cin, out = out + skips.pop(), width * mult
                heads = config.heads(out) if res in config.attention and index == config.blocks else 0
                self.dec[f"{name}_block{index}"] = Block(cin, out, emb, heads=heads, double=config.double_norm)
        name = f"{config.size}x{config.size}"
        self.dec[f"{name}_aux_norm"] = GroupNorm(out)
        self.dec[f"{name}_aux_conv"] = Conv(out, config.image_channels, 3, gain=1e-5)
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
        emb: Tensor = self.map_noise(c_noise)
        if self.map_label is not None and label is not None:
            # One-hot times sqrt(classes), as trained by EDM; a negative label means "no class" and adds nothing but the bias.
            onehot = F.one_hot(label.clamp(min=0), self.config.labels) * (label >= 0)[:, None]
            emb = emb + self.map_label(onehot.to(emb.dtype) * math.sqrt(self.config.labels))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment.to(emb.dtype))
        if self.map_guidance is not None and guidance is not None:
            emb = emb + self.map_guidance(guidance.to(emb.dtype))
        if self.map_second is not None and second is not None:
            emb = emb + self.map_second(second.to(emb.dtype))
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

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
            c_noise: Noise condition [B], float32 or float64; [1] where all samples share it and there are no labels.
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
        if self.map_label is not None and label is None:
            label = torch.full_like(c_noise, -1, dtype=torch.int64)
        emb = self.embed(c_noise, label, augment, guidance, second).to(x.dtype)
        remaining = iter(masks) if masks is not None else None
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            else:
                x = module(x, emb, next(remaining) if remaining else None) if isinstance(module, Block) else module(x)
                skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if isinstance(module, Block):
                x = module(x, emb, next(remaining) if remaining else None)
            elif "aux_norm" in name:
                x = silu(module(x))
            else:
                x = module(x)
        return x

    @property
    def output(self) -> str:
        """How the names of the output layer's parameters begin."""
        return f"dec.{self.config.size}x{self.config.size}_aux_conv."

    def mask_sizes(self) -> list[int]:
        """Elements per sample of each block's dropout mask, in the order of use; 0 for a block without dropout."""
        return mask_sizes((self.enc, self.dec), Block, self.config.dropout_resolution)
