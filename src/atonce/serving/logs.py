"""What the server says: one line an event, JSON or text, on stderr, with the id of the request and of the caller.

Everything goes one way: our own loggers, uvicorn's and every other library's. No line holds a body, a picture or a secret: what
looks like a key, a token or a password is taken out on the way, whoever put it there.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import IO, Any

from atonce.core.errors import MissingExtraError

try:
    import structlog
except ImportError as problem:  # pragma: no cover - depends on the installation
    raise MissingExtraError("the server's log needs structlog: pip install 'atonce[serve]'") from problem

Event = MutableMapping[str, Any]

REDACTED = "[redacted]"
LONGEST = 2000
"""Characters of one value; tracebacks may have eight times as many."""
QUIET = ("/livez", "/readyz", "/healthz", "/metrics")
"""Asked every few seconds by machines: told only where they fail, or at the level ``debug``."""
_state: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("state", default=None)
_SECRET = re.compile(
    r"authorization|cookie|passw|secret|token(?!_type|s$)|credential|private|api[-_]?key|^key$|signature|^redis$|^dsn$|_url$",
    re.I,
)
_CONTENT = re.compile(r"^(body|image|images|content|payload|data|mask|sketch|prompt)$", re.I)
_INSIDE = (
    (re.compile(r"atonce_[A-Za-z0-9_\-]{8,}"), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{6,}"), rf"\1 {REDACTED}"),
    (re.compile(r"(?i)(://)[^/@\s]*:[^/@\s]*@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)\b(api[-_]?key|token|secret|password|passwd)(\"?\s*[=:]\s*\"?)[^\s&\"',;]{4,}"), rf"\1\2{REDACTED}"),
    (re.compile(r"/v1/images/link/[^\s\"'?]+"), "/v1/images/link/" + REDACTED),  # the token is what opens it
    (re.compile(r"[A-Za-z0-9+/=_\-]{200,}"), "[long]"),  # an image in base64
)


def set_up(form: str = "json", level: str = "info", stream: IO[str] | None = None) -> None:
    """Send every log of this process one way. Called once by ``atonce serve``, never by an import.

    Args:
        form: ``json``, or ``text`` for people at a terminal.
        level: The least that is told: ``debug``, ``info``, ``warning``, ``error``.
        stream: Where to; default: stderr.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _of_request,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    show: list[Any] = [structlog.processors.JSONRenderer(default=_word, ensure_ascii=False)]
    if form == "text":
        show = [_one_line, structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *show],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # RequestLog writes that line, with the id of the request
    for noisy in ("httpx", "httpcore", "PIL", "matplotlib", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Any:
    """A logger: ``get(__name__).info("loaded", model=..., version=...)``."""
    return structlog.stdlib.get_logger(name)


def bind(**facts: Any) -> None:
    """Add facts (``request_id``, ``caller``) to every line that this request writes from here on."""
    structlog.contextvars.bind_contextvars(**facts)


def _of_request(logger: Any, method: str, event: Event) -> Event:
    """Add the id of the request and of its caller, where this line is written on behalf of one."""
    state = _state.get()
    if state is not None:
        caller = getattr(state.get("principal"), "id", None)
        for name, value in (("request_id", state.get("request_id")), ("caller", caller)):
            if value is not None:
                event.setdefault(name, value)
    return event


def _one_line(logger: Any, method: str, event: Event) -> Event:
    """For text: nobody forges a line, or moves the cursor of who reads it."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception" and not value.isprintable():
            event[name] = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in value)
    return event


def redact(logger: Any, method: str, event: Event) -> Event:
    """A processor of structlog that takes out secrets and content.

    Args:
        logger: Not used.
        method: Not used.
        event: The line.

    Returns:
        The line, without what must not be told.
    """
    event.pop("color_message", None)  # uvicorn's line once more, for terminals
    for name, value in list(event.items()):
        if name.startswith("_"):  # structlog's own
            continue
        event[name] = _clean(name, value, LONGEST * (8 if name == "exception" else 1))
    return event


def _clean(name: str, value: Any, longest: int, depth: int = 0) -> Any:
    if _SECRET.search(name) and value not in (None, "", True, False):
        return REDACTED
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    if _CONTENT.search(name) and not isinstance(value, (int, float, type(None))):
        return "[content]"
    if isinstance(value, Mapping):
        return {str(k): _clean(str(k), v, longest, depth + 1) for k, v in list(value.items())[:50]} if depth < 4 else "[deep]"
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean("", each, longest, depth + 1) for each in list(value)[:50]] if depth < 4 else "[deep]"
    if isinstance(value, (int, float, type(None))):
        return value
    return _text(_word(value), longest)


def _text(text: str, longest: int) -> str:
    for pattern, instead in _INSIDE:
        text = pattern.sub(instead, text)
    return text if len(text) <= longest else text[:longest] + f"... [{len(text)} characters]"


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"[{type(value).__name__} {tuple(value.shape)}]"
    return str(value)


class RequestLog:
    """Pure ASGI middleware, outside all others: one line when an answer has ended, and the request's id on every line before.

    The id and the caller are what the middlewares inside put into ``scope["state"]`` (``request_id``, ``principal``, and in
    ``audit`` facts such as model and n). Lines that other threads write for the request have them too, where the thread was
    started with a copy of the context (``asyncio.to_thread``).

    Args:
        app: The application inside.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._log = get("atonce.request")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, and tell of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from atonce.serving.metrics_http import route_of

        structlog.contextvars.clear_contextvars()
        begun, status, size = time.perf_counter(), 0, 0
        state = scope.setdefault("state", {})
        _state.set(state)

        async def told(message: Any) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        failed = False
        try:
            await self.app(scope, receive, told)
        except BaseException:
            failed = True
            raise
        finally:
            facts: dict[str, Any] = {
                "method": scope["method"][:20],
                "route": route_of(scope),
                "status": status or (500 if failed else 499),
                "ms": round(1000 * (time.perf_counter() - begun), 1),
                "bytes": size,
                **{k: v for k, v in dict(state.get("audit") or {}).items() if k in ("model", "version", "n", "steps", "kind")},
            }
            code = facts["status"]
            quiet = scope["path"] in QUIET and code < 500
            tell = self._log.debug if quiet else self._log.warning if code >= 500 else self._log.info
            tell("request", **{name: value for name, value in facts.items() if value is not None})
            structlog.contextvars.clear_contextvars()
            _state.set(None)
