"""Perceptual distances: images are compared by the features of a network trained on photographs.

``lpips`` is the distance of the papers (VGG16 and learnt weights); ``effnet-lite0`` is of the same form on EfficientNet-Lite0,
whose weights a pip package carries, so that it runs where nothing can be downloaded. It is another distance under another name.
Both take (a, b) [B, C, H, W] in [-1, 1], C of 1 or 3, and give [B]. Making one loads all it needs or says what is missing.

The arithmetic is written here: the libraries that have LPIPS all import torchvision, which does not import beside every build
of PyTorch, and most have no average pooling. What is learnt comes from torchmetrics and torchvision (see ``lpips_weights``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atonce.core.errors import InputError
from atonce.core.files import sha256_json
from atonce.networks import efficientnet
from atonce.objectives.lpips_weights import WIDTHS, learnt

NAMES = ("lpips", efficientnet.NAME)
EFFNET_STAGES = (0, 1, 2, 4, 6)
"""The last stage of each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32."""

Maps = Callable[[Tensor], Sequence[Tensor]]


class FeatureDistance:
    """Sum over feature maps of the spatial mean of sum_c w_c (a_c / |a| - b_c / |b|)^2. Zhang et al. 2018, equation 1.

    Attributes:
        name: What the distance is called.
        digest: Hex SHA-256 of its extractor's definition and weights, for records.
        network: The extractor, frozen; it follows its input to another device.

    Args:
        name: What the distance is called.
        digest: Of the extractor.
        network: The extractor.
        maps: RGB in [0, 1] to feature maps [B, c, h, w].
        fit: Resizes RGB to what the network takes.
        weights: Weight of each channel [c] of each map.
    """

    def __init__(
        self, name: str, digest: str, network: nn.Module, maps: Maps, fit: Callable[[Tensor], Tensor], weights: Sequence[Tensor]
    ) -> None:
        self.name, self.digest = name, digest
        self.network = efficientnet.channels_last(network.eval().requires_grad_(False))
        self._maps, self._fit, self._weights = maps, fit, list(weights)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair, in the precision of the network (float32).

        Args:
            a: Images [B, C, H, W] in [-1, 1].
            b: Images of the same shape.

        Returns:
            [B].

        Raises:
            InputError: The shapes differ or the images are neither grey nor RGB.
        """
        if a.shape != b.shape:
            raise InputError(f"distance {self.name} compares images of one shape, got {list(a.shape)} and {list(b.shape)}")
        home = next(self.network.parameters())
        if home.device != a.device:
            self.network.to(a.device)
            self._weights = [w.to(a.device) for w in self._weights]
        total = torch.zeros(a.shape[0], device=a.device, dtype=home.dtype)
        for of_a, of_b, w in zip(self._features(a, home.dtype), self._features(b, home.dtype), self._weights, strict=True):
            squared = (_unit(of_a) - _unit(of_b)).square()
            total = total + (squared * w.to(squared.dtype)[:, None, None]).sum(1).mean((1, 2))
        return total

    def _features(self, x: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
        rgb = efficientnet.as_rgb((x.to(dtype) + 1) / 2)
        return self._maps(self._fit(rgb).contiguous(memory_format=torch.channels_last))


def _unit(x: Tensor) -> Tensor:
    """Vectors over the channels at unit length; the small number keeps the gradient finite where all channels are zero."""
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing (corners not aligned, no antialiasing) as two matrix products.

    ``F.interpolate`` gives the same, but its gradient on CUDA is summed in no fixed order.

    Args:
        x: Images [B, C, H, W].
        height: Rows wanted.
        width: Columns wanted.

    Returns:
        [B, C, height, width].
    """
    rows, columns = (
        F.interpolate(torch.eye(n, device=x.device, dtype=x.dtype)[None], size=side, mode="linear", align_corners=False)[0]
        for n, side in ((x.shape[2], height), (x.shape[3], width))
    )
    return rows.T @ (x @ columns)


class VGG16(nn.Module):
    """The convolutions of VGG16 with average pooling, of given (weight, bias); the input is RGB in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, convs: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weight for weight, _ in convs)
        self.biases = nn.ParameterList(bias for _, bias in convs)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, x: Tensor) -> list[Tensor]:
        """The feature maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of [B, 3, H, W]."""
        x, out, convs = (x - self.mean) / self.std, [], zip(self.weights, self.biases)
        for number, group in enumerate(WIDTHS):
            x = F.avg_pool2d(x, 2) if number else x
            for _ in group:
                weight, bias = next(convs)
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            out.append(x)
        return out


def lpips(weights: str | Path | None = None, side: int = 224, below: int = 256) -> FeatureDistance:
    """LPIPS as consistency models were trained with it: VGG16 with average pooling, small images resized.

    Zhang et al. 2018, equation 1; Song et al. 2023, section 6.1: images below 256 are resized bilinearly to 224, larger ones
    are fed as they are.

    Args:
        weights: Local file with all that is learnt, in the forms of :func:`~atonce.objectives.lpips_weights.learnt`; None: the
            file that ``ATONCE_LPIPS_WEIGHTS`` names, else the usual download.
        side: What small images are resized to.
        below: Images with a side below this count as small.

    Returns:
        The distance.

    Raises:
        MissingExtraError: The weights of the channels are nowhere to be had.
        InputError: The file cannot be used or the download failed.
    """
    if side < 16 or below < 16:
        raise InputError(f"distance lpips needs images of at least 16 pixels, got side={side} and below={below}")
    convs, lins = learnt(weights)
    network = VGG16(convs)
    content = hashlib.sha256()
    for tensor in (*network.parameters(), *lins):
        content.update(tensor.detach().contiguous().numpy().tobytes())
    digest = sha256_json({"network": "VGG16, average pooling, LPIPS weights of channels", "weights": content.hexdigest()})

    def fit(x: Tensor) -> Tensor:
        return resize(x, side, side) if min(x.shape[2:]) < below else x

    return FeatureDistance("lpips", digest, network, network, fit, lins)


def efficientnet_lite0(side: int = 64) -> FeatureDistance:
    """A distance of LPIPS's form on EfficientNet-Lite0: five feature maps, all channels and maps of equal weight.

    It is not LPIPS: the network differs, nothing was fitted to human judgements. Images with a side below ``side`` are resized
    bilinearly to it, larger ones are fed as they are.

    The cost grows with ``side`` squared, and what is lost below 224 is little: over eleven changes (noise, blur, shift,
    contrast, blends) of CIFAR-10, Fashion-MNIST and digits, the distances at 64 rank the changes of an image as those at 224 do
    (correlation of ranks 0.96 to 0.98; at 32: 0.91 to 0.94; at 128: 0.98 to 0.99; mean squared error: 0.66 to 0.90). A pair
    with its gradient took 8 ms at 32, 9 at 64, 27 at 128 and 95 at 224, on one CPU core. Hence 64.

    Args:
        side: What small images are resized to.

    Returns:
        The distance.

    Raises:
        MissingExtraError: The package with the weights is not installed.
        InputError: ``side`` is below 32, the deepest stage's factor.
    """
    if side < 32:
        raise InputError(f"distance {efficientnet.NAME} needs side of at least 32 pixels, got {side}")
    network = efficientnet.load()

    def maps(x: Tensor) -> list[Tensor]:
        found = network.maps(x)
        return [found[i] for i in EFFNET_STAGES]

    def fit(x: Tensor) -> Tensor:
        return resize(x, side, side) if min(x.shape[2:]) < side else x

    weights = [torch.ones(efficientnet.STAGES[i][3]) for i in EFFNET_STAGES]
    return FeatureDistance(efficientnet.NAME, efficientnet.DIGEST, network, maps, fit, weights)


def open_distance(name: str, *, channels: int | None = None, weights: str | Path | None = None) -> tuple[FeatureDistance, str]:
    """The perceptual distance of a name and the digest of the extractor that training then sees.

    Call it before training starts: whatever is missing is said here.

    Args:
        name: ``"lpips"`` or ``"effnet-lite0"``.
        channels: Channels of the images it will get, to be checked now; None: not known yet.
        weights: Local file for ``lpips``.

    Returns:
        The distance and its digest.

    Raises:
        InputError: The name is unknown, the images are neither grey nor RGB, or weights cannot be had or used.
        MissingExtraError: A package is not installed.
    """
    if name not in NAMES:
        raise InputError(f"perceptual distance {name!r} is unknown: choose one of {', '.join(NAMES)}")
    if channels not in (None, 1, 3):
        raise InputError(f"distance {name} compares grey or RGB images, the data have {channels} channels: use pseudo-huber")
    if name == "lpips":
        found = lpips(weights)
    elif weights is None:
        found = efficientnet_lite0()
    else:
        raise InputError(f"distance {name} has its weights in a pip package: leave out weights={str(weights)!r}")
    return found, found.digest
