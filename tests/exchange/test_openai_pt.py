"""OpenAI's checkpoints: the network once more in plain operations, from the names alone, and what loading makes of it."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import atonce
from atonce.core.errors import InputError, ModelFileError
from atonce.exchange.openai_pt import openai_config
from atonce.networks.adm import ADM, ADMConfig
from atonce.networks.adm_names import to_openai
from atonce.networks.unet2d import UNet2D

LAYOUTS = Path(__file__).resolve().parent.parent / "networks" / "layouts"


def layout(name: str) -> dict[str, tuple[int, ...]]:
    text = gzip.decompress((LAYOUTS / f"{name}.tsv.gz").read_bytes()).decode()
    return {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in text.splitlines())}


# ---- a checkpoint of the exact names, and the function in plain operations


def checkpoint(
    width: int = 32,
    mult: tuple[int, ...] = (1, 2),
    blocks: int = 1,
    attend: tuple[int, ...] = (1,),
    labels: int = 0,
    scale_shift: bool = True,
    image_channels: int = 3,
) -> dict[str, Tensor]:
    """Random weights under OpenAI's names, block by block in the order in which its U-Net numbers them."""
    g = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        norm = len(shape) == 1
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * (0.3 if norm else math.prod(shape[1:]) ** -0.5) + norm
        state[f"{name}.bias"] = torch.randn(shape[0], generator=g) * 0.3

    def residual(name: str, cin: int, cout: int) -> int:
        layer(f"{name}.in_layers.0", cin)
        layer(f"{name}.in_layers.2", cout, cin, 3, 3)
        layer(f"{name}.emb_layers.1", cout * (2 if scale_shift else 1), 4 * width)
        layer(f"{name}.out_layers.0", cout)
        layer(f"{name}.out_layers.3", cout, cout, 3, 3)
        if cin != cout:
            layer(f"{name}.skip_connection", cout, cin, 1, 1)
        return cout

    def attention(name: str, c: int) -> None:
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    if labels:
        state["label_emb.weight"] = torch.randn(labels, 4 * width, generator=g)
    c = width * mult[0]
    layer("input_blocks.0.0", c, image_channels, 3, 3)
    skips, index = [c], 1
    for level, m in enumerate(mult):
        for _ in range(blocks):
            c = residual(f"input_blocks.{index}.0", c, width * m)
            if level in attend:
                attention(f"input_blocks.{index}.1", c)
            skips.append(c)
            index += 1
        if level < len(mult) - 1:
            residual(f"input_blocks.{index}.0", c, c)
            skips.append(c)
            index += 1
    residual("middle_block.0", c, c)
    attention("middle_block.1", c)
    residual("middle_block.2", c, c)
    index = 0
    for level, m in reversed(list(enumerate(mult))):
        for i in range(blocks + 1):
            c = residual(f"output_blocks.{index}.0", c + skips.pop(), width * m)
            if level in attend:
                attention(f"output_blocks.{index}.1", c)
            if level and i == blocks:
                residual(f"output_blocks.{index}.{2 if level in attend else 1}", c, c)
            index += 1
    layer("out.0", c)
    layer("out.2", image_channels, c, 3, 3)
    return state


def original(
    state: dict[str, Tensor], x: Tensor, sigma: Tensor, label: Tensor | None, blocks: int, levels: int, head: int = 64
) -> Tensor:
    """F of OpenAI's U-Net at 1000 ln(sigma) / 4, in the precision of ``x``, from the names alone."""
    s = {name: value.to(x.dtype) for name, value in state.items()}

    def lin(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=s[f"{name}.weight"].shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        y = x.reshape(len(x), 32, -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y.reshape(x.shape) * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]

    def resize(x: Tensor, how: str) -> Tensor:
        if how == "up":
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return x.unflatten(-1, (-1, 2)).mean(-1).unflatten(-2, (-1, 2)).mean(-2) if how else x

    def residual(x: Tensor, name: str, how: str = "") -> Tensor:
        h = conv(resize(F.silu(norm(x, f"{name}.in_layers.0")), how), f"{name}.in_layers.2")
        e = lin(F.silu(emb), f"{name}.emb_layers.1")[:, :, None, None]
        if e.shape[1] == 2 * h.shape[1]:
            h = norm(h, f"{name}.out_layers.0") * (1 + e[:, : h.shape[1]]) + e[:, h.shape[1] :]
        else:
            h = norm(h + e, f"{name}.out_layers.0")
        h = conv(F.silu(h), f"{name}.out_layers.3")
        x = resize(x, how)
        return h + (conv(x, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in s else x)

    def attention(x: Tensor, name: str) -> Tensor:
        b, c, height, width = x.shape
        y = norm(x, f"{name}.norm").flatten(2)
        qkv = s[f"{name}.qkv.weight"][..., 0] @ y + s[f"{name}.qkv.bias"][:, None]
        q, k, v = (part.reshape(b, c // head, head, -1) for part in qkv.chunk(3, 1))
        weight = (torch.einsum("bncq,bnck->bnqk", q, k) / math.sqrt(head)).softmax(-1)
        out = torch.einsum("bnqk,bnck->bncq", weight, v).reshape(b, c, -1)
        out = s[f"{name}.proj_out.weight"][..., 0] @ out + s[f"{name}.proj_out.bias"][:, None]
        return x + out.reshape(b, c, height, width)

    half = s["time_embed.0.weight"].shape[1] // 2
    angle = (1000 * 0.25 * sigma.log())[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, dtype=x.dtype) / half)
    emb = lin(torch.cat([angle.cos(), angle.sin()], 1), "time_embed.0")
    emb = lin(F.silu(emb), "time_embed.2")
    if label is not None:
        emb = emb + s["label_emb.weight"][label]
    x = conv(x, "input_blocks.0.0")
    skips, index = [x], 1
    for level in range(levels):
        for _ in range(blocks):
            x = residual(x, f"input_blocks.{index}.0")
            if f"input_blocks.{index}.1.qkv.weight" in s:
                x = attention(x, f"input_blocks.{index}.1")
            skips.append(x)
            index += 1
        if level < levels - 1:
            x = residual(x, f"input_blocks.{index}.0", "down")
            skips.append(x)
            index += 1
    x = residual(attention(residual(x, "middle_block.0"), "middle_block.1"), "middle_block.2")
    for index in range(levels * (blocks + 1)):
        x = residual(torch.cat([x, skips.pop()], 1), f"output_blocks.{index}.0")
        last = 1
        if f"output_blocks.{index}.1.qkv.weight" in s:
            x, last = attention(x, f"output_blocks.{index}.1"), 2
        if f"output_blocks.{index}.{last}.in_layers.0.weight" in s:
            x = residual(x, f"output_blocks.{index}.{last}", "up")
    return conv(F.silu(norm(x, "out.0")), "out.2")


def consistency(F_x: Tensor, x: Tensor, sigma: Tensor, end: float) -> Tensor:
    """CM's output from F: shifted where ``end`` is above 0."""
    s, d = sigma[:, None, None, None], 0.5
    return d**2 / ((s - end) ** 2 + d**2) * x + (s - end) * d / (s**2 + d**2).sqrt() * F_x


CASES = {
    "narrow": {"labels": 5},
    "narrow, no scale and shift": {"scale_shift": False, "mult": (1, 1, 2), "attend": (2,), "blocks": 2},
    "wide": {"width": 128, "labels": 3},
    "wide, no scale and shift, grey": {"width": 128, "mult": (1, 1), "scale_shift": False, "image_channels": 1},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["consistency", "denoiser"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: str, kind: str, legacy: bool, tmp_path: Path) -> None:
    settings = CASES[case]
    state = checkpoint(**settings)  # type: ignore[arg-type]
    path = tmp_path / "weights.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    model = atonce.load(path, kind=kind, size=16)
    assert model.kind == kind
    levels, blocks = len(settings.get("mult", (1, 2))), int(settings.get("blocks", 1))  # type: ignore[arg-type, call-overload]
    g = torch.Generator().manual_seed(1)
    n, c = 3, int(settings.get("image_channels", 3))  # type: ignore[call-overload]
    x = torch.randn(n, c, 16, 16, generator=g, dtype=torch.float64)
    sigma = torch.tensor([80.0, 0.7, 0.003], dtype=torch.float64)
    x = x * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    label = torch.tensor([2, 0, 1]) if model.labels else None
    c_in = 1 / (sigma**2 + 0.25).sqrt()[:, None, None, None]
    wanted = consistency(
        original(state, c_in * x, sigma, label, blocks, levels), x, sigma, 0.002 if kind == "consistency" else 0.0
    )
    assert model.sigma_end == (0.002 if kind == "consistency" else 0)
    found = model.to(torch.float64)(x, sigma, label)
    assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    single = model.to(torch.float32)(x.float(), sigma.float(), label)
    assert (single.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_which_network_holds_it(tmp_path: Path) -> None:
    """32 groups with few channels need the network whose groups are free; the published widths are our ADM's."""
    for width, kind in ((32, UNet2D), (128, ADM)):
        torch.save(checkpoint(width), tmp_path / f"{width}.pt")
        model = atonce.load(tmp_path / f"{width}.pt")
        assert isinstance(model.network, kind)
        assert model.sample(2, seed=3).isfinite().all()


@pytest.mark.parametrize(
    ("file", "count", "size", "labels"),
    [("openai-adm-imagenet64", 295_899_267, 64, 1000), ("openai-adm-lsun256", 526_304_771, 256, 0)],
)
def test_the_published_checkpoints_are_recognised(file: str, count: int, size: int, labels: int) -> None:
    """Shape for shape and value for value, on a device without memory."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in layout(file).items()}
        config = openai_config(state, Path(file))
        network = ADM(config, seed=None)
    assert (config.size, config.labels, config.head_channels, config.noise_scale) == (size, labels, 64, 1000.0)
    assert config.attention == (32, 16, 8)
    assert sum(value.numel() for value in network.parameters()) == count == sum(map(math.prod, layout(file).values()))
    assert {name: tuple(v.shape) for name, v in to_openai(network.state_dict(), config).items()} == layout(file)


@pytest.mark.parametrize(
    ("name", "kind", "said", "points"),
    [
        ("cd_imagenet64_lpips.pt", "consistency", "by its name", (80.0, 1.382368)),
        ("ct_cat256.pt", "consistency", "by its name", (80.0, 5.248503)),
        ("edm_bedroom256_ema.pt", "denoiser", "by its name", None),
        ("model.pt", "consistency", "assumed: give kind='denoiser'", None),
    ],
)
def test_the_kind_is_that_of_a_published_name_or_assumed_and_said(
    name: str, kind: str, said: str, points: tuple[float, ...] | None, tmp_path: Path
) -> None:
    torch.save(checkpoint(), tmp_path / name)
    model = atonce.load(tmp_path / name)
    assert model.kind == kind
    assert said in str(model.card["found"])
    assert model.config.time_points.get(2) == points
    assert model.card["licence"] == ("unknown" if name == "model.pt" else "mit")
    assert model.card["name"] == name.removesuffix(".pt")


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save(checkpoint(), tmp_path / "model.safetensors")
    save_file(checkpoint(), tmp_path / "model.pt")
    torch.save({"state_dict": checkpoint(), "epoch": 3}, tmp_path / "model.pkl")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outs = []
    for name, text in (("model.safetensors", "zip file"), ("model.pt", "safetensors file"), ("model.pkl", "zip file")):
        model = atonce.load(tmp_path / name)
        assert str(model.card["found"]).startswith(text)
        outs.append(model(x, 2.0))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in checkpoint().items()}, tmp_path / "model.pt")
    model = atonce.load(tmp_path / "model.pt")
    assert model.dtype == torch.float32
    expected = checkpoint()["out.2.weight"].half().float()
    assert torch.equal(model.network.state_dict()["conv_out.weight"], expected)


def test_a_wide_model_is_saved_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.save(checkpoint(128, labels=2), tmp_path / "model.pt")
    model = atonce.load(tmp_path / "model.pt", size=16)
    model.save_pretrained(tmp_path / "saved")
    again = atonce.load(tmp_path / "saved")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x, 5.0, 1), again(x, 5.0, 1))
    assert again.card["found"] == model.card["found"]


def test_what_is_no_such_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    def saved(state: object) -> Path:
        torch.save(state, path)
        return path

    good = checkpoint()
    with pytest.raises(ModelFileError, match="predicts a variance too"):
        atonce.load(saved({**good, "out.2.weight": torch.zeros(6, 32, 3, 3), "out.2.bias": torch.zeros(6)}))
    with pytest.raises(ModelFileError, match=r"conv_out\.bias is \[4\].*needs \[3\]"):
        atonce.load(saved({**good, "out.2.bias": torch.zeros(4)}))
    with pytest.raises(ModelFileError, match="1 tensors are missing, such as"):
        atonce.load(saved({k: v for k, v in good.items() if k != "middle_block.1.norm.bias"}))
    with pytest.raises(ModelFileError, match="not of OpenAI's U-Net"):
        atonce.load(saved({**good, "extra": torch.zeros(1)}))
    with pytest.raises(ModelFileError, match="lacks the tensor"):
        atonce.load(saved({k: v for k, v in good.items() if k != "out.2.weight"}))
    with pytest.raises(ModelFileError, match="not finite"):
        atonce.load(saved({**good, "out.2.bias": torch.full((3,), math.nan)}))
    with pytest.raises(ModelFileError, match="floating point"):
        atonce.load(saved({**good, "out.2.bias": torch.zeros(3, dtype=torch.int64)}))
    with pytest.raises(ModelFileError, match="does not tell the size"):
        atonce.load(saved(checkpoint(attend=())))
    with pytest.raises(ModelFileError, match="no flat state dict"):
        atonce.load(saved({"a": 1}))
    with pytest.raises(ModelFileError, match="does not know"):
        atonce.load(saved({"a": torch.zeros(1)}))
    with pytest.raises(InputError, match="kind='flow_map'.*'consistency' or 'denoiser'"):
        atonce.load(saved(good), kind="flow_map")


def test_the_size_can_be_given(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "model.pt")
    assert atonce.load(tmp_path / "model.pt").shape == (3, 64, 64)  # attention on the second level begins at 32x32
    assert atonce.load(tmp_path / "model.pt", size=24).shape == (3, 24, 24)


def test_the_configuration_of_a_checkpoint(tmp_path: Path) -> None:
    config = openai_config(checkpoint(128, (1, 1, 2), 2, (1, 2), 7), tmp_path)
    wanted = ADMConfig(64, 3, 128, (1, 1, 2), 2, (32, 16), labels=7, noise_scale=1000.0)
    assert config == wanted
