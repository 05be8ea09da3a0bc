"""A download of LPIPS's weights that fails is one line; one that comes shows what torch.hub has to say of it."""

from __future__ import annotations

import contextlib
import io
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from atonce.core.errors import InputError
from atonce.objectives import lpips_weights
from atonce.objectives.lpips_weights import _Announced, _download


def test_nothing_is_said_of_a_download_that_does_not_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch.hub itself, without a network."""

    def no_network(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="which cannot be fetched here .Name or service not known.: bring https") as caught:
        _download()
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_a_download_that_comes_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def comes(*_: Any, **__: Any) -> dict[str, Any]:
        sys.stdout.write('Downloading: "there" to here\n')
        sys.stderr.write("  0%\r")
        sys.stderr.write("100%\n")
        sys.stderr.flush()
        return {}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", comes)
    assert lpips_weights._download() == {}
    assert capsys.readouterr() == ("", 'Downloading: "there" to here\n  0%\r100%\n')


def test_everything_else_passes() -> None:
    there = io.StringIO()
    with contextlib.redirect_stderr(_Announced(there)):  # type: ignore[type-var]
        print("a warning", file=sys.stderr)
        assert not sys.stderr.isatty()
    assert there.getvalue() == "a warning\n"
