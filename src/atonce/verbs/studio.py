"""The verb ``studio``."""

from __future__ import annotations

import contextlib
import json as json_text
import sys
import threading
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from atonce.verbs.serve import settings_of


def studio(
    models: Positional[tuple[str, ...]] = (),
    host: str | None = None,
    port: int | None = None,
    state: Path | None = None,
    runs: Path | None = None,
    records: tuple[Path, ...] = (),
    device: str | None = None,
    threads: int | None = None,
    backend: Literal["auto", "eager", "compiled", "openvino", "openvino-bf16"] | None = None,
    keys: Path | None = None,
    trusted_proxies: tuple[str, ...] = (),
    studio_upload: int | None = None,
    log: Literal["json", "text"] = "text",
    log_level: Literal["debug", "info", "warning", "error"] = "warning",
    no_browser: bool = False,
    json: bool = False,
) -> int:
    """Open the studio: a page to generate, edit, compare, train and reckon, for people who would rather look than type.

    Example: atonce studio

    The page is a part of the server of atonce serve (atonce serve MODEL --studio), with the same API beside it. Without keys it
    listens to this machine only. Settings that are not here can come from the environment, as for atonce serve.

    Args:
        models: What to work with: gallery names, run folders, model folders or registry entries; default digits fashion-mnist.
        host: Address to listen on, default 127.0.0.1; any other than loopback needs keys.
        port: Default 8000; 0 takes a free one.
        state: Folder for what people keep, jobs and the audit log; default serve-state.
        runs: Folder where trainings are written and listed; default runs.
        records: Folders and files with records to draw; default benchmarks/records where it is.
        device: auto, cpu, cuda or cuda:N.
        threads: Threads of one network call on the CPU; default all cores.
        backend: What runs the network; auto measures at the start.
        keys: File of hashed API keys (atonce serve keys make); people sign in with one, and training needs the scope admin.
        trusted_proxies: Addresses whose X-Forwarded-For is believed.
        studio_upload: Bytes of one upload; default 256 MiB.
        log: json or text.
        log_level: debug, info, warning or error.
        no_browser: Do not open a browser.
        json: Print the address as one line of JSON when the studio is ready.

    Returns:
        The exit status.

    Raises:
        InputError: A setting cannot be used, or the address is public and there are no keys.
        MissingExtraError: The packages of the studio are not installed.
    """
    said = {name: value for name, value in locals().items() if name not in ("json", "no_browser")}
    given = {name: value for name, value in said.items() if value is not None and value != ()}
    given.setdefault("models", ("digits", "fashion-mnist"))
    settings = settings_of(given | {"studio": True})
    from atonce.serving.run import serve
    from atonce.studio.mount import PATH, mount

    def say(address: str) -> str:
        page = f"{address}{PATH}/"
        if not no_browser and sys.stdout.isatty():
            threading.Thread(target=_show, args=(page,), daemon=True).start()
        return (
            json_text.dumps({"url": address, "studio": page}) if json else f"atonce: the studio is at {page} (Ctrl-C ends it)"
        )

    return serve(settings, say, mount)


def _show(page: str) -> None:
    """Open a browser, if there is one; the address has been printed anyway."""
    import webbrowser

    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(page)
