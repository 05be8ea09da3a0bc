"""The U-Net of DDPM in the form of diffusers' UNet2DModel: its names, its options, its arithmetic, in our layers.

Sources: Ho et al. 2020 (DDPM), Dhariwal & Nichol 2021 (steps up and down inside residual blocks, scale and shift). Its weights
may have been trained in other terms than F(x, c_noise) of a preconditioning; the configuration says in which, and the network
converts: the noise level to its own time (:attr:`UNet2DConfig.clock`), its prediction to F (:attr:`UNet2DConfig.predicts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.networks.checks import check_inputs
from atonce.networks.forward_mode import affine, attention, silu
from atonce.networks.layers import Conv, GroupNorm, Linear, drop
from atonce.networks.schedules import step_of
from atonce.networks.unet2d_config import UNet2DConfig as UNet2DConfig


def _norm(channels: int, groups: int, eps: float) -> GroupNorm:
    norm = GroupNorm(channels, eps)
    norm.groups = groups
    return norm


class Residual(nn.Module):
    """GN, SiLU, (resample) conv, embedding, GN, SiLU, dropout, conv; plus what came in."""

    def __init__(self, config: UNet2DConfig, cin: int, cout: int, resample: str = "", divide: float = 1.0) -> None:
        super().__init__()
        embedding = config.embedding or 4 * config.channels[0]
        self.out_channels, self.resample, self.divide, self.scale_shift = cout, resample, divide, config.scale_shift
        self.norm1 = _norm(cin, config.groups, config.eps)
        self.conv1 = Conv(cin, cout, 3)
        self.time_emb_proj = Linear(embedding, 2 * cout if config.scale_shift else cout)
        self.norm2 = _norm(cout, config.groups, config.eps)
        self.conv2 = Conv(cout, cout, 3)
        self.conv_shortcut = Conv(cin, cout, 1) if cin != cout else None

    def _resample(self, x: Tensor) -> Tensor:
        if not self.resample:
            return x
        return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor, emb: Tensor, mask: Tensor | None) -> Tensor:
        y = self.conv1(self._resample(silu(self.norm1(x))))
        condition = self.time_emb_proj(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + condition)
        x = self._resample(x)
        y = self.conv2(drop(silu(y), mask)) + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return y / self.divide if self.divide != 1 else y


class Attention(nn.Module):
    """Self-attention over all positions, plus what came in."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float, divide: float = 1.0) -> None:
        super().__init__()
        self.heads, self.divide = heads, divide
        self.group_norm = _norm(channels, groups, eps) if groups else None
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = (x if self.group_norm is None else self.group_norm(x)).flatten(2).transpose(1, 2)
        qkv = torch.cat([self.to_q(y), self.to_k(y), self.to_v(y)], dim=2)

        def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = qkv.reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
            return q, k, v

        y = self.to_out[0](attention(qkv, split).transpose(1, 2).reshape(b, h * w, c))
        y = x + y.transpose(1, 2).reshape(b, c, h, w)
        return y / self.divide if self.divide != 1 else y


class Halve(nn.Module):
    """A convolution with stride 2; without padding it is padded by one on the right and below."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.padding else F.pad(x, (0, 1, 0, 1))
        weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
        return affine(lambda v, b: F.conv2d(v, weight, b, stride=2, padding=self.padding), x, bias)


class Double(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one level, attention after each where the level has it, and a step down or up at the end."""

    def __init__(
        self, config: UNet2DConfig, kind: str, widths: Sequence[tuple[int, int]], step: Literal["down", "up", ""]
    ) -> None:
        super().__init__()
        out, attend = widths[-1][1], "Attn" in kind
        self.resnets = nn.ModuleList(Residual(config, cin, cout) for cin, cout in widths)
        self.attentions = nn.ModuleList(
            Attention(out, config.heads(out), config.groups, config.eps) for _ in (widths if attend else ())
        )
        how = {"down": config.resample_down, "up": config.resample_up, "": ""}[step]
        inside = "Resnet" in kind or (attend and how == "resnet")
        steps: list[nn.Module] = []
        if step:
            steps = [
                Residual(config, out, out, step)
                if inside
                else Halve(out, config.down_padding)
                if step == "down"
                else Double(out)
            ]
        self.downsamplers = nn.ModuleList(steps if step == "down" else ())
        self.upsamplers = nn.ModuleList(steps if step == "up" else ())


class UNet2D(nn.Module):
    """F(x, c_noise): the raw network under a preconditioning.

    Args:
        config: Its shape.
        seed: Of the initial weights; ``None`` leaves them at zero, for weights that are loaded next.
    """

    def __init__(self, config: UNet2DConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.channels, config.embedding or 4 * config.channels[0]
        self.conv_in = Conv(config.image_channels, width[0], 3)
        self.time_embedding = nn.ModuleDict({"linear_1": Linear(width[0], embedding), "linear_2": Linear(embedding, embedding)})
        self.class_embedding = (
            Linear(embedding, config.labels, bias=False) if config.labels else None
        )  # a table, used row by row
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        out, last = width[0], len(width) - 1
        skips = [out]
        for level, kind in enumerate(config.down):
            widths = [(out if i == 0 else width[level], width[level]) for i in range(config.blocks)]
            out = width[level]
            self.down_blocks.append(Level(config, kind, widths, "down" if level < last else ""))
            skips += [out] * (config.blocks + (level < last))
        self.mid_block = Middle(config) if config.middle else None
        for index, kind in enumerate(config.up):
            target, widths = width[last - index], []
            for _ in range(config.blocks + 1):
                widths.append((out + skips.pop(), target))
                out = target
            self.up_blocks.append(Level(config, kind, widths, "up" if index < last else ""))
        self.conv_norm_out = _norm(out, config.groups, config.eps)
        self.conv_out = Conv(out, config.image_channels, 3)
        if seed is not None:
            initialise(self, seed)

    def embed(self, c_noise: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Embedding [B, E] of the noise level and the class."""
        config, half = self.config, self.config.channels[0] // 2
        if config.clock == "steps":
            time = step_of(4 * c_noise.double(), config.schedule, config.beta_start, config.beta_end, config.train_steps)
            time = time.to(c_noise.dtype)
        else:
            time = c_noise * config.time_scale
        exact = torch.float32 if config.feature_precision == "float32" else c_noise.dtype
        exponent = -math.log(10_000) * torch.arange(half, dtype=exact, device=c_noise.device) / (half - config.frequency_shift)
        angle = time.to(exact)[:, None] * exponent.exp()
        parts = (angle.cos(), angle.sin()) if config.cosine_first else (angle.sin(), angle.cos())
        work = c_noise.dtype if dtype in (torch.float16, torch.bfloat16) else dtype
        features = torch.cat(parts, dim=1).to(work)
        emb: Tensor = self.time_embedding["linear_2"](silu(self.time_embedding["linear_1"](features)))
        if self.class_embedding is not None and label is not None:
            rows = F.embedding(label.clamp(min=0), self.class_embedding.weight.to(work))
            emb = emb + rows * (label >= 0)[:, None]  # a negative label means "no class" and adds nothing
        return silu(emb).to(dtype)

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
            c_noise: Noise condition ln(sigma) / 4, [B], or [1] where all samples share it.
            label: Class labels int64 [B], negative for "no class"; ``None`` is the same for all.
            augment: Not used: this network has no augmentation labels.
            guidance: Refused: this network has no such input.
            masks: Scaled dropout masks, one for each block, sized by :meth:`mask_sizes`; ``None`` or empty: no dropout.
            second: Refused: this network has no such input.

        Returns:
            F of the input's shape and dtype.

        Raises:
            InputError: A guidance scale or a second time is given.
        """
        check_inputs(self.config, guidance=guidance, second_time=second)
        emb = self.embed(c_noise, label, x.dtype)
        queue = iter(masks) if masks is not None else None
        y = self.conv_in(2 * x - 1 if self.config.centred else x)
        skips = [y]
        for level in self.down_blocks:
            y = _run(level, y, emb, queue, skips=None, kept=skips)
        if self.mid_block is not None:
            y = self.mid_block(y, emb, queue)
        for level in self.up_blocks:
            y = _run(level, y, emb, queue, skips=skips, kept=None)
        return self._as_F(self.conv_out(silu(self.conv_norm_out(y))), x, c_noise)

    def _as_F(self, raw: Tensor, u: Tensor, c_noise: Tensor) -> Tensor:
        """F of the ``edm`` preconditioning from what the network predicts.

        With sigma_data = 1 the input u = c_in x is the state of the variance-preserving process, so that
        D = x - sigma epsilon gives F = sigma u - sqrt(1 + sigma^2) epsilon, D itself F = (sqrt(1 + sigma^2) D - u) / sigma, and
        v = -F, since D = c_skip x - c_out v.
        """
        predicts = self.config.predicts
        if predicts in ("F", "v"):
            return -raw if predicts == "v" else raw
        sigma = (4 * c_noise).exp()[:, None, None, None]
        work, grown = u.to(sigma.dtype), (1 + sigma**2).sqrt()
        value = sigma * work - grown * raw if predicts == "epsilon" else (grown * raw - work) / sigma
        return value.to(u.dtype)

    @property
    def output(self) -> str:
        """How the names of the output layer's parameters begin."""
        return "conv_out."

    def mask_sizes(self) -> list[int]:
        """Elements per sample of each block's dropout mask, in the order of use; 0 for a block without dropout."""
        levels, most = len(self.config.channels), self.config.dropout_resolution
        order = [*range(levels), *([levels - 1] if self.mid_block is not None else []), *reversed(range(levels))]
        modules = [*self.down_blocks, *([] if self.mid_block is None else [self.mid_block]), *self.up_blocks]
        sizes: list[int] = []
        for level, module in zip(order, modules, strict=True):
            for part in (part for part in module.modules() if isinstance(part, Residual)):
                resolution = self.config.size >> level
                resolution = {"down": resolution // 2, "up": resolution * 2, "": resolution}[part.resample]
                sizes.append(0 if 0 < most < resolution else part.out_channels * resolution**2)
        return sizes


class Middle(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        width, divide = config.channels[-1], config.middle_scale
        self.resnets = nn.ModuleList(Residual(config, width, width, divide=divide) for _ in range(2))
        self.attentions = nn.ModuleList(
            Attention(width, config.heads(width), config.middle_groups, config.eps, divide)
            for _ in range(1 if config.middle_attention else 0)
        )

    def forward(self, x: Tensor, emb: Tensor, queue: Iterator[Tensor | None] | None) -> Tensor:
        first, second = self.resnets
        x = first(x, emb, next(queue) if queue else None)
        for attend in self.attentions:
            x = attend(x)
        return second(x, emb, next(queue) if queue else None)


def _run(
    level: nn.Module,
    x: Tensor,
    emb: Tensor,
    queue: Iterator[Tensor | None] | None,
    skips: list[Tensor] | None,
    kept: list[Tensor] | None,
) -> Tensor:
    assert isinstance(level, Level)
    for index, block in enumerate(level.resnets):
        if skips is not None:
            x = torch.cat([x, skips.pop()], dim=1)
        x = block(x, emb, next(queue) if queue else None)
        if level.attentions:
            x = level.attentions[index](x)
        if kept is not None:
            kept.append(x)
    for step in (*level.downsamplers, *level.upsamplers):
        x = step(x, emb, next(queue) if queue else None) if isinstance(step, Residual) else step(x)
        if kept is not None:
            kept.append(x)
    return x


def initialise(network: UNet2D, seed: int) -> None:
    """Draw all weights from one seed: uniform within 1/sqrt(fan-in), standard normal classes; no global random state.

    Args:
        network: Changed in place.
        seed: Any integer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if not isinstance(module, (Linear, Conv)):
                continue
            if module is network.class_embedding:
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                continue
            bound = module.weight[0].numel() ** -0.5
            for value in (module.weight, module.bias):
                if value is not None:
                    value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * bound)
