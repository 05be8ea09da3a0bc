"""The verbs of the registry, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atonce.cli import main


def test_promote_show_and_roll_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = str(tmp_path / "models")
    assert main(["gallery", "promote", "digits", "--name", "small", "--registry", registry]) == 0
    assert "small is at version 0001: the first version, measured: frechet" in capsys.readouterr().out

    assert main(["gallery", "promote", "fashion-mnist", "--name", "small", "--registry", registry]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no record of the candidate may be compared with one of the version in use: the extractors differ" in said
    words = ["gallery", "promote", "fashion-mnist", "--name", "small", "--registry", registry, "--force", "a trial", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "0002"

    assert main(["gallery", "versions", f"{registry}/small"]) == 0
    table = capsys.readouterr().out
    assert "small: version 0002 is in use" in table
    assert " * 0002  whole" in table
    assert "force      0002  a trial" in table

    assert main(["gallery", "roll-back", f"{registry}/small", "--reason", "wrong data"]) == 0
    assert "small is back at version 0001 (was 0002): wrong data" in capsys.readouterr().out
    assert main(["gallery", "versions", registry, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["small"]
    assert [each["in_use"] for each in found["versions"]] == [True, False]
    assert [each["action"] for each in found["history"]] == ["promote", "force", "roll-back"]

    assert main(["gallery", "roll-back", f"{registry}/small"]) == 2
    assert "nothing to go back to" in capsys.readouterr().err
    assert main(["gallery", "versions", str(tmp_path)]) == 2
    assert "is no registry" in capsys.readouterr().err


def test_the_gallery_itself_is_still_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery"]) == 0
    assert "digits" in capsys.readouterr().out
