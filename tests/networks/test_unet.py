"""The U-Net family: published sizes, published parameter layouts, and the same function computed a second way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atonce.core.errors import InputError
from atonce.core.streams import dropout_masks
from atonce.networks.unet import UNet, UNetConfig

DDPMPP = UNetConfig(
    size=8,
    image_channels=2,
    channels=8,
    channel_mult=(1, 2, 2),
    blocks=2,
    attention=(4,),
    labels=3,
    augment_labels=4,
)
NCSNPP = dataclasses.replace(DDPMPP, embedding="fourier", noise_mult=2, encoder="residual", taps=(1, 3, 3, 1))
SMALLEST = UNetConfig(size=4, image_channels=1, channels=4, channel_mult=(1,), blocks=1, attention=())


def random_weights(network: UNet, seed: int = 0) -> UNet:
    """Weights of ordinary size everywhere; as initialised, the last layers are so small that they would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def inputs(config: UNetConfig, n: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {
        "x": torch.randn(n, config.image_channels, config.size, config.size, generator=g, dtype=torch.float64).to(dtype),
        "c_noise": torch.linspace(-1.5, 1.0, n, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32)),
    }
    if config.labels:
        values["label"] = torch.tensor([0, -1, config.labels - 1])[torch.arange(n) % 3]
    if config.augment_labels:
        values["augment"] = torch.randn(n, config.augment_labels, generator=g, dtype=torch.float64).to(dtype)
    return values


# ---- names and first weights


def test_state_dict_names_are_stable() -> None:
    block = {f"{part}.{kind}" for part in ("norm0", "conv0", "affine", "norm1", "conv1") for kind in ("weight", "bias")}
    attention = {f"{part}.{kind}" for part in ("norm2", "qkv", "proj") for kind in ("weight", "bias")}
    skip = {"skip.weight", "skip.bias"}
    expected = {f"map_layer{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    expected |= {f"enc.4x4_conv.{kind}" for kind in ("weight", "bias")}
    expected |= {f"enc.4x4_block0.{name}" for name in block}
    expected |= {f"dec.4x4_in0.{name}" for name in block | attention} | {f"dec.4x4_in1.{name}" for name in block}
    expected |= {f"dec.4x4_block{i}.{name}" for i in (0, 1) for name in block | skip}
    expected |= {f"dec.4x4_aux_{part}.{kind}" for part in ("norm", "conv") for kind in ("weight", "bias")}
    assert set(UNet(SMALLEST).state_dict()) == expected


def test_initial_weights_are_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    a, b, c = (UNet(NCSNPP, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["map_layer0.weight"], c["map_layer0.weight"])
    assert not torch.equal(a["map_noise.freqs"], c["map_noise.freqs"])


def test_initial_scales() -> None:
    """Xavier-uniform; 1e-5 where a residual ends, sqrt(0.2) on q, k, v, biases 0; so F is nearly 0 at the start."""
    config = dataclasses.replace(NCSNPP, channels=32, labels=0, augment_labels=0, fourier_scale=16.0)
    state = UNet(config).state_dict()

    def bound(name: str) -> float:
        w = state[name]
        k = math.prod(w.shape[2:])
        return math.sqrt(6 / ((w.shape[0] + w.shape[1]) * k))

    for name, value in state.items():
        if name.endswith("bias") and "norm" not in name:
            assert not value.any(), name
        elif name.endswith("weight") and "norm" not in name:
            last = name.split(".")[-2]
            gain = 1e-5 if last in ("conv1", "proj") or "aux_conv" in name else math.sqrt(0.2) if last == "qkv" else 1.0
            limit = gain * bound(name)
            assert 0.9 * limit < float(value.abs().max()) <= limit, name
            assert abs(float(value.std()) - limit / math.sqrt(3)) < 0.1 * limit, name
    assert 8 < float(state["map_noise.freqs"].std()) < 24
    gentle = UNet(dataclasses.replace(config, fourier_scale=0.02)).state_dict()["map_noise.freqs"]
    torch.testing.assert_close(gentle, state["map_noise.freqs"] * (0.02 / 16))
    values = inputs(config, dtype=torch.float32)
    assert float(UNet(config)(**values).detach().abs().max()) < 1e-3


# ---- the function, once more


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    b, c, h, w = x.shape
    groups = min(32, c // 4)
    grouped = x.reshape(b, groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    x = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(b, c, h, w)
    return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def _conv(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight = state[f"{name}.weight"]
    k = weight.shape[-1]
    columns = F.unfold(x, k, padding=k // 2)
    out = weight.flatten(1) @ columns + state[f"{name}.bias"][:, None]
    return out.reshape(x.shape[0], -1, *x.shape[2:])


def _rows(x: Tensor, taps: tuple[int, ...], mode: str, pad: int) -> Tensor:
    """Filter and resample the rows: zero padding and every second value; or zeros between and twice the gain."""
    f = [tap / sum(taps) for tap in taps]
    height = x.shape[2]
    if mode == "down":
        zeros = x.new_zeros(*x.shape[:2], pad, x.shape[3])
        padded = torch.cat([zeros, x, zeros], 2)
        out = (padded.shape[2] - len(taps)) // 2 + 1
        return sum((f[j] * padded[:, :, j : j + 2 * out : 2] for j in range(len(taps))), torch.zeros(()))
    full = x.new_zeros(*x.shape[:2], 2 * height + len(taps) - 2, x.shape[3])
    for j in range(len(taps)):
        full[:, :, j : j + 2 * height : 2] += 2 * f[j] * x
    return full[:, :, pad : pad + 2 * height]


def _resample(x: Tensor, taps: tuple[int, ...], mode: str | None, pad: int | None = None) -> Tensor:
    if mode is None:
        return x
    pad = (len(taps) - 1) // 2 if pad is None else pad
    return _rows(_rows(x, taps, mode, pad).mT, taps, mode, pad).mT


def _pyramid(x: Tensor, state: dict[str, Tensor], name: str, taps: tuple[int, ...]) -> Tensor:
    """Convolution and filter as one kernel of stride 2: zeros are outside the image, not outside the convolution's result."""
    weight, pad = state[f"{name}.weight"], (len(taps) - 1) // 2
    b, c, h, w = x.shape
    margin = x.new_zeros(b, c, h + 2 * pad, w + 2 * pad)
    margin[:, :, pad : pad + h, pad : pad + w] = x
    wide = _conv(margin, {"a.weight": weight, "a.bias": weight.new_zeros(weight.shape[0])}, "a")
    return _resample(wide, taps, "down", pad=0) + state[f"{name}.bias"][:, None, None]


def _block(x: Tensor, emb: Tensor, mask: Tensor | None, state: dict[str, Tensor], name: str, config: UNetConfig) -> Tensor:
    mode = "down" if "_down" in name else "up" if "_up" in name else None
    y = _conv(_resample(F.silu(_norm(x, state, f"{name}.norm0")), config.taps, mode), state, f"{name}.conv0")
    y = y + (emb @ state[f"{name}.affine.weight"].T + state[f"{name}.affine.bias"])[:, :, None, None]
    y = F.silu(_norm(y, state, f"{name}.norm1"))
    if mask is not None:
        y = y * mask.reshape(y.shape)
    y = _conv(y, state, f"{name}.conv1")
    if f"{name}.skip.weight" in state:
        x = _conv(_resample(x, config.taps, mode), state, f"{name}.skip")
    x = (x + y) / math.sqrt(2)
    if f"{name}.qkv.weight" not in state:
        return x
    b, c, h, w = x.shape
    heads = c // config.head_channels if config.head_channels else 1
    qkv = _conv(_norm(x, state, f"{name}.norm2"), state, f"{name}.qkv").reshape(b * heads, c // heads * 3, h * w)
    q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]
    scores = (q.mT @ k / math.sqrt(c // heads)).softmax(dim=2)
    return (x + _conv((v @ scores.mT).reshape(b, c, h, w), state, f"{name}.proj")) / math.sqrt(2)


def reference(
    config: UNetConfig,
    state: dict[str, Tensor],
    x: Tensor,
    c_noise: Tensor,
    label: Tensor | None = None,
    augment: Tensor | None = None,
    masks: list[Tensor] | None = None,
) -> Tensor:
    """DDPM++ and NCSN++ as their papers describe them, from a state dict, in plain operations."""
    half = config.channels * config.noise_mult // 2
    if config.embedding == "positional":
        angle = c_noise[:, None] * torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)], dtype=x.dtype)
    else:
        angle = 2 * math.pi * c_noise[:, None] * state["map_noise.freqs"]
    emb = torch.cat([angle.sin(), angle.cos()], 1)
    if config.labels:
        onehot = torch.zeros(len(x), config.labels, dtype=x.dtype)
        for i, klass in enumerate([-1] * len(x) if label is None else label.tolist()):
            if klass >= 0:
                onehot[i, klass] = math.sqrt(config.labels)
        emb = emb + onehot @ state["map_label.weight"].T + state["map_label.bias"]
    if config.augment_labels and augment is not None:
        emb = emb + augment @ state["map_augment.weight"].T
    for i in (0, 1):
        emb = F.silu(emb @ state[f"map_layer{i}.weight"].T + state[f"map_layer{i}.bias"])

    queue = list(masks) if masks is not None else None

    def block(x: Tensor, name: str) -> Tensor:
        return _block(x, emb, queue.pop(0) if queue is not None else None, state, name, config)

    sizes = [config.size >> level for level in range(len(config.channel_mult))]
    skips, image = [], x
    for size in sizes:
        if size == config.size:
            x = _conv(x, state, f"enc.{size}x{size}_conv")
        else:
            x = block(x, f"enc.{size}x{size}_down")
            if config.encoder == "residual":
                image = x = (x + _pyramid(image, state, f"enc.{size}x{size}_aux_residual", config.taps)) / math.sqrt(2)
        skips.append(x)
        for i in range(config.blocks):
            x = block(x, f"enc.{size}x{size}_block{i}")
            skips.append(x)
    for size in reversed(sizes):
        for name in ("in0", "in1") if size == sizes[-1] else ("up",):
            x = block(x, f"dec.{size}x{size}_{name}")
        for i in range(config.blocks + 1):
            x = block(torch.cat([x, skips.pop()], 1), f"dec.{size}x{size}_block{i}")
    assert not skips
    last = f"dec.{config.size}x{config.size}_aux"
    return _conv(F.silu(_norm(x, state, f"{last}_norm")), state, f"{last}_conv")


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        DDPMPP,
        NCSNPP,
        dataclasses.replace(DDPMPP, attention=(8, 2), head_channels=4, labels=0, augment_labels=0),
        dataclasses.replace(NCSNPP, size=16, channel_mult=(2, 1), attention=(16,), blocks=1),
        dataclasses.replace(DDPMPP, taps=(1, 3, 3, 1), encoder="residual"),
        dataclasses.replace(NCSNPP, taps=(1, 1)),
        SMALLEST,
    ],
    ids=["ddpm++", "ncsn++", "heads", "shallow", "mixed", "box-pyramid", "smallest"],
)
def test_forward_equals_the_reference(config: UNetConfig, dropout: bool) -> None:
    network = random_weights(UNet(config)).double()
    values = inputs(config)
    if dropout:
        values["masks"] = [m.double() for m in dropout_masks(3, torch.arange(3), network.mask_sizes(), 0.3)]
    ours = network(**values)
    theirs = reference(config, network.state_dict(), **values)
    assert ours.shape == values["x"].shape
    assert float(theirs.std()) > 0.1  # nothing is hidden behind small weights
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_each_part_takes_part() -> None:
    """The comparison above would also pass if both sides ignored an input."""
    network = random_weights(UNet(NCSNPP)).double()
    values = inputs(NCSNPP)
    base = network(**values)
    masks = [m.double() for m in dropout_masks(3, torch.arange(3), network.mask_sizes(), 0.3)]
    for changed in (
        {"c_noise": values["c_noise"] + 0.1},
        {"label": torch.tensor([1, 1, 1])},
        {"augment": values["augment"] + 0.1},
        {"augment": None},
        {"masks": masks},
        {"x": values["x"] + 0.1},
    ):
        other = network(**{**values, **changed})
        assert ((other - base).flatten(1).norm(dim=1) > 1e-3).all(), changed


# ---- guidance as an input

GUIDED = dataclasses.replace(DDPMPP, guidance=True)
SCALES = torch.tensor([1.0, 1.5, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("config", [DDPMPP, NCSNPP], ids=["ddpm++", "ncsn++"])
def test_a_guidance_input_changes_nothing_at_the_start(config: UNetConfig) -> None:
    """A student takes over its teacher's weights and is its teacher at every scale."""
    guided = dataclasses.replace(config, guidance=True)
    teacher, student = random_weights(UNet(config)).double(), UNet(guided).double()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert (missing, unexpected) == (["map_guidance.weight"], [])
    values = inputs(config)
    for scales in (None, SCALES, SCALES[:1]):
        assert torch.equal(student(**values, guidance=scales), teacher(**values))
    a, b = UNet(config, 3).state_dict(), UNet(guided, 3).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)  # nor does it change the other weights' draws
    assert not b["map_guidance.weight"].any()


def test_the_embedding_of_the_guidance_scale() -> None:
    """W [sin(f 1000 w), cos(f 1000 w)] is added to the features of the noise, f from 1 to 1/10000."""
    network = random_weights(UNet(GUIDED)).double().requires_grad_(False)
    values = inputs(DDPMPP)
    f = torch.tensor([1.0, 1e-4 ** (1 / 3), 1e-4 ** (2 / 3), 1e-4], dtype=torch.float64)
    angle = 1000 * SCALES[:, None] * f
    added = torch.cat([angle.sin(), angle.cos()], 1) @ network.map_guidance.weight.T
    plain = random_weights(UNet(DDPMPP)).double().requires_grad_(False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "map_guidance.weight"})
    plain.map_noise.register_forward_hook(lambda _, args, out: out + added)
    expected = plain(**values)
    torch.testing.assert_close(network(**values, guidance=SCALES), expected, rtol=1e-9, atol=1e-9)
    assert ((network(**values) - expected).flatten(1).norm(dim=1) > 1e-3).all()


def test_the_guidance_input_learns() -> None:
    network = random_weights(UNet(GUIDED))
    with torch.no_grad():
        network.map_guidance.weight.zero_()
    network(**inputs(DDPMPP, dtype=torch.float32), guidance=SCALES.float()).square().sum().backward()
    assert bool(network.map_guidance.weight.grad.any())


def test_a_guidance_scale_is_not_ignored() -> None:
    with pytest.raises(InputError, match="no guidance input"):
        UNet(DDPMPP)(**inputs(DDPMPP, dtype=torch.float32), guidance=torch.ones(1))


# ---- how it is called


def test_masks_of_ones_change_nothing() -> None:
    network = random_weights(UNet(DDPMPP))
    values = inputs(DDPMPP, dtype=torch.float32)
    ones = [torch.ones(3, size) for size in network.mask_sizes()]
    assert torch.equal(network(**values), network(**values, masks=ones))


def test_mask_sizes_are_those_of_the_activations() -> None:
    network = UNet(NCSNPP)
    seen: list[int] = []
    for module_ in network.modules():
        if hasattr(module_, "conv1"):
            module_.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].numel()))
    network(**inputs(NCSNPP, dtype=torch.float32))
    assert seen == network.mask_sizes()


def test_dropout_at_low_resolutions_only() -> None:
    config = dataclasses.replace(NCSNPP, blocks=1)
    everywhere = random_weights(UNet(config)).double().requires_grad_(False)
    network = random_weights(UNet(dataclasses.replace(config, dropout_resolution=4))).double().requires_grad_(False)
    full, sizes = everywhere.mask_sizes(), network.mask_sizes()
    # 8x8_block0; 4x4_down, block0; 2x2_down, block0, in0, in1, block0, block1; 4x4_up, block0, block1; 8x8_up, block0, block1
    assert full == [512, 128, 256, 64, 64, 64, 64, 64, 64, 256, 256, 256, 1024, 512, 512]
    assert sizes == [0, *full[1:12], 0, 0, 0]
    values = inputs(config)
    masks: list[Any] = [m.double() for m in dropout_masks(3, torch.arange(3), sizes, 0.3)]
    out = network(**values, masks=masks)
    ones = [m if size else torch.ones(3, whole).double() for m, size, whole in zip(masks, sizes, full, strict=True)]
    assert torch.equal(out, everywhere(**values, masks=ones))
    assert torch.equal(out, network(**values, masks=[m if size else None for m, size in zip(masks, sizes, strict=True)]))
    assert not torch.equal(out, network(**values))


def test_the_same_masks_drop_the_same_elements() -> None:
    """What student and target share: the elements that are dropped, whatever the input."""
    network = random_weights(UNet(DDPMPP))
    masks = dropout_masks(0, torch.arange(3), network.mask_sizes(), 0.5)
    zeros: list[list[Tensor]] = []
    for seed in (1, 2):
        found: list[Tensor] = []
        hooks = [
            m.conv1.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0] == 0))
            for m in network.modules()
            if hasattr(m, "conv1")
        ]
        network(**inputs(DDPMPP, seed=seed, dtype=torch.float32), masks=masks)
        for hook in hooks:
            hook.remove()
        zeros.append(found)
    for a, b, mask in zip(*zeros, masks, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.flatten(1), mask == 0)


def test_no_label_is_label_minus_one() -> None:
    network = random_weights(UNet(DDPMPP)).double()
    values = inputs(DDPMPP)
    assert torch.equal(network(**{**values, "label": None}), network(**{**values, "label": torch.full((3,), -1)}))
    assert not torch.equal(network(**values), network(**{**values, "label": None}))


def test_one_noise_level_may_stand_for_all() -> None:
    config = dataclasses.replace(NCSNPP, labels=0, augment_labels=0)
    network = random_weights(UNet(config)).double()
    x = inputs(config)["x"]
    one = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(network(x, one), network(x, one.expand(3)), rtol=1e-12, atol=1e-12)


def test_images_do_not_influence_each_other() -> None:
    network = random_weights(UNet(NCSNPP)).double()
    values = inputs(NCSNPP)
    whole = network(**values)
    for i in range(3):
        alone = network(**{name: value[i : i + 1] for name, value in values.items()})
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-11, atol=1e-11)


def test_an_empty_batch() -> None:
    """A process may have no share of a small batch; its gradients are zero then, not absent."""
    network = UNet(dataclasses.replace(DDPMPP, labels=0, augment_labels=0))
    out = network(torch.zeros(0, 2, 8, 8), torch.zeros(0))
    assert out.shape == (0, 2, 8, 8)
    out.sum().backward()


@pytest.mark.parametrize("config", [DDPMPP, NCSNPP], ids=["ddpm++", "ncsn++"])
def test_half_precision_keeps_the_weights(config: UNetConfig) -> None:
    network = random_weights(UNet(config))
    full = network(**inputs(config, dtype=torch.float32))
    half = network(**inputs(config, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < float(((half.float() - full).norm() / full.norm()).detach()) < 0.1


@pytest.mark.parametrize("config", [DDPMPP, NCSNPP], ids=["ddpm++", "ncsn++"])
def test_forward_mode_derivative_equals_finite_differences(config: UNetConfig) -> None:
    network = random_weights(UNet(config)).double().requires_grad_(False)
    values = inputs(config)
    x, c = values.pop("x"), values.pop("c_noise")
    masks = [m.double() for m in dropout_masks(3, torch.arange(3), network.mask_sizes(), 0.3)]
    dx, dc = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype),
        torch.tensor([0.3, -1.0, 0.5]).double(),
    )

    def f(x: Tensor, c: Tensor) -> Tensor:
        return network(x, c, **values, masks=masks)

    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(f, (x, c), (dx, dc))
        torch.testing.assert_close(value, f(x, c), rtol=1e-12, atol=1e-12)
        h = 2e-5
        central = (
            8 * (f(x + h * dx, c + h * dc) - f(x - h * dx, c - h * dc))
            - (f(x + 2 * h * dx, c + 2 * h * dc) - f(x - 2 * h * dx, c - 2 * h * dc))
        ) / (12 * h)
    assert float((derivative - central).norm() / central.norm()) < 1e-8
