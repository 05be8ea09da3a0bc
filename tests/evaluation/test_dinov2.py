from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.evaluation.dinov2 import MEAN, STD, dinov2
from atonce.evaluation.extractors import open_extractor


def pictures(n: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def transformers() -> Any:
    shim = importlib.util.spec_from_file_location("torchvision_shim", Path(__file__).with_name("torchvision_shim.py"))
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    if importlib.util.find_spec("torchvision") is not None:  # transformers imports it where it is there
        assert shim is not None
        assert shim.loader is not None
        module = importlib.util.module_from_spec(shim)
        shim.loader.exec_module(module)
        module.prepare()
    return importlib.import_module("transformers")


@pytest.fixture
def tiny(transformers: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, initializer_range=0.5
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_features_are_the_class_token(transformers: Any, tiny: Path) -> None:
    extractor = dinov2(tiny)
    assert (extractor.name, extractor.dimension, extractor.batch, extractor.head) == ("DINOv2 ViT-16/14", 16, 32, None)
    images = pictures(3)
    x = F.interpolate(images / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = transformers.Dinov2Model.from_pretrained(tiny).eval()(pixel_values=x).pooler_output
    got = extractor(images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert got.dtype == torch.float32
    assert float(got.std(0).min()) > 0
    grey = pictures(1, 1)
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_the_digest_is_of_weights_and_settings(tiny: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dinov2(tiny).digest
    assert open_extractor(f"dinov2:{tiny}", (3, 32, 32)).digest == first
    monkeypatch.setenv("ATONCE_DINOV2", str(tiny))
    assert open_extractor("dinov2", (1, 28, 28), batch=4).digest == first
    facts = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**facts, "transformers_version": "5.0.0"}))
    assert dinov2(tiny).digest == first
    (tiny / "config.json").write_text(json.dumps({**facts, "layer_norm_eps": 1e-3}))
    assert dinov2(tiny).digest != first
    (tiny / "config.json").write_text(json.dumps(facts))
    network = transformers.Dinov2Model.from_pretrained(tiny)
    with torch.no_grad():
        network.layernorm.bias += 1
    network.save_pretrained(tiny)
    assert dinov2(tiny).digest != first


def test_folders_that_will_not_do(tiny: Path, transformers: Any) -> None:
    config = json.loads((tiny / "config.json").read_text())

    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said) as problem:
            dinov2(tiny)
        assert "\n" not in str(problem.value)
        assert "effnet-lite0 and pixels run without" in str(problem.value)

    (tiny / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    refused("holds a network of kind 'vit', not dinov2")
    (tiny / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("lacks .* tensors")
    (tiny / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    refused("lacks .* tensors|cannot be read")
    # Code beside the weights is never run.
    (tiny / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": {"AutoConfig": "run.Config", "AutoModel": "run.Model"}})
    )
    (tiny / "run.py").write_text("raise SystemExit('code was run')")
    refused("cannot be read|of kind")
    (tiny / "config.json").write_text(json.dumps(config))
    weights = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(weights[:-40])
    refused("cannot be read")
    (tiny / "model.safetensors").unlink()
    refused("has no model.safetensors: download facebook/dinov2-large elsewhere")
    (tiny / "config.json").unlink()
    refused("has no config.json")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is there, for what is said before it is used."""
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(Dinov2Model=object()))  # type: ignore[arg-type]


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch)
    monkeypatch.delenv("ATONCE_DINOV2", raising=False)
    asked: list[tuple[str, str, bool]] = []

    def download(repository: str, name: str, *, local_files_only: bool) -> str:
        asked.append((repository, name, local_files_only))
        raise OSError("Name or service\nnot known")

    hub = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"facebook/dinov2-large cannot be downloaded \(Name or service not known\): .*dinov2:"
    ):
        dinov2()
    assert asked == [("facebook/dinov2-large", "config.json", True), ("facebook/dinov2-large", "config.json", False)]
    with pytest.raises(InputError, match="has no config.json"):
        dinov2(tmp_path)
    with pytest.raises(InputError, match="at least 1, got 0"):
        dinov2(tmp_path, batch=0)


def test_without_the_library_or_with_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install transformers.*effnet-lite0 and pixels run without"):
        open_extractor("dinov2", (3, 32, 32))

    class Broken:
        @property
        def Dinov2Model(self) -> None:
            raise ModuleNotFoundError("Could not import") from RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "transformers", Broken())  # type: ignore[arg-type]
    with pytest.raises(
        MissingExtraError, match="cannot be imported .*torchvision::nms.*the torchvision of this torch, or none"
    ):
        open_extractor("dinov2", (3, 32, 32))
    with pytest.raises(InputError, match="extractor dinov2 takes grey or RGB images"):
        open_extractor("dinov2", (4, 32, 32))
    assert issubclass(ModelFileError, InputError)
