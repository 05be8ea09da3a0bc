"""Opening a model by whatever a user has, and one clear line where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import atonce
from atonce.core.errors import ModelFileError
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.networks.unet import UNetConfig

NETWORK = UNetConfig(8, 1, channels=8, channel_mult=(1,), blocks=1, attention=())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = atonce.recipes.ict(images=128, batch=16, network=NETWORK, s1=20, ema=(0.5, 0.99), ema_rampup=0.0)
    made = atonce.train(recipe, "digits", folder, quiet=True, log_every=64, evaluate_every=64, evaluate_images=16)
    assert made.finished
    assert made.folder == folder
    return folder


def test_a_run_its_model_and_its_best_all_open(run: Path) -> None:
    for path in (run, str(run), run / "model", run / "best"):
        model = atonce.load(path)
        assert model.shape == (1, 8, 8)
        assert model.ema_names == ["0.99"]
        assert model.sample(2).shape == (2, 1, 8, 8)


def test_a_run_opens_as_its_last_model(run: Path) -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atonce.load(run)(x, 3.0), atonce.load(run / "model")(x, 3.0))


def test_every_averaged_set_of_weights_samples_differently(run: Path) -> None:
    model = atonce.load(run)
    assert not torch.equal(model.sample(2), model.sample(2, ema="0.99"))
    with pytest.raises(ValueError, match=r"'0\.5' is not in this model; present: 0\.99"):
        model.sample(2, ema="0.5")


def test_init_starts_from_the_weights_of_a_run(run: Path, tmp_path: Path) -> None:
    """With a rate that moves nothing, the run's model is the model that it started from."""
    recipe = atonce.recipes.ict(images=16, batch=16, network=NETWORK, s1=20, lr=1e-12, init=str(run), curriculum="fixed")
    made = atonce.train(recipe, "digits", tmp_path / "tuned", quiet=True, evaluate_images=16)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made.model(x, 3.0), atonce.load(run)(x, 3.0), atol=1e-6)


def test_init_with_another_network_says_what_differs(run: Path, tmp_path: Path) -> None:
    wider = UNetConfig(8, 1, channels=12, channel_mult=(1,), blocks=1, attention=())
    recipe = atonce.recipes.ict(images=16, batch=16, network=wider, s1=20, init=str(run), curriculum="fixed")
    with pytest.raises(ValueError, match="channels: 8 there, 12 here"):
        atonce.train(recipe, "digits", tmp_path / "tuned", quiet=True)
    assert not (tmp_path / "tuned").exists()


def test_a_run_without_a_model_yet_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text((run / "recipe.json").read_text())
    with pytest.raises(ModelFileError, match="has no model yet"):
        atonce.load(tmp_path)


@pytest.mark.parametrize("name", ["digitz", "runs/none/at/all", "./nowhere", ""])
def test_an_unknown_name_lists_what_there_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        atonce.load(name or "nothing")
    assert "\n" not in str(caught.value)
    assert "digits" in str(caught.value)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        atonce.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"library_name": "diffusers"}))
    with pytest.raises(ModelFileError, match="not the configuration of an atonce model"):
        atonce.load(tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelFileError, match="cannot open"):
        atonce.load(tmp_path / "model.pt")


def test_the_gallery_is_in_the_package_and_opens() -> None:
    assert "digits" in gallery_names()
    assert (gallery_folder() / "digits" / "README.md").exists()
    model = atonce.load("digits")
    assert model.shape == model.image_shape == (1, 8, 8)
    assert model.records
    images = model.sample(4)
    assert images.abs().max() <= 1
    assert torch.equal(images, model.sample(4))
