"""Which images a model is inspected with: those its card names where they can be opened, or what a user names, checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import atonce
from atonce.core.errors import DataError
from atonce.data.sources import open_data
from atonce.reports.inspection_material import material_of, open_material


def folder(path: Path, n: int = 12, size: int = 8, classes: int = 0) -> Path:
    for i in range(n):
        below = path / f"c{i % classes}" if classes else path
        below.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(below / f"{i}.png")
    return path


def test_the_card_of_a_gallery_model_leads_to_its_data() -> None:
    material, why = material_of(atonce.load("digits"))
    assert why == ""
    assert material is not None
    assert (len(material.training), len(material.held_out)) == (1437, 360)
    assert material.unseen
    assert material.matches is True


def test_a_card_that_names_no_data_says_so(inspected: ModuleType) -> None:
    assert material_of(inspected.untrained()) == (None, "the model's card does not name its training data")


def test_a_card_that_names_a_folder_says_so(inspected: ModuleType) -> None:
    model = inspected.untrained()
    model.card["data"] = "holidays (12 images, sha256 0123456789abcdef)"
    material, why = material_of(model)
    assert material is None
    assert "'holidays', which is not a data set that is known by name" in why


def test_data_that_are_not_on_this_machine_are_named(
    inspected: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATONCE_DATA", str(tmp_path))
    model = inspected.untrained(size=28)
    model.card["data"] = "fashion-mnist (60,000 images, sha256 a8007d7be041707b)"
    material, why = material_of(model)
    assert material is None
    assert "fashion-mnist is not in" in why


def test_images_that_were_made_smaller_in_training_are_made_smaller_again(inspected: ModuleType) -> None:
    small = open_data("digits", size=4)
    model = inspected.untrained(size=4)
    model.card["data"] = f"digits (1,437 images, sha256 {small.digest()[:16]})"
    material, why = material_of(model)
    assert why == ""
    assert material is not None
    assert material.training.shape == (1, 4, 4)
    assert material.matches is True
    model.card["data"] = "digits (1,437 images, sha256 0123456789abcdef)"
    assert "is not what its card names" in material_of(model)[1]


def test_a_folder_without_a_test_split_has_no_unseen_images(inspected: ModuleType, tmp_path: Path) -> None:
    material = open_material(folder(tmp_path / "a"), inspected.untrained(channels=1), channels=1)
    assert not material.unseen
    assert material.held_out is material.training
    assert material.matches is None
    images, labels = material.real(5)
    assert len(images) == 5
    assert labels is None


def test_other_data_than_the_cards_are_known_by_their_checksum(inspected: ModuleType, tmp_path: Path) -> None:
    model = inspected.untrained()
    model.card["data"] = "digits (1,437 images, sha256 aff0b0f098228490)"
    assert open_material("digits", model).matches is True
    assert open_material(folder(tmp_path / "a"), model, channels=1).matches is False


def test_a_shape_that_does_not_fit_is_refused_with_the_remedy(inspected: ModuleType) -> None:
    with pytest.raises(DataError, match=r"images of digits are 1x8x8, the model's 3x16x16: .* --size 16 --channels 3"):
        open_material("digits", inspected.untrained(channels=3, size=16))
    assert open_material("digits", inspected.untrained(channels=3, size=16), 16, 3).training.shape == (3, 16, 16)


def test_classes_that_do_not_fit_are_refused(inspected: ModuleType, tmp_path: Path) -> None:
    five = inspected.untrained(labels=5)
    with pytest.raises(DataError, match=r"digits has labels up to 9, the model has 5 classes \(0 to 4\)"):
        open_material("digits", five)
    with pytest.raises(DataError, match="has no labels, the model has 5 classes: give labelled data"):
        open_material(folder(tmp_path / "a"), five, channels=1)
    named = inspected.untrained(labels=2)
    config = dataclasses.replace(named.config, labels=("cat", "dog"))
    named = type(named)(config, named.network)
    with pytest.raises(DataError, match=r"classes of b are c0, c1 \(2\), the model's cat, dog \(2\): they must be the same"):
        open_material(folder(tmp_path / "b", classes=2), named, channels=1)


def test_what_is_not_there_is_refused(inspected: ModuleType) -> None:
    with pytest.raises(DataError, match="neither a known data set"):
        open_material("no/such/folder", inspected.untrained())


def test_one_image_is_too_few(inspected: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        open_material(folder(tmp_path / "a", 1), inspected.untrained(), channels=1)
