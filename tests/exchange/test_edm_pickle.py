"""Pickles of EDM and ECT: files of their exact structure, and the networks once more in plain operations."""

from __future__ import annotations

import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atonce
from atonce.core.errors import ModelFileError
from atonce.exchange.assemble import most_values
from atonce.exchange.edm_pickle import Stored, edm_config
from atonce.networks.build import build

# ---- a pickle as EDM's code writes it: objects with their source, arguments and attributes, parameters by _load_from_bytes


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("only the name of this function matters")


class Persistent(nn.Module):
    """A module that pickles itself as the class that it is called."""

    def __reduce__(self) -> Any:
        state = {k: v for k, v in self.__dict__.items() if k != "class_name"}
        source = f"import pathlib; pathlib.Path({str(Path(sys.prefix) / 'never')!r}).mkdir()"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.class_name, "state": state}
        return (_reconstruct_persistent_obj, (meta,), None)


def persistent(class_name: str, **attributes: Any) -> Persistent:
    module = Persistent()
    module.class_name = class_name
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def tree(class_name: str, state: dict[str, Tensor], arguments: dict[str, Any]) -> Persistent:
    """Modules as the names of tensors say; enc and dec are containers of torch's own."""
    root = persistent(class_name, _init_args=(), _init_kwargs=arguments, label_dropout=0)
    for name, value in state.items():
        *path, last = name.split(".")
        module: nn.Module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                inside = (
                    nn.ModuleDict()
                    if depth == 0 and part in ("enc", "dec")
                    else persistent("UNetBlock", skip_scale=np.sqrt(0.5))
                )
                module.add_module(part, inside)
            module = module._modules[part]  # type: ignore[assignment]
        if last in ("resample_filter", "freqs"):
            module.register_buffer(last, value)
        else:
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    return root


def write(path: Path, net: Any, monkeypatch: pytest.MonkeyPatch, **others: Any) -> Path:
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj", _reconstruct_persistent_obj, raising=False
    )
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    data = {"ema": net, "loss_fn": persistent("EDMLoss", P_mean=-1.2, P_std=1.2), "augment_pipe": None, **others}
    path.write_bytes(pickle.dumps(data | {"dataset_kwargs": {"path": "cifar10.zip", "resolution": 8}}))
    return path


SONG: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 0,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.13,
}
NCSN = {
    **SONG,
    "label_dim": 4,
    "channel_mult": [1, 1, 2],
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
DHARIWAL: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 5,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "use_nothing": None,
}
del DHARIWAL["use_nothing"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm++": ("SongUNet", SONG),
    "ncsn++": ("SongUNet", NCSN),
    "adm": ("DhariwalUNet", DHARIWAL),
    "adm with augmentation": ("DhariwalUNet", {**DHARIWAL, "augment_dim": 6, "label_dim": 0}),
}


def weights(class_name: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under EDM's names, with the filters that EDM stores wherever there is a step up or down."""
    g = torch.Generator().manual_seed(0)
    a = {"channel_mult_noise": 1, "resample_filter": [1, 1], "encoder_type": "standard", "augment_dim": 0, **arguments}
    song = class_name == "SongUNet"
    size, width, blocks, mult = a["img_resolution"], a["model_channels"], a["num_blocks"], a["channel_mult"]
    emb, noise, image = 4 * width, width * a["channel_mult_noise"], a["in_channels"]
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        norm = len(shape) == 1
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * (0.3 if norm else math.prod(shape[1:]) ** -0.5) + norm
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=g) * 0.3

    def filters(name: str) -> None:
        f = torch.tensor(a["resample_filter"], dtype=torch.float32)
        state[f"{name}.resample_filter"] = torch.outer(f, f)[None, None] / f.sum() ** 2

    def block(name: str, cin: int, cout: int, step: bool = False, attention: bool = False) -> int:
        layer(f"{name}.norm0", cin)
        layer(f"{name}.conv0", cout, cin, 3, 3)
        layer(f"{name}.affine", cout if song else 2 * cout, emb)
        layer(f"{name}.norm1", cout)
        layer(f"{name}.conv1", cout, cout, 3, 3)
        if cin != cout or (step and song):
            layer(f"{name}.skip", cout, cin, 1, 1)
        if step:
            filters(f"{name}.conv0")
            filters(f"{name}.skip")
        if attention:
            layer(f"{name}.norm2", cout)
            layer(f"{name}.qkv", 3 * cout, cout, 1, 1)
            layer(f"{name}.proj", cout, cout, 1, 1)
        return cout

    if a.get("embedding_type") == "fourier":
        state["map_noise.freqs"] = torch.randn(noise // 2, generator=g) * 16
    if a["label_dim"]:
        layer("map_label", noise if song else emb, a["label_dim"], bias=song)
    if a["augment_dim"]:
        layer("map_augment", noise, a["augment_dim"], bias=False)
    layer("map_layer0", emb, noise)
    layer("map_layer1", emb, emb)
    c = width if song else width * mult[0]
    skips, aux = [], image
    for level, m in enumerate(mult):
        res = size >> level
        if level:
            block(f"enc.{res}x{res}_down", c, c, step=True)
            if a["encoder_type"] == "residual":
                layer(f"enc.{res}x{res}_aux_residual", c, aux, 3, 3)
                filters(f"enc.{res}x{res}_aux_residual")
                aux = c
        else:
            layer(f"enc.{res}x{res}_conv", c, image, 3, 3)
        skips.append(c)
        for i in range(blocks):
            c = block(f"enc.{res}x{res}_block{i}", c, width * m, attention=res in a["attn_resolutions"])
            skips.append(c)
    for level, m in reversed(list(enumerate(mult))):
        res = size >> level
        if level == len(mult) - 1:
            block(f"dec.{res}x{res}_in0", c, c, attention=True)
            block(f"dec.{res}x{res}_in1", c, c)
        else:
            block(f"dec.{res}x{res}_up", c, c, step=True)
        for i in range(blocks + 1):
            here = res in a["attn_resolutions"] and (not song or i == blocks)
            c = block(f"dec.{res}x{res}_block{i}", c + skips.pop(), width * m, attention=here)
    if song:
        layer(f"dec.{size}x{size}_aux_norm", c)
        layer(f"dec.{size}x{size}_aux_conv", image, c, 3, 3)
    else:
        layer("out_norm", c)
        layer("out_conv", image, c, 3, 3)
    return state


def original(
    class_name: str, arguments: dict[str, Any], state: dict[str, Tensor], x: Tensor, c_noise: Tensor, label: Tensor | None
) -> Tensor:
    """F of SongUNet or DhariwalUNet in plain operations, from the names and arguments."""
    s = {name: value.to(x.dtype) for name, value in state.items()}
    a = {"channel_mult_noise": 1, "encoder_type": "standard", **arguments}
    song = class_name == "SongUNet"
    eps, scale, width = (1e-6, math.sqrt(0.5), a["model_channels"]) if song else (1e-5, 1.0, a["model_channels"])

    def lin(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        y = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return y.reshape(x.shape) * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]

    def step(x: Tensor, f: Tensor, how: str) -> Tensor:
        """Low-pass filter of each channel, every second pixel kept or zeros between them."""
        pad, f = (f.shape[-1] - 1) // 2, f.expand(x.shape[1], 1, -1, -1)
        if how == "down":
            return F.conv2d(x, f, stride=2, padding=pad, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=x.shape[1])

    def conv(x: Tensor, name: str, how: str = "") -> Tensor:
        if how:
            x = step(x, s[f"{name}.resample_filter"], how)
        if f"{name}.weight" not in s:
            return x
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=s[f"{name}.weight"].shape[-1] // 2)

    def block(x: Tensor, name: str, how: str = "") -> Tensor:
        h = conv(F.silu(norm(x, f"{name}.norm0")), f"{name}.conv0", how)
        e = lin(emb, f"{name}.affine")[:, :, None, None]
        if song:
            h = norm(h + e, f"{name}.norm1")
        else:
            h = norm(h, f"{name}.norm1") * (1 + e[:, : h.shape[1]]) + e[:, h.shape[1] :]
        h = conv(F.silu(h), f"{name}.conv1")
        has = f"{name}.skip.weight" in s or f"{name}.skip.resample_filter" in s
        x = (h + (conv(x, f"{name}.skip", how) if has else x)) * scale
        if f"{name}.qkv.weight" in s:
            heads = 1 if song else x.shape[1] // 64
            y = conv(norm(x, f"{name}.norm2"), f"{name}.qkv")
            q, k, v = y.reshape(len(x) * heads, x.shape[1] // heads, 3, -1).unbind(2)
            w = (torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(q.shape[1])).softmax(2)
            y = torch.einsum("nqk,nck->ncq", w, v).reshape(x.shape)
            x = (x + conv(y, f"{name}.proj")) * scale
        return x

    noise = width * a["channel_mult_noise"]
    if "map_noise.freqs" in s:
        angle = 2 * math.pi * c_noise[:, None] * s["map_noise.freqs"]
    else:
        last = noise // 2 - (1 if song else 0)
        angle = c_noise[:, None] * torch.tensor([10_000 ** (-i / last) for i in range(noise // 2)], dtype=x.dtype)
    emb = torch.cat([angle.sin(), angle.cos()] if song else [angle.cos(), angle.sin()], 1)
    onehot = None if label is None else F.one_hot(label, a["label_dim"]).to(x.dtype)
    if song and a["label_dim"]:
        emb = emb + lin(
            (onehot if onehot is not None else torch.zeros(1, a["label_dim"], dtype=x.dtype)) * math.sqrt(a["label_dim"]),
            "map_label",
        )
    emb = lin(F.silu(lin(emb, "map_layer0")), "map_layer1")
    if not song and onehot is not None:
        emb = emb + lin(onehot, "map_label")
    emb = F.silu(emb)
    size, blocks, levels = a["img_resolution"], a["num_blocks"], len(a["channel_mult"])
    skips, aux = [], x
    for level in range(levels):
        res = size >> level
        x = block(x, f"enc.{res}x{res}_down", "down") if level else conv(x, f"enc.{res}x{res}_conv")
        name = f"enc.{res}x{res}_aux_residual"
        if f"{name}.weight" in s:
            f = s[f"{name}.resample_filter"]
            pad = (f.shape[-1] - 1) // 2
            wide = F.conv2d(aux, s[f"{name}.weight"], padding=1 + pad)
            aux = F.conv2d(wide, f.expand(wide.shape[1], 1, -1, -1), stride=2, groups=wide.shape[1])
            x = aux = (x + aux + s[f"{name}.bias"][:, None, None]) * math.sqrt(0.5)
        skips.append(x)
        for i in range(blocks):
            x = block(x, f"enc.{res}x{res}_block{i}")
            skips.append(x)
    for level in reversed(range(levels)):
        res = size >> level
        if level == levels - 1:
            x = block(block(x, f"dec.{res}x{res}_in0"), f"dec.{res}x{res}_in1")
        else:
            x = block(x, f"dec.{res}x{res}_up", "up")
        for i in range(blocks + 1):
            x = block(torch.cat([x, skips.pop()], 1), f"dec.{res}x{res}_block{i}")
    first, last_ = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
    return conv(F.silu(norm(x, first)), last_)


def precond(class_name: str, net: Persistent, **attributes: Any) -> Persistent:
    values = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 0,
        "use_fp16": False,
        "sigma_max": float("inf"),
        "sigma_data": 0.5,
    }
    ends = {"sigma_min": 0.003 if class_name == "ECMPrecond" else 0}
    return persistent(class_name, model=net, _init_args=(), _init_kwargs={}, **(values | ends | attributes))


@pytest.mark.parametrize("outer", ["EDMPrecond", "ECMPrecond"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: str, outer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_name, arguments = CASES[case]
    state = weights(class_name, arguments)
    path = write(tmp_path / "network-snapshot.pkl", precond(outer, tree(class_name, state, arguments)), monkeypatch)
    model = atonce.load(path)
    assert model.kind == ("denoiser" if outer == "EDMPrecond" else "consistency")
    assert model.sigma_end == (0 if outer == "EDMPrecond" else 0.003)  # what ECT's class does when it generates
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.tensor([80.0, 0.6, 0.01], dtype=torch.float64)
    s, d = sigma[:, None, None, None], 0.5
    x = x * (s**2 + d**2).sqrt()
    for label in [torch.tensor([2, 0, 1]), None] if model.labels else [None]:
        raw = original(class_name, arguments, state, x / (s**2 + d**2).sqrt(), sigma.log() / 4, label)
        e = model.sigma_end
        wanted = d**2 / ((s - e) ** 2 + d**2) * x + (s - e) * d / (s**2 + d**2).sqrt() * raw
        found = model.to(torch.float64)(x, sigma, label)
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
        single = model.to(torch.float32)(x.float(), sigma.float(), label)
        assert (single.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_model_of_a_pickle_is_saved_and_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = precond("ECMPrecond", tree("SongUNet", weights("SongUNet", NCSN), NCSN))
    model = atonce.load(write(tmp_path / "a.pkl", net, monkeypatch))
    model.save_pretrained(tmp_path / "saved")
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atonce.load(tmp_path / "saved")(x, 5.0, 1), model(x, 5.0, 1))
    assert "pickle of ECT: ECMPrecond with SongUNet" in str(model.card["found"])
    assert "not executed" in str(model.card["found"])
    assert not (Path(sys.prefix) / "never").exists()


def test_the_precision_and_the_range_of_the_file_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = precond(
        "EDMPrecond", tree("SongUNet", weights("SongUNet", SONG), SONG), sigma_min=0.01, sigma_max=50.0, use_fp16=True
    )
    model = atonce.load(write(tmp_path / "a.pkl", net, monkeypatch))
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.01, 50.0, 0.5)
    assert "original in float16" in str(model.card["found"])
    assert model.sample(2, steps=2).shape == (2, 3, 8, 8)


ORIGINAL = {"label_dim": 0, "augment_dim": 9, "model_channels": 128, "in_channels": 3, "out_channels": 3}
DDPMPP = {**ORIGINAL, "img_resolution": 32, "channel_mult": [2, 2, 2]}
NCSNPP = {
    **DDPMPP,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


@pytest.mark.parametrize(
    ("class_name", "arguments", "count"),
    [
        ("SongUNet", {**DDPMPP, "augment_dim": 0}, 55_732_739),
        ("SongUNet", DDPMPP, 55_733_891),
        ("SongUNet", {**DDPMPP, "label_dim": 10}, 55_735_299),
        ("SongUNet", NCSNPP, 56_397_827),
        ("SongUNet", {**ORIGINAL, "img_resolution": 64}, 61_805_571),
        ("DhariwalUNet", {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}, 295_899_267),
    ],
    ids=["ddpm++", "ddpm++ augmented", "ddpm++ conditional", "ncsn++", "ffhq, afhq", "imagenet"],
)
def test_the_published_networks_from_their_own_arguments(class_name: str, arguments: dict[str, Any], count: int) -> None:
    config = edm_config(Stored(class_name, {"_init_args": (), "_init_kwargs": arguments}))
    with torch.device("meta"):
        network = build(config, None)
    assert sum(value.numel() for value in network.parameters()) == count
    assert count <= most_values(config) <= 3 * count


def test_arguments_by_position() -> None:
    named = edm_config(Stored("SongUNet", {"_init_args": (), "_init_kwargs": SONG}))
    rest = {k: v for k, v in SONG.items() if k not in ("img_resolution", "in_channels", "out_channels")}
    assert edm_config(Stored("SongUNet", {"_init_args": (8, 3, 3), "_init_kwargs": rest})) == named


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (
            lambda: precond("VPPrecond", persistent("SongUNet")),
            "'VPPrecond', the variance-preserving.*EDMPrecond and ECMPrecond are read",
        ),
        (lambda: precond("VEPrecond", persistent("SongUNet")), "'VEPrecond', the variance-exploding"),
        (lambda: precond("iDDPMPrecond", persistent("SongUNet")), "discrete noise levels"),
        (lambda: precond("Precond", persistent("UNet")), "EDM2"),
        (lambda: precond("EDMPrecond", tree("UNet", {}, {})), "its network is 'UNet', of a class"),
        (
            lambda: precond("EDMPrecond", tree("SongUNet", {}, {**SONG, "channel_mult": [10**9]})),
            "cannot be built: .*widths above the most",
        ),
        (
            lambda: precond("EDMPrecond", tree("SongUNet", {}, {**SONG, "num_blocks": 10**9})),
            "blocks of 1000000000 is above 64",
        ),
        (lambda: precond("EDMPrecond", tree("SongUNet", {}, {**SONG, "surprise": 1})), "argument 'surprise'"),
        (lambda: precond("EDMPrecond", tree("SongUNet", {}, {**SONG, "decoder_type": "skip"})), "decoder 'skip'"),
        (lambda: precond("EDMPrecond", tree("SongUNet", {}, SONG)), r"\d+ tensors are missing"),
        (lambda: precond("EDMPrecond", tree("SongUNet", {}, SONG), sigma_data="half"), "its sigma_data is 'half'"),
        (lambda: {"no": "network"}, "none of EDM or ECT"),
    ],
)
def test_what_is_refused_says_why(net: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelFileError, match=text) as caught:
        atonce.load(write(tmp_path / "a.pkl", net(), monkeypatch))
    assert "\n" not in str(caught.value)


def test_other_classes_are_refused_unseen(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": Path("x")}))
    with pytest.raises(ModelFileError, match=r"asks for the global pathlib\.\S+, which this kind.*nothing was executed"):
        atonce.load(tmp_path / "a.pkl")


def test_modules_that_contain_themselves_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = nn.ModuleDict()
    inner._modules["again"] = inner
    net = precond("EDMPrecond", tree("SongUNet", {}, SONG))
    net._modules["model"]._modules["enc"] = inner  # type: ignore[union-attr]
    with pytest.raises(ModelFileError, match="no tensor and no module|contains itself"):
        atonce.load(write(tmp_path / "a.pkl", net, monkeypatch))
