from __future__ import annotations

import importlib.util
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError, ModelFileError
from atonce.core.files import sha256_file
from atonce.evaluation import inception as module
from atonce.evaluation.extractors import INCEPTION, open_extractor
from atonce.evaluation.inception import DIGEST, FILES, build, inception, library, weights

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity (the extra fid) is not installed"
)
pytestmark = needs_library
PUBLISHED = module.SHA256


@pytest.fixture(scope="session")
def state() -> dict[str, Tensor]:
    """Random weights of the right names and shapes; each layer keeps the size of what goes through."""
    found: dict[str, Tensor] = {}
    lib = library()
    generator = torch.Generator().manual_seed(0)
    for name, like in _shapes(lib).items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(0)
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = 1 + 0.1 * torch.rand(like.shape, generator=generator)
        elif like.ndim > 1:
            found[name] = torch.randn(like.shape, generator=generator) * (2 / like[0].numel()) ** 0.5
        else:
            found[name] = 0.1 * torch.randn(like.shape, generator=generator)
    return found


def _shapes(lib: Any) -> dict[str, Tensor]:
    """The network's tensors, made without memory or values."""
    seen: dict[str, Tensor] = {}
    own = lib.FeatureExtractorInceptionV3.load_state_dict
    downloads = lib.load_state_dict_from_url
    try:
        lib.FeatureExtractorInceptionV3.load_state_dict = lambda network, _: seen.update(network.state_dict())
        lib.load_state_dict_from_url = lambda *_, **__: {}
        with torch.device("meta"):
            lib.FeatureExtractorInceptionV3("shapes", ["2048"])
    finally:
        lib.FeatureExtractorInceptionV3.load_state_dict = own
        lib.load_state_dict_from_url = downloads
    return seen


@pytest.fixture(scope="session")
def published(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file as it is published, and its checksum."""
    path = tmp_path_factory.mktemp("inception") / FILES[0]
    torch.save(state, path)
    return path, sha256_file(path)


@pytest.fixture(autouse=True)
def _elsewhere(published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHA256", published[1])
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("ATONCE_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)


def _no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("Name or service not known")


def pictures(n: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_and_scores_are_those_of_torch_fidelity(published: tuple[Path, str]) -> None:
    lib = library()
    theirs = lib.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(published[0])
    )
    extractor = inception(published[0])
    assert (extractor.name, extractor.digest, extractor.dimension, extractor.batch) == (INCEPTION, DIGEST, 2048, 64)
    images = pictures(3)
    features, scores = theirs(images)
    assert float(features.std()) > 0.05
    got = extractor(images)
    assert got.dtype == torch.float32
    assert torch.equal(got, features)
    assert extractor.head is not None
    torch.testing.assert_close(extractor.head(got), scores.double(), rtol=1e-4, atol=1e-5)
    grey = pictures(1, 1)
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_resizing_is_tensorflows() -> None:
    """Bilinear with output pixel i at input i · 32 / 299: the first pixel is the input's, the last ones repeat its edge."""
    resize = library().interpolate_bilinear_2d_like_tensorflow1x
    row = torch.arange(32.0).expand(1, 1, 32, 32)
    got = resize(row, size=(299, 299), align_corners=False)[0, 0, 0]
    expected = np.minimum(np.arange(299) * 32 / 299, 31)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


def test_the_whole_package_is_not_imported(published: tuple[Path, str]) -> None:
    before = {name for name in sys.modules if name.partition(".")[0] in ("torch_fidelity", "torchvision")}
    inception(published[0])
    after = {name for name in sys.modules if name.partition(".")[0] in ("torch_fidelity", "torchvision")}
    assert after == before


def test_the_file_is_converted_once(published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATONCE_INCEPTION", str(published[0]))
    first = open_extractor("inception", (3, 32, 40))
    (kept,) = (tmp_path / "cache" / "inception").iterdir()
    assert kept.name == f"{published[1]}.safetensors"
    monkeypatch.delenv("ATONCE_INCEPTION")
    monkeypatch.setattr(torch, "load", _only_memory(torch.load))
    second = open_extractor("inception", (3, 32, 40))
    named = open_extractor(f"inception:{kept}", (3, 32, 40), batch=2)
    assert named.batch == 2
    images = pictures(2)
    expected = first(images)
    for extractor in (second, named):
        assert torch.equal(extractor(images), expected)
        assert extractor.digest == first.digest
    # A damaged one is made again where the published file is at hand.
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="cannot be used"), pytest.raises(InputError, match="cannot be downloaded"):
        inception()
    with pytest.warns(UserWarning, match="cannot be used"), pytest.raises(ModelFileError, match="or is damaged"):
        inception(kept)


def _only_memory(load: Any) -> Any:
    """torch.load that refuses files: what is kept is no pickle."""

    def restricted(file: Any, *args: Any, **options: Any) -> Any:
        assert not isinstance(file, str | Path)
        return load(file, *args, **options)

    return restricted


def test_the_usual_downloads_are_found(published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = library()
    asked: list[tuple[str, str]] = []

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(published[0].read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    found = weights(None, lib)
    assert asked == [(lib.URL_INCEPTION_V3, published[1])]
    assert len(found) == 566
    monkeypatch.setenv("ATONCE_CACHE", str(tmp_path / "another"))
    weights(None, lib)  # from torch.hub's folder
    assert len(asked) == 1


def test_files_that_will_not_do(published: tuple[Path, str], state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be downloaded .*Name or service not known.*ATONCE_INCEPTION.*effnet-lite0"):
        inception()
    with pytest.raises(InputError, match="do not exist: download"):
        inception(tmp_path / "none.pth")
    other = tmp_path / "other.pth"
    torch.save({**state, "fc.bias": state["fc.bias"] + 1}, other)
    with pytest.raises(ModelFileError, match="the published Inception weights have .*: with others it is not FID"):
        inception(other)
    with pytest.raises(ModelFileError, match="the weights do not fit the Inception network of FID"):
        build(library(), {name: value for name, value in state.items() if name != "fc.bias"})
    with pytest.raises(InputError, match="at least 1, got 0"):
        inception(published[0], batch=0)
    for name in ("inception", f"inception:{published[0]}"):
        with pytest.raises(InputError, match="extractor inception takes grey or RGB images"):
            open_extractor(name, (4, 32, 32))


def test_without_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atonce\[fid\]'.*effnet-lite0 and pixels run without"):
        open_extractor("inception", (3, 32, 32))


def test_the_published_checksum_is_in_the_names() -> None:
    assert len(PUBLISHED) == 64
    assert all(f"-{PUBLISHED[:8]}.pth" in name for name in FILES)
    assert library().URL_INCEPTION_V3.endswith(f"/{FILES[0]}")
