"""The verb ``eval``: options reach the evaluation, the record is kept, bad input is one line before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atonce import cli
from atonce.core.records import Record
from atonce.data.sources import open_data
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.unet import UNet, UNetConfig
from atonce.preconditioning import Preconditioning

NETWORK = UNetConfig(size=8, image_channels=1, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=10)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["eval", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status, out, err = call(capsys, *words)
    assert status == 2, (out, err)
    assert not out
    (line,) = err.strip().splitlines()
    return line


def make(kind: str, **changes: Any) -> ConsistencyModel:
    form = Preconditioning("edm", 0.5, 0.0) if kind == "denoiser" else Preconditioning("boundary", 0.5, 0.002)
    network = UNet(NETWORK, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return ConsistencyModel(ModelConfig(NETWORK, form, kind=kind, **changes), network)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make("consistency", guidance=Guidance("fixed", (1.5,)))
    model.card.update({"name": "tiny", "teacher": f"{tmp_path / 'teacher'}, sha256 00"})
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_record_for_people_for_programs_and_in_the_model(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "record.json"
    words = [str(folder), "--n", "60", "--metrics", "frechet", "precision_recall", "--sigmas", "80", "0.5"]
    words += ["--labels", "balanced", "--seed", "3", "--device", "cpu"]
    status, said, err = call(capsys, *words, "--out", str(out), "--append-to-model")
    assert status == 0, err
    record = Record.load(out)
    assert (record.samples, record.seed, record.steps, record.sigmas, record.labels) == (60, 3, 2, (80.0, 0.5), "balanced")
    assert record.guidance == 1.5
    assert said.startswith(f"frechet: {record.metrics['frechet'].value:.5g}")
    assert f"kept in {folder}, with 0 other records" in said
    assert "sampling  60/60 img" in err
    assert ConsistencyModel.from_pretrained(folder).records == [record]
    assert "| frechet |" in (folder / "README.md").read_text()
    status, said, err = call(capsys, *words, "--json", "--quiet", "--out", str(out))
    assert status == 0
    assert err == ""
    again = json.loads(said)
    assert again["metrics"] == record.as_dict()["metrics"]


def test_classes_by_name_or_number_and_a_part_of_the_data(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, said, _ = call(
        capsys, str(folder), "--n", "50", "--metrics", "frechet", "--labels", "7", "--split", "test", "--json", "--quiet"
    )
    assert status == 0
    record = Record.from_dict(json.loads(said))
    assert (record.labels, record.split, record.reference.count) == ("all 7", "test", 360)


def test_the_teacher_of_the_card_or_of_the_command(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = [str(folder), "--n", "20", "--metrics", "teacher_distance", "--probes", "4", "--teacher-steps", "4", "--quiet"]
    line = refused(capsys, *words)
    assert f"the card names the teacher '{tmp_path / 'teacher'}', which is not here: give --teacher" in line
    make("denoiser", guidance=Guidance("free")).save_pretrained(tmp_path / "teacher")
    status, by_card, err = call(capsys, *words)
    assert status == 0, err
    assert by_card.startswith("teacher_distance: ")
    assert "n=4" in by_card
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    status, by_name, _ = call(capsys, *words, "--teacher", str(tmp_path / "elsewhere"))
    assert status == 0
    assert by_name == by_card
    assert "--teacher is for the metric teacher_distance" in refused(capsys, str(folder), "--teacher", "digits")


def test_a_folder_of_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i, image in enumerate(open_data("digits", split="test").images[:30]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i:02d}.png")
    status, said, err = call(capsys, str(tmp_path / "images"), "--metrics", "frechet", "--quiet")
    assert status == 0, err
    assert "singular" in said
    assert "is no model folder that a record could be kept in" in refused(
        capsys, str(tmp_path / "images"), "--metrics", "frechet", "--append-to-model"
    )


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    np.savez(tmp_path / "mu.npz", mu=np.zeros(3), sigma=np.eye(3))
    base = [str(folder), "--n", "40", "--quiet", "--metrics", "frechet"]
    for words, said in (
        ([str(folder), "--metrics", "fit"], "unknown metric fit: choose from frechet"),
        ([str(folder), "--metrics", "fid"], "fid means the Inception weights"),
        ([*base, "--n", "1"], "n must be at least 2 samples, got 1"),
        ([*base, "--labels", "cat"], "there is no class 'cat'"),
        ([*base, "--labels", "11"], "label 11 is out of range"),
        ([*base, "--guidance", "3"], "scale 1.5 was fixed when this model was distilled"),
        ([*base, "--ema", "0.5"], "ema '0.5' is not in this model"),
        ([*base, "--reference", str(tmp_path / "mu.npz")], "has 3 features, extractor pixels gives 64"),
        ([*base, "--out", str(tmp_path)], "is a folder: give the name of a file"),
        ([*base, "--out", str(mine)], "exists and is no record: choose another name, nothing was changed"),
        ([*base, "--data", "no-such-data"], "no-such-data"),
        (["digits", "--metrics", "frechet", "--append-to-model"], "is no model folder that a record could be kept in"),
    ):
        assert said in refused(capsys, *words), words
    assert mine.read_text() == '{"mine": 1}'
