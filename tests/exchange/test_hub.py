"""The hub's cache without a network, by its own client, and what is asked of the hub, by a stand-in."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import atonce
from atonce.core.errors import ModelFileError
from atonce.exchange.hub import fetch
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.networks.unet2d import UNet2D, UNet2DConfig
from atonce.preconditioning import Preconditioning

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = UNet2DConfig(8, 1, (8, 8), 1, ("DownBlock2D",) * 2, ("UpBlock2D",) * 2, groups=4, middle_groups=4)
VALUES = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 4,
}


def pipeline(folder: Path) -> Path:
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "CMStochasticIterativeScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ConsistencyModelPipeline", **parts}))
    (folder / "unet" / "config.json").write_text(json.dumps(VALUES))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "CMStochasticIterativeScheduler"}))
    save_file(UNet2D(SMALL).state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the real client, which believes that there is no network."""
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    original = hub.snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **more: original(repo_id, cache_dir=folder, **more))
    return folder


def cached(cache: Path, repo_id: str) -> Path:
    entry = cache / f"models--{repo_id.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_pipeline_in_the_cache_opens_without_a_network(cache: Path) -> None:
    pipeline(cached(cache, "someone/one-step") / "inner")
    folder = cached(cache, "someone/pipeline")
    folder.rmdir()
    pipeline(folder)
    model = atonce.load("someone/pipeline")
    assert model.kind == "consistency"
    assert model.shape == (1, 8, 8)
    assert torch.equal(model.sample(1), atonce.load(folder).sample(1))


def test_our_own_model_in_the_cache_opens(cache: Path) -> None:
    config = ModelConfig(UNetConfig(4, 1, channels=4, channel_mult=(1,), blocks=1, attention=()), Preconditioning())
    ConsistencyModel(config, card={"name": "pets"}).save_pretrained(cached(cache, "someone/pets"))
    assert atonce.load("someone/pets").card["name"] == "pets"


def test_what_is_not_in_the_cache_says_so_in_one_line(cache: Path) -> None:
    with pytest.raises(
        ModelFileError, match="someone/absent .*cannot be reached and it is not in the cache: fetch it once"
    ) as caught:
        atonce.load("someone/absent")
    assert "\n" not in str(caught.value)


def test_a_cache_without_the_weights_says_so(cache: Path) -> None:
    (cached(cache, "someone/half") / "model_index.json").write_text("{}")
    with pytest.raises(ModelFileError, match="no weights|without its weights|is a pipeline without unet"):
        atonce.load("someone/half")


def stand_in(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **more: Any) -> str:
        asked.append(more)
        return str(answer(repo_id, more))

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_code_is_never_asked_for_and_old_weights_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pipeline(tmp_path / "model")
    asked = stand_in(monkeypatch, lambda *_: folder)
    assert fetch("someone/pipeline") == folder
    (only,) = asked
    assert "*.py" in only["ignore_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", ".py")) for pattern in only["allow_patterns"])
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    fetch("someone/pipeline")
    assert "*/*.bin" in asked[2]["allow_patterns"]
    assert "trust_remote_code" not in str(asked)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RepositoryNotFoundError", "no such model, or it is private"),
        ("GatedRepoError", "gated"),
        ("ConnectionError", "cannot be reached"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OSError", "failed: disk on fire"),
    ],
)
def test_every_failure_of_the_client_is_one_line(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Path:
        raise type(name, (Exception,), {})("disk\non fire")

    stand_in(monkeypatch, fail)
    with pytest.raises(ModelFileError, match=f"someone/thing is not a folder here, and .*{text}") as caught:
        fetch("someone/thing")
    assert "\n" not in str(caught.value)


def test_a_repository_of_one_file_of_weights_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "README.md").write_text("hello")
    (folder / "weights.safetensors").write_bytes(b"no header")
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, lambda *_: folder)
    with pytest.raises(ModelFileError, match=r"weights\.safetensors"):
        atonce.load("someone/files")
