"""Opening a model by whatever a user has, and one clear line where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import atonce
from atonce.core.errors import ModelFileError
from atonce.exchange.gallery import gallery_folder, gallery_names
from atonce.exchange.open import open_model
from atonce.model_files import model_card
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
        assert model.ema_names == ["0.5", "0.99"]
        assert model.sample(2).shape == (2, 1, 8, 8)


def test_a_run_opens_as_its_last_model(run: Path) -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atonce.load(run)(x, 3.0), atonce.load(run / "model")(x, 3.0))


def test_every_averaged_set_of_weights_samples_differently(run: Path) -> None:
    model = atonce.load(run)
    assert not torch.equal(model.sample(2), model.sample(2, ema="0.99"))
    assert torch.equal(model.sample(2), model.sample(2, ema="0.5"))
    with pytest.raises(ValueError, match=r"'0\.9' is not in this model; present: 0\.5, 0\.99"):
        model.sample(2, ema="0.9")


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
    (tmp_path / "model.pt").write_bytes(b"just text")
    with pytest.raises(ModelFileError, match="cannot open .*no kind of file that this version knows"):
        atonce.load(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelFileError, match="truncated, damaged"):
        atonce.load(tmp_path / "model.pt")


def test_the_gallery_is_in_the_package_and_opens() -> None:
    assert "digits" in gallery_names()
    assert (gallery_folder() / "digits" / "README.md").exists()
    for name in gallery_names():  # the page that people see is that of the model
        assert (gallery_folder() / name / "README.md").read_text() == model_card(open_model(name))
    model = atonce.load("digits")
    assert model.shape == model.image_shape == (1, 8, 8)
    assert model.records
    images = model.sample(4)
    assert images.abs().max() <= 1
    assert torch.equal(images, model.sample(4))


def test_a_run_that_was_stopped_opens_as_its_best_so_far(run: Path, tmp_path: Path) -> None:
    import shutil

    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "model")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(atonce.load(stopped)(x, 3.0), atonce.load(run / "best")(x, 3.0))
    shutil.rmtree(stopped / "best")
    with pytest.raises(ModelFileError, match="stopped before its first evaluation; resume it"):
        atonce.load(stopped)


def test_a_damaged_model_of_a_run_is_named_and_not_replaced_by_another(run: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    weights = damaged / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelFileError, match=r"model/model\.safetensors is damaged"):
        atonce.load(damaged)


def test_the_gallery_wins_over_a_folder_that_is_no_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the data of the same name, in the folder where the command is given."""
    import shutil

    from atonce.exchange import open as opening

    gallery = tmp_path / "gallery"
    shutil.copytree(run / "model", gallery / "tiny")
    monkeypatch.setattr(opening, "gallery_names", lambda: ["tiny"])
    monkeypatch.setattr(opening, "gallery_folder", lambda: gallery)
    (tmp_path / "work" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert atonce.load("tiny").card["name"] == "tiny"
    shutil.copytree(run, "tiny", dirs_exist_ok=True)
    (tmp_path / "work" / "tiny" / "model" / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"no config\.json"):  # now it is a run, and the one that is meant
        atonce.load("tiny")


def test_what_could_be_a_hub_id_says_what_it_would_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r"there is no model 'runs/dmeo'.*as a hub id it needs more: .*huggingface_hub"):
        atonce.load("runs/dmeo")
    (tmp_path / "runs").mkdir()  # then it is meant as a path
    with pytest.raises(ModelFileError, match="give a run folder, a model folder or a hub id"):
        atonce.load("runs/dmeo")


def test_names_that_no_file_system_takes() -> None:
    for name in ("x" * 5000, "a\0b", "x" * 300 + "/y"):
        with pytest.raises(ModelFileError, match="there is no model") as caught:
            atonce.load(name)
        assert len(str(caught.value)) < 1000
