"""From where a request comes: this studio's own page or another site's, over HTTPS or not, by which name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from atonce.serving.access import trusted_networks
from atonce.serving.errors import ServiceError
from atonce.serving.run import is_loopback
from atonce.serving.settings import ServeSettings

_PORT = re.compile(r":\d+$")


def is_own_machine(settings: ServeSettings) -> bool:
    """Whether only this machine can reach the server, also through no proxy.

    Args:
        settings: Of the server.

    Returns:
        True for a server on loopback that trusts no proxy.
    """
    return is_loopback(settings.host) and not settings.trusted_proxies


def check_origin(scope: Mapping[str, Any], headers: Mapping[str, str], settings: ServeSettings) -> None:
    """Refuse what a page of another site sends, and, on loopback, names that somebody has pointed at this machine.

    Args:
        scope: Of ASGI.
        headers: Of the request, by small names.
        settings: Of the server.

    Raises:
        ServiceError: 403.
    """
    host = headers.get("host", "").lower()
    name = _PORT.sub("", host)
    if is_own_machine(settings) and not is_loopback(name):
        line = f"this studio is for this machine only and does not answer to {name[:80]!r}: use localhost or 127.0.0.1"
        raise ServiceError(403, "forbidden", line)
    if scope["method"] in ("GET", "HEAD"):
        return
    origin = headers.get("origin", "").lower()
    expected = {host, forwarded(scope, headers, "host", settings)} - {""}
    if (origin and origin.partition("://")[2] not in expected) or headers.get("sec-fetch-site", "none") not in _OWN:
        raise ServiceError(403, "forbidden", "this was sent by a page of another site: use the studio's own page")


_OWN = ("same-origin", "none")


def is_secure(scope: Mapping[str, Any], headers: Mapping[str, str], settings: ServeSettings) -> bool:
    """Whether the caller's browser sees HTTPS.

    Args:
        scope: Of ASGI.
        headers: Of the request.
        settings: Name the proxies whose word is taken.

    Returns:
        True over TLS, here or at a trusted proxy.
    """
    return "https" in (scope.get("scheme"), forwarded(scope, headers, "proto", settings))


def forwarded(scope: Mapping[str, Any], headers: Mapping[str, str], what: str, settings: ServeSettings) -> str:
    """What a trusted proxy says of the address that the caller used.

    Args:
        scope: Of ASGI.
        headers: Of the request.
        what: ``host`` or ``proto``.
        settings: Name the proxies whose word is taken.

    Returns:
        The value in small letters; empty where no trusted proxy says it.
    """
    client, networks = scope.get("client"), trusted_networks(settings.trusted_proxies)
    if not client or not networks:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return ""
    if not any(address in network for network in networks):
        return ""
    return headers.get(f"x-forwarded-{what}", "").partition(",")[0].strip().lower()
