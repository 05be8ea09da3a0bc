"""The parts of one server process, in one place: what the routes get from ``request.app.state.service``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from atonce.serving.audit import Audit
    from atonce.serving.hosts import Hosts
    from atonce.serving.jobs import Jobs
    from atonce.serving.keys import KeyFile
    from atonce.serving.limits import Limits
    from atonce.serving.metrics import Metrics
    from atonce.serving.pools import Pool
    from atonce.serving.watch import Watch


@dataclass(frozen=True)
class Service:
    """Everything that answers requests.

    Attributes:
        settings: What the owner set.
        hosts: The models.
        keys: API keys; ``None`` where everybody may call.
        limits: Counts requests and images of each caller.
        jobs: Large requests.
        audit: Who asked for what.
        metrics: What is measured.
        watch: The quality watch, where it is on.
        coders: Threads that write pictures.
        decoders: Threads that read the pictures of callers, who get equal shares of them: ``run(..., of=principal.id)``.
        editors: Threads in which edits and other long algorithms run; their network calls go through the engines.
        secret: Signs links to images.
    """

    settings: ServeSettings
    hosts: Hosts
    keys: KeyFile | None
    limits: Limits
    jobs: Jobs
    audit: Audit
    metrics: Metrics
    watch: Watch | None
    coders: Pool
    decoders: Pool
    editors: Pool
    secret: bytes


def service_of(request: Request) -> Service:
    """The service that a request came to; a FastAPI dependency."""
    service: Service = request.app.state.service
    return service
