"""Settings of the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.training.options import Options, has_bf16, pick_device


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"precision": "fp16"}, "precision is 'fp16', must be auto, fp32 or bf16"),
        ({"microbatch": 0}, "microbatch is 0"),
        ({"log_every": -1}, "log_every is -1"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"evaluate_images": 1}, "evaluate_images at least 2"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds at least 0"),
    ],
)
def test_refusals(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Options(**fields)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name, text in (
        ("cuda", "no CUDA device"),
        ("cuda:1", "no CUDA device"),
        ("tpu", "'tpu' is not known"),
        ("meta", "'meta'"),
    ):
        with pytest.raises(InputError, match=text):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")


def test_native_half_precision_is_a_fact_of_the_machine() -> None:
    assert has_bf16(torch.device("cpu")) in (True, False)
