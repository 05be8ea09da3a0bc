"""The files of the page: Gradio's and our own, the same for everybody, kept by the browser as long as their names stand."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import mimetypes
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from atonce.serving.bodies import Send

OWN = "/own"
"""Our own files, as ``/own/HASH/NAME``."""

_NAME = re.compile(r"/(assets|static)/([A-Za-z0-9_./-]{1,200})")
_OWN = re.compile(r"/own/[0-9a-f]{12}/([a-z0-9_.-]{1,80})")
_FOREVER = "public, max-age=31536000, immutable"
_SMALL = 1024  # bytes that are not worth packing
_PACKED = {".js", ".css", ".svg", ".html", ".json"}


class Files:
    """Sends files."""

    async def __call__(self, path: str, scope: Mapping[str, Any], send: Send) -> bool:
        """Send a file if the address is one of them.

        Args:
            path: Below the studio's.
            scope: Of ASGI.
            send: Of ASGI.

        Returns:
            Whether it was.
        """
        found = place_of(path)
        if found is None:
            return False
        scope["state"]["unlogged"] = True
        packed = found.suffix in _PACKED and not _is_here(scope) and _takes_gzip(scope)
        content = await asyncio.to_thread(_read, found, packed)
        headers = {
            "content-type": mimetypes.guess_type(found.name)[0] or "application/octet-stream",
            "content-length": str(len(content)),
            "cache-control": _FOREVER if not path.startswith("/static/") else "public, max-age=3600",
            "vary": "accept-encoding",
        }
        if found.suffix == ".js":
            headers["content-type"] = "text/javascript; charset=utf-8"
        if packed and len(content) and content[:2] == b"\x1f\x8b":
            headers["content-encoding"] = "gzip"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
        return True


def place_of(path: str) -> Path | None:
    """The file behind an address.

    Args:
        path: Below the studio's.

    Returns:
        An existing file in one of the two folders; ``None`` for anything else.
    """
    if own := _OWN.fullmatch(path):
        return _inside(own_folder(), own[1])
    if theirs := _NAME.fullmatch(path):
        import gradio

        return _inside(Path(gradio.__file__).parent / "templates" / "frontend" / theirs[1], theirs[2])
    return None


def own_folder() -> Path:
    """The folder of our own files."""
    return Path(str(files("atonce.studio") / "assets"))


def own_files(suffix: str) -> list[str]:
    """Addresses of our own files, below the studio's path; ``base`` first.

    Args:
        suffix: ``.css`` or ``.js``.

    Returns:
        Addresses that change with the content, so that a browser may keep what is behind them.
    """
    found = sorted(own_folder().glob(f"*{suffix}"), key=lambda path: (path.stem != "base", path.name))
    return [f".{OWN}/{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}/{path.name}" for path in found]


def _inside(folder: Path, name: str) -> Path | None:
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _read(path: Path, packed: bool) -> bytes:
    return _content(path, packed, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2048)
def _content(path: Path, packed: bool, _changed: int) -> bytes:
    content = path.read_bytes()
    return gzip.compress(content, 6, mtime=0) if packed and len(content) >= _SMALL else content


def _is_here(scope: Mapping[str, Any]) -> bool:
    """Whether the caller sits at this machine, where unpacking would take longer than sending."""
    client = scope.get("client") or ("",)
    forwarded = any(name in (b"x-forwarded-for", b"via") for name, _ in scope["headers"])
    return client[0] in ("127.0.0.1", "::1") and not forwarded


def _takes_gzip(scope: Mapping[str, Any]) -> bool:
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
