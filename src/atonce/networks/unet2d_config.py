"""The configuration of diffusers' U-Net in our layers (:mod:`atonce.networks.unet2d`), and the terms of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from atonce.core.errors import InputError
from atonce.networks.checks import check_flags, check_tuples, check_whole
from atonce.networks.schedules import SCHEDULES, Schedule

DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_LOWEST = {
    "size": 1,
    "image_channels": 1,
    "blocks": 1,
    "head_channels": 0,
    "groups": 1,
    "middle_groups": 0,
    "labels": 0,
    "embedding": 0,
    "down_padding": 0,
    "train_steps": 1,
    "dropout_resolution": 0,
}


@dataclass(frozen=True)
class UNet2DConfig:
    """Shape of a U-Net of diffusers, and the terms in which it was trained."""

    size: int = 32  # height and width of the images
    image_channels: int = 3  # 1 grey, 3 RGB, or any number
    channels: tuple[int, ...] = (128, 256, 256)  # width of each level
    blocks: int = 2  # residual blocks per level (the decoder has one more)
    down: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")  # kind of each level of the encoder
    up: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")  # and of the decoder, lowest first
    middle: bool = True  # whether there are blocks between encoder and decoder
    middle_attention: bool = True  # whether they have self-attention
    middle_groups: int = 0  # groups of the normalisation before it; 0: not normalised
    middle_scale: float = 1.0  # what the sums in the middle are divided by
    head_channels: int = 8  # channels of an attention head; 0: one head
    groups: int = 32  # groups of all other normalisations
    eps: float = 1e-5  # of all normalisations
    scale_shift: bool = False  # the embedding scales and shifts after the second norm; False: is added before it
    resample_down: Literal["conv", "resnet"] = "conv"  # how levels with attention halve the resolution
    resample_up: Literal["conv", "resnet"] = "conv"  # and double it
    down_padding: int = 1  # of convolutions that halve the resolution; 0: padded on the right and below
    embedding: int = 0  # width of the embedding; 0: four times the first level's
    cosine_first: bool = True  # order of the time features
    frequency_shift: float = 0.0  # the lowest frequency is 10000^-((n - 1) / (n - shift)) for n frequencies
    centred: bool = False  # the network maps its input to 2 x - 1 first
    labels: int = 0  # classes; 0: unconditional
    clock: Literal["log", "steps"] = "log"  # its time: time_scale * c_noise, or the step of the schedule at this noise level
    time_scale: float = 1000.0  # 1000 for consistency models, 1 for EDM's schedulers
    schedule: Schedule = "linear"  # of the steps
    beta_start: float = 0.0001
    beta_end: float = 0.02
    train_steps: int = 1000
    predicts: Literal["F", "epsilon", "sample", "v"] = "F"  # epsilon and sample with sigma_data = 1; v is -F
    feature_precision: Literal["float32", "own"] = "float32"  # of the time features; float32 is diffusers' in any precision
    dropout_resolution: int = 0  # dropout only in blocks of at most this resolution; 0: in all
    augment_labels: int = 0  # this and what follows: inputs and forms of our other networks, which this one does not have
    guidance: bool = False
    second_time: bool = False
    double_norm: bool = False

    def __post_init__(self) -> None:
        """Check every field; a wrong one is named with its range.

        Raises:
            InputError: A field is out of its range, or does not fit another.
        """
        check_whole(self, _LOWEST)
        check_tuples(self, ("channels",))
        for name in ("augment_labels", "guidance", "second_time", "double_norm"):
            if getattr(self, name):
                raise InputError(f"network {name} is {getattr(self, name)!r}: a network of diffusers (unet2d) does not have it")
        check_flags(self, ("middle", "middle_attention", "scale_shift", "cosine_first", "centred"))
        hints = get_type_hints(UNet2DConfig)
        for name in ("resample_down", "resample_up", "clock", "predicts", "feature_precision", "schedule"):
            known = SCHEDULES if name == "schedule" else get_args(hints[name])
            if getattr(self, name) not in known:
                raise InputError(f"network {name} is {getattr(self, name)!r}, must be one of {', '.join(known)}")
        for name in ("middle_scale", "eps", "time_scale", "beta_start", "beta_end"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"network {name} is {value!r}, must be a number above 0")
        levels = len(self.channels)
        for name, names in (("down", DOWN), ("up", UP)):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple) or len(kinds) != levels or not all(kind in names for kind in kinds):
                raise InputError(f"network {name} is {kinds!r}, must name {levels} of {', '.join(names)}")
        if not levels or self.size % (1 << (levels - 1)) or self.size >> (levels - 1) < 1:
            raise InputError(f"images of {self.size}x{self.size} do not fit {levels} levels")
        half = self.channels[0] // 2
        if self.channels[0] % 2 or not isinstance(self.frequency_shift, (int, float)) or not self.frequency_shift < half:
            raise InputError(f"network channels is {self.channels}: the first must be even, with room for the time features")
        if self.down_padding > 1:
            raise InputError(f"network down_padding is {self.down_padding}, must be 0 or 1")
        if self.beta_end >= 1 or self.beta_start >= 1:
            raise InputError("network beta_start and beta_end must be below 1")
        self._check_widths()

    def _check_widths(self) -> None:
        for width in self.channels:
            if width % self.groups:
                raise InputError(f"network channels is {self.channels}, must be multiples of the {self.groups} groups")
        attends = [w for w, kind in zip(self.channels, self.down, strict=True) if "Attn" in kind]
        attends += [w for w, kind in zip(self.channels[::-1], self.up, strict=True) if "Attn" in kind]
        attends += [self.channels[-1]] if self.middle and self.middle_attention else []
        if self.head_channels and any(width % self.head_channels for width in attends):
            raise InputError(
                f"network head_channels is {self.head_channels}, must divide the widths with attention ({attends})"
            )
        if self.middle_groups and self.channels[-1] % self.middle_groups:
            raise InputError(f"network middle_groups is {self.middle_groups}, must divide {self.channels[-1]}")

    def heads(self, channels: int) -> int:
        """Attention heads of a block with ``channels`` channels."""
        return channels // self.head_channels if self.head_channels else 1
