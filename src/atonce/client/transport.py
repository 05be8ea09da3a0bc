"""Requests that are sent again where that is safe: after a lost connection, and when the server says to come back later."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atonce.client.errors import ClientError, NoConnectionError, TimedOutError, error_of
from atonce.core.errors import InputError, MissingExtraError
from atonce.core.version import VERSION

if TYPE_CHECKING:
    import httpx

AGAIN = (429, 502, 503)  # statuses after which the same request may succeed a moment later


class Transport:
    """One server, by HTTP.

    Args:
        url: For example ``http://127.0.0.1:8000``.
        key: API key.
        timeout: Seconds that a call may take, all its tries and pauses together.
        transport: What sends requests, instead of the network.
        sleep: Waits.

    Raises:
        InputError: The address or the key cannot be used.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout: float,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError as problem:
            raise MissingExtraError("atonce.Client needs httpx: pip install 'atonce[client]'") from problem
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"the address {url!r} does not begin with http:// or https://: give one like http://127.0.0.1:8000"
            )
        if not timeout > 0:
            raise InputError(f"timeout is {timeout}, must be positive: seconds that a call may take")
        headers = {"User-Agent": f"atonce/{VERSION}", "Accept": "application/json"}
        if key is not None:
            if not key.isascii() or not key.isprintable() or not key.strip():
                raise InputError("the key has characters that no key has: copy it again from where it was made")
            headers["Authorization"] = f"Bearer {key.strip()}"
        self.httpx, self.timeout, self.sleep = httpx, timeout, sleep
        # Surroundings (proxies, .netrc) are not asked: a key goes to the server that was named and to no other.
        self.http = httpx.Client(base_url=url.rstrip("/"), headers=headers, transport=transport, trust_env=False)

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send a request that may safely be sent twice, and read the JSON that answers it.

        Args:
            method: HTTP method.
            path: For example ``/v1/models``.
            body: What goes as JSON.
            params: What goes into the address.
            headers: Further headers.
            timeout: Seconds, instead of the client's.

        Returns:
            The answer.

        Raises:
            ClientError: The server refused, failed, or cannot be reached.
        """
        return self._again(lambda left: self._once(method, path, body, params, headers, left), timeout)

    def again(self, send: Callable[[float], Any], timeout: float | None = None) -> Any:
        """Call ``send`` with the seconds that are left until it succeeds or fails for good; see :meth:`json`."""
        return self._again(send, timeout)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], left: float) -> Iterator[httpx.Response]:
        """Read a large answer piece by piece.

        Args:
            path: What to get.
            headers: Further headers.
            left: Seconds without a byte after which the connection is given up.

        Yields:
            The answer, of status 200 or 206.

        Raises:
            ClientError: It is another one, or the connection broke.
        """
        accepted = {"Accept": "*/*", **headers}
        with self._told(), self.http.stream("GET", path, headers=accepted, timeout=min(left, 60.0)) as answer:
            if answer.status_code not in (200, 206):
                problem: ClientError = error_of(answer.status_code, _json(answer.read()), answer.headers)
                raise problem
            yield answer

    def _once(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        left: float,
    ) -> Any:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        told = {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        until, blocks = time.monotonic() + left, []
        with self._told(), self.http.stream(method, path, content=content, params=params, headers=told, timeout=left) as answer:
            for block in answer.iter_bytes():  # httpx limits the time of each piece, not of the whole
                blocks.append(block)
                if time.monotonic() > until:
                    raise self.httpx.ReadTimeout("too slow")
        found = _json(b"".join(blocks))
        if answer.status_code >= 300:
            raise error_of(answer.status_code, found, answer.headers)
        if found is None:
            raise ClientError(f"{self.http.base_url} answered with something else than JSON: is it an atonce server?")
        return found

    def _again(self, send: Callable[[float], Any], timeout: float | None) -> Any:
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        pause = 0.1
        while True:
            left = until - time.monotonic()
            try:
                return send(max(left, 0.001))
            except ClientError as problem:
                if not isinstance(problem, NoConnectionError) and problem.status not in AGAIN:
                    raise
                # Clients that were refused together shall not come back together.
                wait = max(pause, problem.retry_after or 0.0) * random.uniform(1.0, 1.25)
                pause = min(2 * pause, 5.0)
                if time.monotonic() + wait >= until:
                    raise
                self.sleep(wait)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What httpx says goes wrong, in our words.

        Raises:
            TimedOutError: The time was over.
            NoConnectionError: There is no server, or the connection broke.
            ClientError: The address means nothing.
        """
        try:
            yield
        except self.httpx.ConnectTimeout as problem:
            raise NoConnectionError(f"{self.http.base_url} does not answer") from problem
        except self.httpx.TimeoutException as problem:
            raise TimedOutError(f"{self.http.base_url} did not answer in time: give the client a larger timeout") from problem
        except (self.httpx.TransportError, self.httpx.StreamError) as problem:
            raise NoConnectionError(f"{self.http.base_url} cannot be reached: {problem or type(problem).__name__}") from problem
        except self.httpx.InvalidURL as problem:
            raise ClientError(f"{self.http.base_url} is no address: {problem}") from problem


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
