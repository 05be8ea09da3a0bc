"""The published networks: parameter counts, and the layouts of public checkpoints where their description is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from atonce.networks import unet as module
from atonce.networks.presets import named
from atonce.networks.unet import UNet, UNetConfig, ddpmpp, ncsnpp


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ddpmpp(), 55_732_739),
        (ddpmpp(augment_labels=9), 55_733_891),
        (ddpmpp(augment_labels=9, labels=10), 55_735_299),
        (ddpmpp(blocks=8), 96_947_715),
        (ncsnpp(), 56_395_523),
        (ncsnpp(augment_labels=9), 56_397_827),
        (ncsnpp(blocks=8), 97_610_499),
        (named("ddpmpp", 32, 3), 55_732_739),
        (named("ncsnpp", 32, 3), 56_395_523),
        (named("ncsnpp-deep", 32, 3), 97_610_499),
    ],
    ids=lambda value: None if isinstance(value, UNetConfig) else str(value),
)
def test_published_parameter_counts(monkeypatch: pytest.MonkeyPatch, config: UNetConfig, count: int) -> None:
    assert sum(p.numel() for p in _on_meta(monkeypatch, config).parameters()) == count


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("edm-cifar10-ddpmpp-uncond", ddpmpp(augment_labels=9)),
        ("edm-cifar10-ncsnpp-cond", ncsnpp(augment_labels=9, labels=10)),
        ("edm-ffhq-afhq64-ddpmpp", ddpmpp(64, channel_mult=(1, 2, 2, 2), augment_labels=9)),
    ],
)
def test_names_and_shapes_are_those_of_the_public_checkpoints(
    monkeypatch: pytest.MonkeyPatch, repository: Path, file: str, config: UNetConfig
) -> None:
    folder = Path(os.environ.get("ATONCE_LAYOUTS") or repository.parent / "shared" / "layouts")
    if not folder.is_dir():
        pytest.skip(f"no parameter layouts: {folder} does not exist (set ATONCE_LAYOUTS)")
    theirs = {}
    for line in (folder / f"{file}.tsv").read_text().splitlines():
        if not line.startswith("#"):
            name, shape = line.split("\t")
            theirs[name] = tuple(map(int, shape.split("x")))
    state = _on_meta(monkeypatch, config).state_dict()
    assert {f"model.{name}": tuple(value.shape) for name, value in state.items()} == {
        name: shape for name, shape in theirs.items() if "resample_filter" not in name
    }


def _on_meta(monkeypatch: pytest.MonkeyPatch, config: UNetConfig) -> UNet:
    monkeypatch.setattr(module, "initialise", lambda network, seed: None)
    with torch.device("meta"):
        return UNet(config)
