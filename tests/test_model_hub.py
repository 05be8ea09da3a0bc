"""Models from and to the hub, with a stand-in for its client: no test needs a network."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atonce.core.errors import MissingExtraError, ModelFileError
from atonce.model import ConsistencyModel, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(size=4, image_channels=1, channels=4, channel_mult=(1,), blocks=1, attention=())


def make() -> ConsistencyModel:
    return ConsistencyModel(ModelConfig(NETWORK, Preconditioning()), card={"name": "pets"})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fake_hub(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    hub = types.ModuleType("huggingface_hub")
    for name, function in functions.items():
        setattr(hub, name, function)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_fetching(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    fake_hub(monkeypatch, snapshot_download=lambda repo, allow_patterns: (asked.append((repo, allow_patterns)), str(folder))[1])
    assert ConsistencyModel.from_pretrained("someone/pets-that-are-not-here").card["name"] == "pets"
    ((repo, patterns),) = asked
    assert repo == "someone/pets-that-are-not-here"
    assert not any("pkl" in p or "bin" in p or ".pt" in p for p in patterns)


def test_fetching_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no\nnetwork")

    fake_hub(monkeypatch, snapshot_download=fail)
    with pytest.raises(
        ModelFileError, match="someone/not-here is not a folder here, and fetching it from the hub failed: no network"
    ):
        ConsistencyModel.from_pretrained("someone/not-here")


def test_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        ConsistencyModel.from_pretrained("someone/not-here")


def test_pushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            made.append(token)

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
            made.append((repo_id, private, exist_ok))
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            shutil.copytree(folder_path, tmp_path / "uploaded")

    fake_hub(monkeypatch, HfApi=Api)
    model = make()
    assert model.push_to_hub("someone/pets", private=True, token="t") == "https://hub/someone/pets"
    assert made == ["t", ("someone/pets", True, True)]
    assert same(ConsistencyModel.from_pretrained(tmp_path / "uploaded").network.state_dict(), model.network.state_dict())
