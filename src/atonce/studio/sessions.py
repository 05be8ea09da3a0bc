"""Whose page an event belongs to: a page has a number of its own, and nobody else may speak or listen in its name."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from atonce.serving.errors import ServiceError

_MOST = 20_000


class Sessions:
    """Remembers the person who was first to use the number of a page."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()

    def claim(self, session: str, person: str) -> None:
        """Use the number of a page.

        Args:
            session: The number.
            person: Id of who uses it.

        Raises:
            ServiceError: 403, it is another person's.
        """
        if self._owners.setdefault(session, person) != person:
            raise ServiceError(403, "forbidden", "this page is another person's: load it again")
        self._owners.move_to_end(session)
        while len(self._owners) > _MOST:
            self._owners.popitem(last=False)


def named(path: str, scope: Mapping[str, Any], body: bytes = b"") -> str | None:
    """The number of the page that a request names.

    Args:
        path: Below the studio's.
        scope: Of ASGI.
        body: Of the request.

    Returns:
        The number; ``None`` where there is none.
    """
    _, beats, session = path.partition("/heartbeat/")
    if beats:
        return session
    found: Any = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
    if found is None and body[:1] == b"{":
        try:
            found = json.loads(body).get("session_hash")
        except ValueError:
            return None
    return found if isinstance(found, str) else None
