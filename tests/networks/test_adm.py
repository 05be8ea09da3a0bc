"""The ADM U-Net: the same function computed a second way from OpenAI's names and orders, and how it is called."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atonce.core.errors import InputError
from atonce.core.streams import dropout_masks
from atonce.networks.adm import ADM, ADMConfig
from atonce.networks.adm_names import to_openai

# Two and four heads of 64, attention above, at and not at the lowest level; 128 channels are the fewest with 32 groups.
IMAGENET = ADMConfig(8, 3, channels=128, channel_mult=(1, 2), blocks=1, attention=(8, 4), labels=5, noise_scale=1000.0)
LSUN = ADMConfig(8, 2, channels=128, channel_mult=(1, 1, 2), blocks=2, attention=(4,), scale_shift=False)
TINY = ADMConfig(
    8,
    2,
    channels=16,
    channel_mult=(1, 2),
    blocks=1,
    attention=(4,),
    head_channels=16,
    labels=3,
    augment_labels=4,
    guidance=True,
)


def random_weights(network: ADM, seed: int = 0) -> ADM:
    """Weights of ordinary size everywhere; as initialised, the last layers are zero and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def inputs(config: ADMConfig, n: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    noise = torch.promote_types(dtype, torch.float32)
    values: dict[str, Any] = {
        "x": torch.randn(n, config.image_channels, config.size, config.size, generator=g, dtype=torch.float64).to(dtype),
        "c_noise": torch.linspace(-1.5, 1.0, n, dtype=torch.float64).to(noise),
    }
    if config.labels:
        values["label"] = torch.tensor([0, -1, config.labels - 1])[torch.arange(n) % 3]
    if config.augment_labels:
        values["augment"] = torch.randn(n, config.augment_labels, generator=g, dtype=torch.float64).to(dtype)
    if config.guidance:
        values["guidance"] = torch.linspace(1.0, 4.0, n, dtype=torch.float64).to(noise)
    return values


# ---- the function, once more, in plain operations on an OpenAI state dict


class Reference:
    def __init__(self, state: dict[str, Tensor], blocks: int, noise_scale: float, head: int = 64) -> None:
        self.state, self.blocks, self.noise_scale, self.head = state, blocks, noise_scale, head

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        columns = F.unfold(x, weight.shape[-1], padding=weight.shape[-1] // 2)
        return (weight.flatten(1) @ columns + self.state[f"{name}.bias"][:, None]).reshape(len(x), -1, *x.shape[2:])

    def norm(self, x: Tensor, name: str) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        centred = groups - groups.mean(2, keepdim=True)
        y = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        return y * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def resample(self, x: Tensor, mode: str) -> Tensor:
        if mode == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if mode == "up" else x

    def residual(self, x: Tensor, emb: Tensor, name: str, mode: str, mask: Tensor | None) -> Tensor:
        h = self.conv(self.resample(F.silu(self.norm(x, f"{name}.in_layers.0")), mode), f"{name}.in_layers.2")
        x = self.resample(x, mode)
        e = self.linear(F.silu(emb), f"{name}.emb_layers.1")[:, :, None, None]
        if e.shape[1] == 2 * h.shape[1]:
            h = self.norm(h, f"{name}.out_layers.0") * (1 + e[:, : h.shape[1]]) + e[:, h.shape[1] :]
        else:
            h = self.norm(h + e, f"{name}.out_layers.0")
        h = F.silu(h)
        if mask is not None:
            h = h * mask.reshape(h.shape)
        h = self.conv(h, f"{name}.out_layers.3")
        return h + (self.conv(x, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in self.state else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.conv(self.norm(x, f"{name}.norm"), f"{name}.qkv").reshape(b, 3, c // self.head, self.head, h * w)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        scores = (torch.einsum("bhcs,bhct->bhst", q, k) / math.sqrt(self.head)).softmax(-1)
        return x + self.conv(torch.einsum("bhst,bhct->bhcs", scores, v).reshape(x.shape), f"{name}.proj_out")

    def __call__(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, masks: list[Tensor] | None = None, **others: Any
    ) -> Tensor:
        assert not others
        half = self.state["time_embed.0.weight"].shape[1] // 2
        f = torch.tensor([10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)
        angle = self.noise_scale * c_noise[:, None] * f
        emb = self.linear(torch.cat([angle.cos(), angle.sin()], 1), "time_embed.0")
        emb = self.linear(F.silu(emb), "time_embed.2")
        for i, klass in enumerate([] if label is None else label.tolist()):
            if klass >= 0:
                emb[i] += self.state["label_emb.weight"][klass]
        queue = list(masks) if masks is not None else None

        def run(x: Tensor, name: str, step: str = "") -> Tensor:
            """All parts of one numbered block; where a decoder block has a second residual part, it doubles the size."""
            part = 0
            while any(key.startswith(f"{name}.{part}.") for key in self.state):
                here = f"{name}.{part}"
                if f"{here}.in_layers.0.weight" in self.state:
                    mode = "up" if part and name.startswith("output") else step
                    x = self.residual(x, emb, here, mode, queue.pop(0) if queue is not None else None)
                elif f"{here}.qkv.weight" in self.state:
                    x = self.attention(x, here)
                else:
                    x = self.conv(x, here)
                part += 1
            return x

        skips: list[Tensor] = []
        while any(key.startswith(f"input_blocks.{len(skips)}.") for key in self.state):
            i = len(skips)
            x = run(x, f"input_blocks.{i}", "down" if i and i % (self.blocks + 1) == 0 else "")
            skips.append(x)
        x = run(x, "middle_block")
        for i in range(len(skips)):
            x = run(torch.cat([x, skips.pop()], 1), f"output_blocks.{i}")
        assert not queue
        return self.conv(F.silu(self.norm(x, "out.0")), "out.2")


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        IMAGENET,
        LSUN,
        dataclasses.replace(IMAGENET, scale_shift=False, noise_scale=1.0),
        dataclasses.replace(LSUN, scale_shift=True, channel_mult=(2, 1), attention=(8,), blocks=1, labels=4),
    ],
    ids=["imagenet", "lsun", "labels-no-scale", "narrowing"],
)
def test_forward_equals_the_reference(config: ADMConfig, dropout: bool) -> None:
    network = random_weights(ADM(config, seed=None)).double().requires_grad_(False)
    values = inputs(config)
    if dropout:
        values["masks"] = [m.double() for m in dropout_masks(3, torch.arange(3), network.mask_sizes(), 0.3)]
    ours = network(**values)
    theirs = Reference(to_openai(network.state_dict(), config), config.blocks, config.noise_scale)(**values)
    assert ours.shape == values["x"].shape
    assert float(theirs.std()) > 0.1  # nothing is hidden behind small weights
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_each_part_takes_part() -> None:
    """The comparison above would also pass if both sides ignored an input."""
    network = random_weights(ADM(TINY)).double().requires_grad_(False)
    values = inputs(TINY)
    base = network(**values)
    masks = [m.double() for m in dropout_masks(3, torch.arange(3), network.mask_sizes(), 0.3)]
    for changed in (
        {"c_noise": values["c_noise"] + 0.1},
        {"label": torch.tensor([1, 1, 1])},
        {"augment": values["augment"] + 0.1},
        {"augment": None},
        {"guidance": values["guidance"] + 0.1},
        {"guidance": None},
        {"masks": masks},
        {"x": values["x"] + 0.1},
    ):
        other = network(**{**values, **changed})
        assert ((other - base).flatten(1).norm(dim=1) > 1e-3).all(), changed
    louder = random_weights(ADM(dataclasses.replace(TINY, noise_scale=3.0))).double()
    torch.testing.assert_close(louder(**{**values, "c_noise": values["c_noise"] / 3}), base)


# ---- names and first weights


def test_initial_weights_are_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    a, b, c = (ADM(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["map_layer0.weight"], c["map_layer0.weight"])


def test_initial_scales() -> None:
    """Uniform within 1/sqrt(fan-in), biases too; zero where a branch ends; standard normal class embeddings; so F is 0."""
    config = dataclasses.replace(TINY, channels=64, head_channels=64, labels=10)
    network = ADM(config)
    state = network.state_dict()
    zero = ("conv1", "proj", "out_conv", "map_augment", "map_guidance")
    for name, value in state.items():
        layer = name.split(".")[-2]
        if "norm" in layer:
            assert bool((value == (1 if name.endswith("weight") else 0)).all()), name
        elif layer in zero:
            assert not value.any(), name
        elif layer == "map_label":
            assert abs(float(value.std()) - 1) < 0.05
            assert float(value.max()) > 3
        else:
            bound = state[f"{name.rpartition('.')[0]}.weight"][0].numel() ** -0.5
            assert 0.8 * bound < float(value.abs().max()) <= bound, name
            assert abs(float(value.std()) - bound / math.sqrt(3)) < 0.2 * bound, name
    assert not network(**inputs(config, dtype=torch.float32)).any()


def test_a_guidance_input_changes_nothing_at_the_start() -> None:
    """A student takes over its teacher's weights and is its teacher at every scale."""
    plain = dataclasses.replace(TINY, guidance=False)
    teacher = random_weights(ADM(plain)).double()
    student = ADM(TINY).double()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert (missing, unexpected) == (["map_guidance.weight"], [])
    values = inputs(TINY)
    given = values.pop("guidance")
    assert torch.equal(student(**values, guidance=given), teacher(**values))
    assert torch.equal(student(**values, guidance=given[:1]), teacher(**values))
    a, b = ADM(plain, 3).state_dict(), ADM(TINY, 3).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)  # nor does it change the other weights' draws


def test_a_guidance_scale_is_not_ignored() -> None:
    network = ADM(dataclasses.replace(TINY, guidance=False))
    with pytest.raises(InputError, match="no guidance input"):
        network(**inputs(TINY, dtype=torch.float32))


# ---- how it is called


def test_mask_sizes_are_those_of_the_activations() -> None:
    network = ADM(TINY)
    seen: list[int] = []
    for module in network.modules():
        if hasattr(module, "conv1"):
            module.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].numel()))
    network(**inputs(TINY, dtype=torch.float32))
    assert seen == network.mask_sizes()


def test_dropout_at_low_resolutions_only() -> None:
    everywhere = random_weights(ADM(TINY)).double().requires_grad_(False)
    network = random_weights(ADM(dataclasses.replace(TINY, dropout_resolution=4))).double().requires_grad_(False)
    full, sizes = everywhere.mask_sizes(), network.mask_sizes()
    # 8x8_block0; 4x4_down, block0, in0, in1, block0, block1; 8x8_up, block0, block1
    assert full == [1024, 256, 512, 512, 512, 512, 512, 2048, 1024, 1024]
    assert sizes == [0, 256, 512, 512, 512, 512, 512, 0, 0, 0]
    values = inputs(TINY)
    masks: list[Any] = [m.double() for m in dropout_masks(3, torch.arange(3), sizes, 0.3)]
    out = network(**values, masks=masks)
    ones = [m if size else torch.ones(3, whole).double() for m, size, whole in zip(masks, sizes, full, strict=True)]
    assert torch.equal(out, everywhere(**values, masks=ones))
    assert torch.equal(out, network(**values, masks=[m if size else None for m, size in zip(masks, sizes, strict=True)]))
    assert not torch.equal(out, network(**values))


def test_no_label_is_label_minus_one() -> None:
    network = random_weights(ADM(TINY)).double()
    values = inputs(TINY)
    assert torch.equal(network(**{**values, "label": None}), network(**{**values, "label": torch.full((3,), -1)}))
    assert not torch.equal(network(**values), network(**{**values, "label": None}))


def test_one_noise_level_and_one_scale_may_stand_for_all() -> None:
    config = dataclasses.replace(TINY, labels=0, augment_labels=0)
    network = random_weights(ADM(config)).double()
    x = inputs(config)["x"]
    one, w = torch.tensor([0.3], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    torch.testing.assert_close(network(x, one, guidance=w), network(x, one.expand(3), guidance=w.expand(3)))


def test_images_do_not_influence_each_other() -> None:
    network = random_weights(ADM(TINY)).double()
    values = inputs(TINY)
    whole = network(**values)
    for i in range(3):
        alone = network(**{name: value[i : i + 1] for name, value in values.items()})
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-11, atol=1e-11)


def test_an_empty_batch() -> None:
    """A process may have no share of a small batch; its gradients are zero then, not absent."""
    network = ADM(TINY)
    masks = dropout_masks(0, torch.arange(0), network.mask_sizes(), 0.3)
    out = network(torch.zeros(0, 2, 8, 8), torch.zeros(0), torch.zeros(0, dtype=torch.int64), masks=masks)
    assert out.shape == (0, 2, 8, 8)
    out.sum().backward()


def test_every_weight_has_a_gradient() -> None:
    network = random_weights(ADM(TINY))
    network(**inputs(TINY, dtype=torch.float32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_half_precision_keeps_the_weights() -> None:
    network = random_weights(ADM(TINY))
    full = network(**inputs(TINY, dtype=torch.float32))
    half = network(**inputs(TINY, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < float(((half.float() - full).norm() / full.norm()).detach()) < 0.1


def test_forward_mode_derivative_equals_finite_differences() -> None:
    network = random_weights(ADM(TINY)).double().requires_grad_(False)
    values = inputs(TINY)
    x, c = values.pop("x"), values.pop("c_noise")
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    dc = torch.tensor([0.3, -1.0, 0.5], dtype=x.dtype)

    def f(x: Tensor, c: Tensor) -> Tensor:
        return network(x, c, **values)

    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(f, (x, c), (dx, dc))
        torch.testing.assert_close(value, f(x, c), rtol=1e-12, atol=1e-12)
        h = 2e-5
        central = (
            8 * (f(x + h * dx, c + h * dc) - f(x - h * dx, c - h * dc))
            - (f(x + 2 * h * dx, c + 2 * h * dc) - f(x - 2 * h * dx, c - 2 * h * dc))
        ) / (12 * h)
    assert float((derivative - central).norm() / central.norm()) < 1e-8


# ---- which configurations run, and how wrong ones are refused


@st.composite
def configs(draw: st.DrawFn) -> ADMConfig:
    levels = draw(st.integers(1, 3))
    size = draw(st.integers(2 if levels > 1 else 4, 4)) << (levels - 1)
    return ADMConfig(
        size=size,
        image_channels=draw(st.integers(1, 4)),
        channels=draw(st.sampled_from([4, 8, 12, 36])),
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        blocks=draw(st.integers(1, 2)),
        attention=tuple(draw(st.sets(st.sampled_from([size, size // 2, 16]), max_size=2))),
        head_channels=draw(st.sampled_from([0, 2, 4])),
        scale_shift=draw(st.booleans()),
        embedding_mult=draw(st.integers(1, 4)),
        labels=draw(st.sampled_from([0, 3])),
        augment_labels=draw(st.sampled_from([0, 2])),
        guidance=draw(st.booleans()),
        dropout_resolution=draw(st.sampled_from([0, size])),
    )


@settings(max_examples=20)
@given(configs())
def test_any_admissible_configuration_runs(config: ADMConfig) -> None:
    network = random_weights(ADM(config))
    masks = dropout_masks(0, torch.arange(2), network.mask_sizes(), 0.25)
    out = network(**inputs(config, n=2, dtype=torch.float32), masks=masks)
    assert out.shape == (2, config.image_channels, config.size, config.size)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 3}, "size"),
        ({"size": 8.0}, "size"),
        ({"image_channels": 0}, "image_channels"),
        ({"channels": 6}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"embedding_mult": 0}, "embedding_mult"),
        ({"labels": -1}, "labels"),
        ({"augment_labels": True}, "augment_labels"),
        ({"head_channels": 24}, "head_channels"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"channel_mult": [1, 2]}, "channel_mult"),
        ({"attention": 16}, "attention"),
        ({"scale_shift": 1}, "scale_shift is 1, must be true or false"),
        ({"guidance": None}, "guidance is None, must be true or false"),
        ({"noise_scale": 0.0}, "noise_scale"),
        ({"noise_scale": math.inf}, "noise_scale"),
        ({"noise_scale": True}, "noise_scale"),
        ({"dropout_resolution": -1}, "dropout_resolution"),
        ({"dropout_resolution": 3}, "dropout_resolution is 3, below the lowest resolution 4"),
        ({"size": 9}, "9x9 do not fit 2 levels"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field) as caught:
        dataclasses.replace(TINY, **changes)
    assert "\n" not in str(caught.value)
