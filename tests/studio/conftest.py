"""What the studio's tests share: a running studio, a real browser, pages that are watched, axe and screenshots."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'atonce[studio]'")

READY_SECONDS = 120


@contextlib.contextmanager
def serving(
    folder: Path, *words: str, verb: str = "studio", root: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A studio in a process of its own.

    Args:
        folder: Its state, runs and log.
        words: Further words of the command line.
        verb: What is started.
        root: Where it is started.

    Yields:
        The address of the server, and the process.
    """
    command = [sys.executable, "-m", "atonce", verb, "digits", "fashion-mnist", "--port", "0", "--json", "--backend", "eager"]
    command += ["--state", str(folder / "state"), "--runs", str(folder / "runs"), "--log-level", "warning", "--log", "text"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ATONCE_SERVE_DRAIN_SECONDS": "20"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=root or folder
        )
    try:
        yield _address(process, folder / "log.txt"), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if select.select([process.stdout], [], [], 0.5)[0]:
            line = process.stdout.readline()
            if line.startswith("{"):
                return str(json.loads(line)["url"])
            if not line:
                break
    raise AssertionError(f"the studio did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def serve_studio() -> Callable[..., contextlib.AbstractContextManager[tuple[str, subprocess.Popen[str]]]]:
    """:func:`serving`, for tests that need a studio of their own."""
    return serving


@contextlib.contextmanager
def inside(folder: Path, **settings: Any) -> Iterator[Any]:
    """A studio in this process, with digits, for tests of the door and of what tabs do without a browser.

    Args:
        folder: Its state and runs.
        settings: Of the server.

    Yields:
        A client; ``client.app.state.studio`` is the Studio, ``client.portal.call`` runs a coroutine function in its loop.
    """
    from fastapi.testclient import TestClient

    from atonce.serving.app import create_app
    from atonce.serving.settings import ServeSettings
    from atonce.studio.mount import mount

    usual = {"models": ("digits",), "backend": "eager", "max_batch": 16, "state": folder / "state", "runs": folder / "runs"}
    app = create_app(ServeSettings(**(usual | {"reload_seconds": 0.0} | settings)), extend=mount)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="session")
def studio_inside() -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """:func:`inside`, for tests that need settings of their own."""
    return inside


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A studio without keys in this process; see :func:`inside`."""
    with inside(tmp_path_factory.mktemp("inside")) as found:
        yield found


@pytest.fixture
def someone(client: Any, tmp_path: Path) -> Any:
    """A person without keys, with an empty folder."""
    from atonce.serving.access import principal_of
    from atonce.studio.context import Person

    return Person("a" * 32, principal_of(None, client.app.state.service.settings, "127.0.0.1"), tmp_path / "person")


@pytest.fixture(scope="session")
def studio_url(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[str]:
    """The address of a studio without keys, with digits and fashion-mnist."""
    with serving(tmp_path_factory.mktemp("studio"), "--no-browser", root=repository) as (url, _):
        yield url


@contextlib.contextmanager
def watched(
    browser: Any,
    url: str,
    width: int = 1280,
    dark: bool = False,
    *,
    context: Any = None,
    expected: tuple[str, ...] = (),
    tab: str | None = None,
) -> Iterator[Any]:
    """A page of the studio; at the end no console error and no request to another host may have been.

    Args:
        browser: The browser.
        url: The studio's server.
        width: Pixels.
        dark: The reader's wish.
        context: Somebody's browser, where several pages belong to one person.
        expected: Patterns of console errors that belong to the test.
        tab: A tab to open, by its title.

    Yields:
        The page.
    """
    own = context or browser.new_context(
        viewport={"width": width, "height": 844 if width < 500 else 900},
        color_scheme="dark" if dark else "light",
        has_touch=width < 500,
        reduced_motion="reduce",
        accept_downloads=True,
    )
    page = own.new_page()
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or ""))
    try:
        page.goto(f"{url}/studio/", wait_until="domcontentloaded")
        if tab is not None:
            open_tab(page, tab)
        yield page
        wrong = [error for error in errors if not any(re.search(pattern, error) for pattern in expected)]
        assert wrong == []
        assert hosts <= {"127.0.0.1", "localhost", ""}
    finally:
        page.close()
        if context is None:
            own.close()


def open_tab(page: Any, title: str) -> None:
    """Open a tab by the mouse; at a narrow page it may be behind the button of further tabs."""
    page.wait_for_selector("#studio-tabs button[role=tab]", state="attached")
    tab = page.get_by_role("tab", name=title, exact=True).first
    if not tab.is_visible():
        page.locator("#studio-tabs .overflow-menu > button").click()
        page.locator("#studio-tabs .overflow-dropdown button", has_text=title).click()
    else:
        tab.click()
    page.wait_for_selector(f"#tab-{title.lower()}", state="visible")


@pytest.fixture(scope="session")
def page_for() -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """:func:`watched`: ``with page_for(browser, url, width=390, dark=True, tab="Edit") as page``."""
    return watched


@pytest.fixture(scope="session")
def axe() -> Callable[[Any], list[str]]:
    """A function that gives the serious and critical findings of axe-core on a page, each as one line."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

    def findings(page: Any) -> list[str]:
        found = module.Axe().run(page).response["violations"]
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    return findings


@pytest.fixture(scope="session")
def shot(repository: Path) -> Callable[..., Path]:
    """A function that keeps a picture of a page in runs/studio-shots."""

    def keep(page: Any, name: str, full: bool = True) -> Path:
        path = repository / "runs" / "studio-shots" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(path), full_page=full)
        return path

    return keep
