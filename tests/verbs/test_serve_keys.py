"""``serve keys``: a key is made, listed and revoked from the command line; the token is shown once."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from atonce import cli
from atonce.serving.errors import ServiceError
from atonce.serving.keys import SCOPES, USUAL_SCOPES, KeyFile


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["serve", "keys", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_make_list_revoke(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    status, out, err = call(capsys, "make", "the web shop", "--keys", str(path), "--quota", "100000/day")
    assert (status, err) == (0, "")
    token = out.splitlines()[0]
    file = KeyFile(path)
    key = file.check(token)
    assert (key.name, key.scopes, key.quota) == ("the web shop", USUAL_SCOPES, "100000/day")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status, out, _ = call(capsys, "list", "--keys", str(path))
    assert status == 0
    assert key.id in out
    assert "active" in out
    assert token.rpartition("_")[2] not in out
    assert key.hash not in out
    status, out, _ = call(capsys, "revoke", key.id, "--keys", str(path))
    assert status == 0
    with pytest.raises(ServiceError, match="was revoked"):
        file.check(token)
    _, out, _ = call(capsys, "list", "--keys", str(path), "--json")
    (entry,) = json.loads(out)["keys"]
    assert (entry["id"], entry["state"]) == (key.id, "revoked")
    assert "hash" not in entry


def test_a_program_reads_the_token_from_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    words = ("make", "ci", "--keys", str(path), "--scopes", "admin", "metrics", "--expires", "2100-01-01", "--json")
    status, out, _ = call(capsys, *words)
    facts = json.loads(out)
    assert status == 0
    assert KeyFile(path).check(facts["token"]).scopes == ("admin", "metrics")
    assert facts["expires"] == "2100-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["make", "shop", "--rate", "often"], "the rate is 'often'"),
        (["make", "shop", "--scopes", "root"], "root"),
        (["make", "shop", "--expires", "2001-01-01"], "is past"),
        (["make", ""], "one line of 1 to 100 characters"),
        (["list"], "cannot read the keys"),
        (["revoke", "0123456789ab"], "cannot read the keys"),
        ([], "'serve keys' needs one of: serve keys make, serve keys list, serve keys revoke"),
        (["break"], "'serve keys' needs one of"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str) -> None:
    path = tmp_path / "keys.json"
    status, out, err = call(capsys, *words, *(["--keys", str(path)] if words and words[0] != "break" else []))
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not path.exists()


def test_the_scopes_of_the_verb_are_those_of_the_service() -> None:
    from typing import get_args

    from atonce.verbs.serve_keys import Scope

    assert get_args(Scope) == SCOPES


def test_keys_need_neither_torch_nor_fastapi(tmp_path: Path) -> None:
    code = f"""
import sys
from atonce.cli import main
assert main(["serve", "keys", "make", "shop", "--keys", {str(tmp_path / "keys.json")!r}]) == 0
assert main(["serve", "keys", "--help"]) == 0
assert not {{"torch", "fastapi", "uvicorn"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
