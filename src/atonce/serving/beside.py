"""What stands in a server beside its API, such as the studio, and looks after its own callers, bodies and times.

The guard gives such a request its id, safe headers, its line in the audit log and errors in one shape, and refuses it while the
server drains. Who is asking, how large a body may be and how long an answer may take is for the part itself to decide: an event
stream has no end that a clock could know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI


def stand_beside(app: FastAPI, prefix: str) -> None:
    """Let everything below a path look after itself.

    Args:
        app: The application.
        prefix: The path, for example ``/studio``.
    """
    app.state.beside.append(prefix)


def is_beside(scope: Mapping[str, Any]) -> bool:
    """Whether a request is for a part that looks after itself.

    Args:
        scope: Of ASGI.

    Returns:
        True below one of the paths of :func:`stand_beside`.
    """
    prefixes = getattr(getattr(scope.get("app"), "state", None), "beside", ())
    return any(scope["path"] == prefix or scope["path"].startswith(f"{prefix}/") for prefix in prefixes)
