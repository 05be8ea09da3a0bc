"""The verbs about data, as they are typed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from atonce.cli import main
from atonce.data.sources import open_data


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    for name in ("train", "test"):
        (place / name).mkdir(parents=True)
    for i in range(6):
        values = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(values).resize((12, 12), Image.Resampling.BICUBIC).save(content, "PNG")
        for name in [f"train/{i}.png"] + ["train/twice.png"] * (i == 0) + ["test/leak.png"] * (i == 1):
            (place / name).write_bytes(content.getvalue())
    (place / "train" / "bad.png").write_bytes(b"x")
    return place


def test_check_says_what_it_finds(folder, capsys):
    assert main(["data", "check", str(folder), "--quiet"]) == 0
    text = capsys.readouterr().out
    for part in ("1 of 8 pictures cannot be read", "0.png = twice.png", "1.png = leak.png of the test data", "sigma_data"):
        assert part in text
    assert main(["data", "check", str(folder), "--strict", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["bad"][0][0] == "bad.png"
    assert main(["data", "check", "digits", "--strict", "--quiet"]) == 0


def test_pack_leaves_out_what_is_asked(folder, tmp_path, capsys):
    out = tmp_path / "d.zip"
    assert main(["data", "pack", str(folder), str(out), "--drop", "corrupt", "exact", "leak", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["left_out"] == {"bad.png": "corrupt", "twice.png": "exact", "1.png": "leak"}
    assert len(open_data(out)) == 5
    assert main(["data", "pack", str(folder), str(out), "--quiet"]) == 2
    assert "nothing is written over" in capsys.readouterr().err


def test_pack_shows_what_was_done(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder), str(tmp_path / "d.npz"), "--size", "8", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "6 pictures of 8 x 8, RGB; 2 left out" in text
    assert "atonce train" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "check", "nowhere"], "neither a known data set"),
        (["data", "check", "digits", "--near", "3"], "limit of near-duplicates is 3"),
        (["data", "pack", "digits", "d.tar"], "neither a .zip nor an .npz"),
        (["data", "pack", "digits", "d.zip", "--split", "all", "--drop", "leak"], "needs test data to compare with"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
