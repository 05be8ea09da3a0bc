"""The page: what its frame holds, which tabs it has, how quickly it is there, and that a server with open pages ends."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

from atonce.studio.files import own_files, own_folder, place_of
from atonce.studio.frame import framed

OUTSIDE = re.compile(r"https?://(?!127\.0\.0\.1|localhost|www\.w3\.org/)[^\s\"'<>)]+")


def test_the_page_names_no_address_outside(client: Any) -> None:
    page = client.get("/studio/").text
    assert OUTSIDE.findall(page) == []
    assert "<title>atonce studio</title>" in page
    assert '"analytics_enabled":false' in page.replace(" ", "")
    theme = client.get("/studio/theme.css").text
    assert OUTSIDE.findall(theme) == []
    assert "@import" not in theme


def test_our_own_files_name_no_address_outside() -> None:
    files = sorted(path for path in own_folder().iterdir() if path.suffix in (".css", ".js"))
    assert {path.name for path in files} >= {"base.css", "base.js", "generate.css", "generate.js"}
    for path in files:
        assert OUTSIDE.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_scripts_are_strict() -> None:
    for path in own_folder().glob("*.js"):
        assert '"use strict"' in path.read_text(encoding="utf-8"), path.name


def test_a_frame_keeps_the_page_and_drops_what_leads_outside() -> None:
    page = """<html><head><base href="./"><meta property="og:image"
    content="https://example.org/a.jpg"><meta name="twitter:creator" content="@x" />
    <link rel="manifest" href="/manifest.json" />
    <script>window.gradio_config = {"a": 1};</script></head><body class="x"><p>kept</p></body></html>"""
    made = framed(page, ["./own/0/base.css"], ["./own/0/base.js"], signed_in=False)
    assert "example.org" not in made
    assert "manifest" not in made
    assert 'window.gradio_config = {"a": 1};' in made
    assert "<p>kept</p>" in made
    assert made.index("base.js") < made.index("gradio_config")
    assert made.index('rel="stylesheet"') > made.index('<body class="x">')


def test_only_files_of_two_folders_are_sent() -> None:
    address = own_files(".css")[0].removeprefix(".")
    assert place_of(address) == own_folder() / "base.css"
    assert place_of("/own/000000000000/nothing.css") is None
    assert place_of("/assets/../index.html") is None
    assert place_of("/static/") is None


def test_the_address_without_a_slash_leads_to_the_page(client: Any) -> None:
    answer = client.get("/studio")
    assert (answer.status_code, answer.headers["location"]) == (307, "/studio/")


def test_the_api_stays_as_it_was_beside_the_page(client: Any) -> None:
    made = client.post("/v1/generate", json={"seed": 3})
    assert made.status_code == 200
    assert "studio" not in client.get("/openapi.json").text.lower()
    too_large = client.post("/v1/generate", content=b"x" * (17 << 20), headers={"content-type": "application/json"})
    assert too_large.status_code == 413


def test_when_opened_needs_a_page() -> None:
    from atonce.studio.state import when_opened

    with pytest.raises(RuntimeError, match="in a tab's build"):
        when_opened(lambda: None)


def test_errors_are_one_line_without_paths(caplog: pytest.LogCaptureFixture) -> None:
    import gradio as gr

    from atonce.core.errors import DataError
    from atonce.serving.errors import bad_request
    from atonce.studio.context import problem

    assert str(problem(bad_request("steps is 0, must be at least 1"))) == "'steps is 0, must be at least 1'"
    told = problem(DataError("cannot read /home/someone/secret place/a.png: it is damaged")).message
    assert "/home" not in told
    assert "it is damaged" in told
    other = problem(KeyError("/etc/passwd"))
    assert "/etc" not in other.message
    assert "something went wrong" in other.message
    sign = re.search(r"as ([0-9a-f]{12})", other.message)
    assert sign is not None
    assert sign[1] in caplog.text
    own = gr.Error("as it is")
    assert problem(own) is own


def test_a_first_view_is_quick(browser: Any, studio_url: str, page_for: Any, axe: Any, shot: Any) -> None:
    for width, dark in ((1280, False), (1280, True), (390, False)):
        with page_for(browser, studio_url, width=width, dark=dark) as page:
            page.wait_for_selector("#generate-picture img[src^=data]")
            assert axe(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
            shot(page, f"generate-{width}-{'dark' if dark else 'light'}")


def test_the_open_tab_survives_a_reload_and_the_keyboard_changes_it(browser: Any, studio_url: str, page_for: Any) -> None:
    with page_for(browser, studio_url) as page:
        page.wait_for_selector("#generate-picture img[src^=data]")
        page.get_by_role("tab", name="Compare", exact=True).first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#compare-run", state="visible")
        assert page.url.endswith("#compare")
        page.reload()
        page.wait_for_selector("#compare-run", state="visible")


@pytest.mark.slow
def test_a_server_with_an_open_page_ends_soon_after_sigterm(
    browser: Any, serve_studio: Any, page_for: Any, tmp_path: Path
) -> None:
    with (
        serve_studio(tmp_path, "--no-browser") as (url, process),
        page_for(browser, url, expected=(r"ERR_", r"503", r"network|fetch")) as page,
    ):
        page.wait_for_selector("#generate-picture img[src^=data]")
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - begun < 12  # of 20, the time to drain, which only what was accepted may use up
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
