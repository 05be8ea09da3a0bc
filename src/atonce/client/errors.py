"""What can go wrong between a client and a server, each with the server's one line and the id of the request in its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atonce.core.errors import AtonceError


class ClientError(AtonceError):
    """A request that was not honoured; what it is told is kept in attributes of the same names.

    Args:
        message: The server's one line.
        status: HTTP status; ``None`` where no answer came.
        code: The server's word for programs.
        param: The field at fault.
        request_id: Under which the server's log has it.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message if request_id is None else f"{message} (request {request_id})")
        self.message, self.status, self.code, self.param = message, status, code, param
        self.request_id, self.retry_after = request_id, retry_after


class BadRequestError(ClientError):
    """400 and the like: the request cannot be honoured as it stands."""


class AuthenticationError(ClientError):
    """401: no key, or one that the server does not know."""


class PermissionDeniedError(ClientError):
    """403: the key may not do this."""


class NotFoundError(ClientError):
    """404: there is no such model, version or job."""


class ConflictError(ClientError):
    """409: the job is not in a state in which this can be done."""


class TooLargeError(ClientError):
    """413: more bytes, pixels or images than the server takes at once; large numbers of images are for jobs."""


class RateLimitedError(ClientError):
    """429: too many requests, images or jobs for this key."""


class ServerError(ClientError):
    """5xx: the server failed, or is stopping or overloaded (``retry_after`` says when to come back)."""


class NoConnectionError(ClientError):
    """No answer: the server cannot be reached, or the connection broke."""


class TimedOutError(ClientError):
    """The time that the client gives a call was over."""


class JobFailedError(ClientError):
    """A job failed, was cancelled, or its result has expired."""


_BY_STATUS: dict[int, type[ClientError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    429: RateLimitedError,
}


def error_of(status: int, content: Any, headers: Mapping[str, str]) -> ClientError:
    """The error that an answer stands for.

    Args:
        status: Its HTTP status.
        content: Its JSON, whatever that is; ``None`` where it has none (a proxy's page).
        headers: Its headers, in lower case.

    Returns:
        The error, to be raised.
    """
    told = content.get("error") if isinstance(content, dict) else None
    told = told if isinstance(told, dict) else {}
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else BadRequestError)
    request_id = content.get("request_id") if isinstance(content, dict) else None
    return kind(
        str(told.get("message") or f"the server answered with status {status}"),
        status=status,
        code=told.get("code"),
        param=told.get("param"),
        request_id=request_id or headers.get("x-request-id"),
        retry_after=retry_after(headers),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a ``Retry-After`` header; ``None`` where there is none, or a date that we do not read."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
