"""Promotion as the documents describe it: their commands run as they stand, and the package's own models can take part."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import atonce
from atonce.cli import main
from atonce.core.errors import InputError
from atonce.exchange.gallery import gallery_names
from atonce.exchange.promotion import DECIDING, judge
from atonce.exchange.registry import current, history, promote
from atonce.model_files import model_identity

SERVING = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def documented() -> list[list[str]]:
    """The commands of the section about versions that end by themselves."""
    section = re.search(r"^## Versions\n(.*?)^## ", SERVING.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (atonce .*)$", section.group(1), re.M)]
    return [words for words in commands if words[0] != "serve"]


def test_the_documented_commands_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = documented()
    assert [words[:2] for words in commands] == [
        ["gallery", "promote"],
        ["eval", "runs/new"],
        ["gallery", "promote"],
        ["gallery", "versions"],
        ["gallery", "roll-back"],
        ["eval", "models/digits"],
    ]
    monkeypatch.chdir(tmp_path)
    new = atonce.load("digits")
    with torch.no_grad():
        for value in new.network.parameters():
            value.mul_(1.0001)
    new.records.clear()
    new.save_pretrained(tmp_path / "runs" / "new")
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
    assert [each["action"] for each in history(tmp_path / "models" / "digits")] == ["promote", "promote", "roll-back"]
    assert current(tmp_path / "models" / "digits")[0] == "0001"
    measured = atonce.load(tmp_path / "models" / "digits").records
    assert len(measured) == len(atonce.load("digits").records) + 1, "a version in use was measured where it is"


@pytest.mark.parametrize("name", gallery_names())
def test_models_of_the_package_can_be_compared_with(name: str) -> None:
    model = atonce.load(name)
    named = [record for record in model.records if record.model is not None]
    assert {str(record.model) for record in named} == {model_identity(model)}
    assert any(record.metrics[metric].interval for record in named for metric in DECIDING if metric in record.metrics)


def test_refusals_name_the_option_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    assert "--append-to-model" in capsys.readouterr().out
    assert "--append-to-model" in judge([], [], "a 1", "b 2").reason
    model = atonce.load("digits")
    model.records.clear()
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"measure it \(atonce eval MODEL --append-to-model\)"):
        promote(tmp_path / "bare", tmp_path / "models", "digits")
    for text in (SERVING.read_text(encoding="utf-8"), judge.__doc__ or ""):
        assert "--keep" not in text
