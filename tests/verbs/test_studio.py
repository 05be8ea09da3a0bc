"""``atonce studio``: what is refused before anything starts, and what reaches the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

from fastapi import FastAPI

from atonce import cli
from atonce.core.errors import InputError
from atonce.serving import run
from atonce.serving.settings import ServeSettings
from atonce.studio.mount import mount


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is called with, instead of a server."""
    calls: list[Any] = []

    def serve(settings: ServeSettings, say: Any = None, extend: Any = None) -> int:
        calls.append((settings, say, extend))
        return 0

    monkeypatch.setattr(run, "serve", serve)
    return calls


def test_it_serves_two_models_with_the_page(served: list[Any]) -> None:
    assert cli.main(["studio", "--no-browser", "--port", "0"]) == 0
    ((settings, say, extend),) = served
    assert (settings.models, settings.studio, settings.host) == (("digits", "fashion-mnist"), True, "127.0.0.1")
    assert extend is mount
    assert say("http://127.0.0.1:1") == "atonce: the studio is at http://127.0.0.1:1/studio/ (Ctrl-C ends it)"


def test_a_program_gets_the_addresses(served: list[Any], tmp_path: Path) -> None:
    assert cli.main(["studio", "digits", "--json", "--no-browser", "--runs", str(tmp_path), "--studio-upload", "4096"]) == 0
    ((settings, say, _),) = served
    assert (settings.models, settings.runs, settings.studio_upload) == (("digits",), tmp_path, 4096)
    assert say("http://127.0.0.1:1") == '{"url": "http://127.0.0.1:1", "studio": "http://127.0.0.1:1/studio/"}'


def test_records_are_where_one_says_or_named_as_missing(served: list[Any], tmp_path: Path) -> None:
    assert cli.main(["studio", "digits", "--no-browser", "--records", str(tmp_path), str(tmp_path / "gone")]) == 0
    ((settings, _, extend),) = served
    assert settings.records == (tmp_path, tmp_path / "gone")
    app = FastAPI()
    app.state.service = SimpleNamespace(settings=settings)
    with pytest.raises(InputError, match=r"records .*gone is not there: give a folder or a file with records"):
        extend(app)


def test_serve_has_the_page_where_it_is_asked_for(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["serve", "digits"]) == 0
    assert cli.main(["serve", "digits", "--studio"]) == 0
    monkeypatch.setenv("ATONCE_SERVE_STUDIO", "1")
    assert cli.main(["serve", "digits"]) == 0
    assert [len(call) == 3 and call[2] is mount for call in served] == [False, True, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines and there are no keys"),
        (["--studio-upload", "3"], "studio_upload is 3, should be greater than or equal to 1024 (--studio-upload)"),
        (["--port", "70000"], "port is 70000"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str
) -> None:
    assert cli.main(["studio", "--no-browser", "--state", str(tmp_path), *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
