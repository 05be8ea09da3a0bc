"""Links to images that keep nothing: the link says how its image is made, and a signature says that we said so."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from atonce.serving.errors import ServiceError, not_found
from atonce.serving.schemas import Format

_SIGNATURE = 16  # bytes; 128 bits cannot be guessed
_PURPOSE = b"atonce image link 1:"
MOST_TEXT = 4096


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


def _signature(text: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, _PURPOSE + text, hashlib.sha256).digest()[:_SIGNATURE]


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
