"""Puts the studio into the application of a server, at /studio."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atonce.core.errors import InputError, MissingExtraError
from atonce.core.files import storage_errors

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atonce.studio.context import Studio

PATH = "/studio"

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Set before Gradio is imported, which reads them: it tells its makers nothing and keeps nobody's runs."""


def mount(app: FastAPI, *, runs: Path | None = None, records: tuple[Path, ...] | None = None) -> Studio:
    """Add the studio to an application, which makes its page when it starts.

    It is an ``extend`` of :func:`atonce.serving.app.create_app`.

    Args:
        app: The application, with its service.
        runs: Folder of trainings; default: that of the settings.
        records: Folders and files with records; default: those of the settings, or ``benchmarks/records`` where it is.

    Returns:
        What the page is made of.

    Raises:
        InputError: A place of records is not there.
        MissingExtraError: Gradio is not installed.
    """
    os.environ.update(QUIET)
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the studio needs the package {error.name}: pip install 'atonce[studio]'") from error
    from fastapi import FastAPI
    from starlette.responses import RedirectResponse
    from starlette.routing import Mount

    from atonce.serving.beside import stand_beside
    from atonce.studio.context import Studio
    from atonce.studio.door import Door
    from atonce.studio.page import build
    from atonce.studio.theme import theme

    service = app.state.service
    settings = service.settings
    if missing := next((place for place in settings.records if not place.exists()), None):
        raise InputError(f"records {missing} is not there: give a folder or a file with records (--records)")
    usual = settings.records or tuple(folder for folder in (Path("benchmarks/records"),) if folder.is_dir())
    private = (settings.state / "studio").absolute()
    with storage_errors(private):
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(private / "cache")
    studio = Studio(service, settings.runs if runs is None else runs, usual if records is None else records, private)
    app.state.studio = studio
    before = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[Any]:
        async with before(outer) as state:
            # Only now are there engines, which the tabs ask about their models.
            shell, blocks = FastAPI(), build(studio)
            gr.mount_gradio_app(
                shell,
                blocks,
                path=PATH,
                auth_dependency=lambda request: getattr(getattr(request.state, "person", None), "id", None),
                allowed_paths=[],
                footer_links=[],
                run_history=False,
                show_error=False,  # other errors than ours would show internals
                max_file_size=settings.studio_upload,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                ssr_mode=False,
                theme=theme(),
            )
            for part in blocks.config["components"]:
                part.pop("example_inputs", None)  # for descriptions that this page has not; some lead outside
            mounted = shell.router.routes[-1]
            assert isinstance(mounted, Mount)
            outer.mount(PATH, Door(mounted.app, studio, PATH, lambda: bool(outer.state.draining)))
            async with shell.router.lifespan_context(shell):
                yield state

    app.router.lifespan_context = lifespan
    app.add_api_route(PATH, lambda: RedirectResponse(f"{PATH}/", 307), methods=["GET"], include_in_schema=False)
    stand_beside(app, PATH)
    return studio
