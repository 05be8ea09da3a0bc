"""Links to images that keep nothing: the link says how its image is made, and a signature says that we said so."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from atonce.serving.access import trusted_networks, was_forwarded
from atonce.serving.errors import ServiceError, not_found
from atonce.serving.schemas import Format
from atonce.serving.settings import ServeSettings

_SIGNATURE = 16  # bytes; 128 bits cannot be guessed
_PURPOSE = b"atonce image link 1:"
MOST_TEXT = 4096
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_THIS_MACHINE = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """One image of a generation.

    Attributes:
        model: Name of the model.
        version: The version that made it.
        seed: Its seed.
        index: Its index.
        label: Its class, or ``None``.
        sigmas: Noise levels.
        guidance: Scale of guidance, or ``None``.
        format: png, webp or jpeg.
        until: When the link stops to work, seconds since 1970.
    """

    model: str
    version: str
    seed: int
    index: int
    label: int | None
    sigmas: tuple[float, ...]
    guidance: float | None
    format: Format
    until: int


def token_of(link: Link, secret: bytes) -> str:
    """A link as text for an address.

    Args:
        link: What is linked to.
        secret: Signs it.

    Returns:
        Letters, digits, ``-``, ``_`` and one ``.``.
    """
    text = json.dumps(list(asdict(link).values()), separators=(",", ":")).encode()
    return f"{_encoded(text)}.{_encoded(_signature(text, secret))}"


def link_of(token: str, secret: bytes, now: float | None = None) -> Link:
    """The link behind a text.

    Args:
        token: From :func:`token_of`.
        secret: The same.
        now: Seconds since 1970; default the clock's.

    Returns:
        The link.

    Raises:
        ServiceError: 404: it has expired.
        not_found: It was not signed with this secret.
    """
    body, _, signature = token.partition(".")
    text = _decoded(body) if len(token) <= MOST_TEXT else b""
    if not text or not hmac.compare_digest(_decoded(signature), _signature(text, secret)):
        raise not_found("there is no such link, or it was signed by a server with another secret")
    try:
        values: list[Any] = json.loads(text)
        values[5] = tuple(values[5])
        link = Link(*values)
    except (ValueError, TypeError, IndexError):
        raise not_found("this link was made by another version of the server") from None
    if (time.time() if now is None else now) > link.until:
        raise ServiceError(404, "expired", "this link has expired: ask for the images again, the same seed gives the same ones")
    return link


def base_of(scope: Mapping[str, Any], settings: ServeSettings) -> str:
    """The address that links begin with.

    It is the owner's to say (``public_url``). Where it is not said, a trusted proxy's ``X-Forwarded-Proto`` and ``-Host`` are
    taken; else the address that the connection came to. What a caller says in ``Host`` counts only where it is that address,
    or the caller's own machine: anybody else's would be a link to another server with our signature on it.

    Args:
        scope: Of ASGI.
        settings: ``public_url`` and ``trusted_proxies``.

    Returns:
        For example ``https://images.example.org``.
    """
    if settings.public_url is not None:
        return settings.public_url
    address, port = scope.get("server") or (settings.host, settings.port)
    address = f"[{address}]" if ":" in address else address
    scheme, own = scope.get("scheme", "http"), address if port in (None, 80) else f"{address}:{port}"
    said = {name: _last(scope, name) for name in (b"host", b"x-forwarded-proto", b"x-forwarded-host")}
    host = _HOST.fullmatch(said[b"host"])
    if was_forwarded(scope, trusted_networks(settings.trusted_proxies)):
        scheme = said[b"x-forwarded-proto"] if said[b"x-forwarded-proto"] in ("http", "https") else scheme
        host = _HOST.fullmatch(said[b"x-forwarded-host"]) or host
        return f"{scheme}://{host[0] if host else own}"
    known = host is not None and (host["name"] == address or _THIS_MACHINE.fullmatch(host["name"]) is not None)
    return f"{scheme}://{host[0] if host and known else own}"


def _last(scope: Mapping[str, Any], name: bytes) -> str:
    """The last value of a header, that is the one which the nearest proxy wrote."""
    values = [value for header, value in scope["headers"] if header == name]
    return b",".join(values).decode("latin-1").rpartition(",")[2].strip()


def _signature(text: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, _PURPOSE + text, hashlib.sha256).digest()[:_SIGNATURE]


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
