"""An edit, or any other algorithm, that runs in its caller's thread and whose network calls go through an engine's queue."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from atonce.serving.rows import Lane


@dataclass(eq=False)
class Session:
    """Its calls belong together: once the first has begun, the others are not refused.

    Attributes:
        lane: Who goes first.
        kind: What the images are for.
        deadline: Moment of the engine's clock at which it is given up.
        stop: Set by another thread to give it up earlier.
        begun: Whether a call of it has begun.
        rows: Images of its last call.
    """

    lane: Lane = "interactive"
    kind: str = "edit"
    deadline: float | None = None
    stop: threading.Event | None = None
    begun: bool = False
    rows: int = 0
