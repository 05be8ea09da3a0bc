"""OpenAI's names and orders, and ours: round trips, known orders, refusals. Names against the files: test_published.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError
from atonce.networks.adm import ADM, ADMConfig
from atonce.networks.adm_names import from_openai, openai_names, to_openai

SMALL = ADMConfig(8, 3, channels=128, channel_mult=(1, 2), blocks=1, attention=(8,), labels=5)


def random_state(config: ADMConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = ADM(config, seed=None).state_dict()
    return {name: torch.randn(value.shape, generator=generator).to(dtype) for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "config",
    [SMALL, dataclasses.replace(SMALL, labels=0, scale_shift=False, channel_mult=(1, 1, 2), blocks=2, attention=(4, 2))],
    ids=["imagenet-like", "lsun-like"],
)
def test_round_trips_are_exact(config: ADMConfig, dtype: torch.dtype) -> None:
    ours = random_state(config, dtype)
    theirs = to_openai(ours, config)
    back = from_openai(theirs, config)
    again = to_openai(back, config)
    assert list(theirs) == list(again) == list(openai_names(config))
    assert set(back) == set(ours)
    for a, b in ((ours, back), (theirs, again)):
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    assert all(value.is_contiguous() for value in (*theirs.values(), *back.values()))
    ADM(config, seed=None).load_state_dict(back)


def test_the_order_of_attention_and_labels() -> None:
    """Theirs: q of all heads, then k, then v. Ours: q, k, v of head 0's channel 0, then of its channel 1, and so on."""
    state = random_state(SMALL)
    n = 128
    name = "input_blocks.1.1.qkv"
    theirs = to_openai(state, SMALL) | {
        f"{name}.bias": torch.arange(3 * n, dtype=torch.float32),
        f"{name}.weight": torch.arange(3 * n, dtype=torch.float32)[:, None, None, None].expand(-1, n, 1, 1).contiguous(),
        "label_emb.weight": torch.arange(5 * 512, dtype=torch.float32).reshape(5, 512),
    }
    ours = from_openai(theirs, SMALL)
    assert ours["enc.8x8_block0.qkv.bias"].tolist() == [which * n + channel for channel in range(n) for which in range(3)]
    assert torch.equal(ours["enc.8x8_block0.qkv.weight"][:, 3, 0, 0], ours["enc.8x8_block0.qkv.bias"])
    assert ours["map_label.weight"][:3, 2].tolist() == [1024, 1025, 1026]
    # What has no order of its own keeps its values.
    assert torch.equal(ours["enc.8x8_block0.proj.weight"], theirs["input_blocks.1.1.proj_out.weight"])


def test_some_names() -> None:
    """The step up ends a decoder block of the level below: after the attention if there is one, else in its place."""
    names = openai_names(dataclasses.replace(SMALL, channel_mult=(1, 2, 2), attention=(8, 2)))
    assert names["input_blocks.0.0.weight"] == "enc.8x8_conv.weight"
    assert names["input_blocks.2.0.in_layers.2.weight"] == "enc.4x4_down.conv0.weight"
    assert names["input_blocks.3.0.skip_connection.bias"] == "enc.4x4_block0.skip.bias"
    assert names["middle_block.1.norm.weight"] == "dec.2x2_in0.norm2.weight"
    assert names["middle_block.2.out_layers.0.bias"] == "dec.2x2_in1.norm1.bias"
    assert names["output_blocks.1.1.qkv.weight"] == "dec.2x2_block1.qkv.weight"
    assert names["output_blocks.1.2.emb_layers.1.weight"] == "dec.4x4_up.affine.weight"
    assert names["output_blocks.3.1.out_layers.3.weight"] == "dec.8x8_up.conv1.weight"
    assert names["output_blocks.5.1.proj_out.bias"] == "dec.8x8_block1.proj.bias"
    assert "output_blocks.5.2.in_layers.0.weight" not in names


def test_attention_may_be_stored_as_convolutions_of_one_dimension() -> None:
    theirs = to_openai(random_state(SMALL), SMALL)
    flat = {k: v[..., 0] if k.endswith(("qkv.weight", "proj_out.weight")) else v for k, v in theirs.items()}
    assert {v.dim() for k, v in flat.items() if "qkv.weight" in k} == {3}
    a, b = from_openai(theirs, SMALL), from_openai(flat, SMALL)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_does_not_fit_is_named() -> None:
    theirs = to_openai(random_state(SMALL), SMALL)
    short = {k: v for k, v in theirs.items() if not k.startswith("label_emb")}
    with pytest.raises(InputError, match=r"1 tensors are missing, for example label_emb\.weight"):
        from_openai(short, SMALL)
    with pytest.raises(InputError, match=r"1 tensors are not known to it, for example label_emb\.weight"):
        from_openai(theirs, dataclasses.replace(SMALL, labels=0))
    with pytest.raises(InputError, match=r"label_emb\.weight is 5x512, the network needs 6x512"):
        from_openai(theirs, dataclasses.replace(SMALL, labels=6))
    with pytest.raises(InputError, match=r"qkv\.bias is 383, the network needs 384"):
        from_openai({**theirs, "input_blocks.1.1.qkv.bias": torch.zeros(383)}, SMALL)
    with pytest.raises(InputError, match=r"out\.2\.bias is a single value, the network needs 3"):
        from_openai({**theirs, "out.2.bias": torch.zeros(())}, SMALL)
    with pytest.raises(InputError, match="tensors are missing"):
        to_openai(theirs, SMALL)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"augment_labels": 9}, "augmentation labels"),
        ({"guidance": True}, "guidance"),
        ({"channels": 64}, "channels is 64.*32 groups"),
        ({"channels": 144, "head_channels": 0}, "channels is 144"),
    ],
)
def test_networks_without_a_counterpart(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        openai_names(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
