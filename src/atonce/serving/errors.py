"""What the service refuses: a status, a code for programs, one line for people, and when to try again."""

from __future__ import annotations

import math
from typing import Any

from atonce.core.errors import AtonceError


class ServiceError(AtonceError):
    """A request that is answered with an error; the message is shown to the caller, so it names no path and no internals.

    Args:
        status: HTTP status, 400 to 599.
        code: A word for programs, for example ``"rate_limited"``.
        message: One line: the value, the limit, the remedy.
        param: The field of the request that is at fault.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The JSON answer, in the shape that OpenAI's clients read."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {"message": self.message, "type": kind, "code": self.code, "param": self.param},
            "request_id": request_id,
        }

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def bad_request(message: str, param: str | None = None, code: str = "bad_request") -> ServiceError:
    """400: the request cannot be honoured as it stands."""
    return ServiceError(400, code, message, param=param)


def not_found(message: str, param: str | None = None) -> ServiceError:
    """404: there is no such model, version or job."""
    return ServiceError(404, "not_found", message, param=param)


def too_large(message: str, param: str | None = None) -> ServiceError:
    """413: more bytes, pixels or images than one request may bring or ask for."""
    return ServiceError(413, "too_large", message, param=param)


def overloaded(message: str, retry_after: float) -> ServiceError:
    """503: the queue is full, or its promise cannot be kept."""
    return ServiceError(503, "overloaded", message, retry_after=retry_after)


def draining() -> ServiceError:
    """503: this process is stopping."""
    return ServiceError(503, "draining", "this server is stopping: try again, another one will answer", retry_after=1.0)
