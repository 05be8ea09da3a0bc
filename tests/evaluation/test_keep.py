from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.core.records import Metric, Record, Source, make_record
from atonce.evaluation.keep import keep_record
from atonce.model import ConsistencyModel, ModelConfig
from atonce.model_files import model_identity
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(size=4, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = ConsistencyModel(ModelConfig(NETWORK, Preconditioning("boundary", 0.5, 0.002)), card={"name": "tiny"})
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def record(folder: Path, value: float = 1.25, **changes: Any) -> Record:
    made = make_record(
        {"frechet": Metric(value, (1.0, 1.5), unit="squared distance")},
        device="cpu",
        extractor=Source("pixels", "aa"),
        reference=Source("digits", "bb", 1797),
        data=Source("digits", "bb", 1797),
        samples=1000,
        seed=0,
        steps=1,
        calls=1,
        model=model_identity(ConsistencyModel.from_pretrained(folder)),
    )
    return dataclasses.replace(made, **changes)


def test_the_folder_keeps_the_record_and_its_card_shows_it(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    assert "Measured" not in (folder / "README.md").read_text()
    made = record(folder)
    assert keep_record(made, folder) == 1
    assert ConsistencyModel.from_pretrained(folder).records == [made]
    assert "| frechet | 1.25 | 1 to 1.5 | 1 | 1 | pixels | digits | 1000 |" in (folder / "README.md").read_text()
    assert (folder / "model.safetensors").read_bytes() == weights


def test_the_same_measurement_takes_the_place_of_the_earlier_one(folder: Path) -> None:
    keep_record(record(folder, 1.25), folder)
    keep_record(record(folder, 1.125, steps=2, calls=2), folder)
    assert keep_record(record(folder, 1.0, device="cuda", commit="ff"), folder) == 2
    kept = json.loads((folder / "records.json").read_text())
    assert [(r["steps"], r["metrics"]["frechet"]["value"]) for r in kept] == [(2, 1.125), (1, 1.0)]
    keep_record(record(folder, 2.0, guidance=2.0), folder)
    assert len(ConsistencyModel.from_pretrained(folder).records) == 3


def test_records_of_other_weights_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    made = record(folder)
    model = ConsistencyModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.network.parameters()).add_(1.0)
    model.save_pretrained(tmp_path / "other")
    before = (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(InputError, match="the record is of tiny, sha256 .* holds tiny, sha256 .*: nothing was changed"):
        keep_record(made, tmp_path / "other")
    with pytest.raises(InputError, match="the record is of given images"):
        keep_record(dataclasses.replace(made, model=None), folder)
    assert (tmp_path / "other" / "README.md").read_text() == before
    with pytest.raises(InputError, match="is not a model folder of atonce"):
        keep_record(made, tmp_path)
