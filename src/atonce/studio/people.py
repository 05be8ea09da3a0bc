"""Who is at a browser: a signed cookie that says which API key was shown, or, where there are no keys, which browser it is."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from atonce.core.errors import StorageError
from atonce.core.files import write_atomic
from atonce.serving.access import caller_address, principal_of, trusted_networks
from atonce.serving.errors import ServiceError
from atonce.serving.service import Service
from atonce.studio.context import Person

COOKIE = "atonce-studio"
DAYS = 30
"""How long a browser is known, and how long a sign-in lasts."""

_SECONDS = DAYS * 86400
_VALUE = re.compile(r"(browser|key)\.([0-9a-f]{12,32})\.([0-9]{1,12})\.([0-9a-f]{64})")


class People:
    """Makes and reads cookies.

    Args:
        service: Its keys say who may come in, its settings which limits hold.
        private: Folder of the folders of people.
        path: The cookie is sent to addresses below it only.

    Raises:
        StorageError: The secret that signs cookies cannot be kept.
    """

    def __init__(self, service: Service, private: Path, path: str) -> None:
        self._service, self._private, self._path = service, private, path
        self._secret = secret_of(service, private)

    def known(self, scope: Mapping[str, Any]) -> Person | None:
        """Who sent a request.

        Args:
            scope: Of ASGI.

        Returns:
            The person; ``None`` where the cookie is missing, not ours or too old, or its key does not work any more.

        Raises:
            ServiceError: 503, the keys cannot be read.
        """
        keys = self._service.keys
        for value in _cookies(scope):
            kind, identity, born = self._read(value)
            if kind == "key" and keys is not None:
                try:
                    principal = principal_of(keys.still(identity), self._service.settings)
                except ServiceError as gone:
                    if gone.status != 401:
                        raise
                    continue
                return Person(identity, principal, self._private / f"key-{identity}")
            if kind == "browser" and keys is None:
                address = caller_address(scope, trusted_networks(self._service.settings.trusted_proxies))
                return Person(
                    identity, principal_of(None, self._service.settings, address), self._private / f"browser-{identity}"
                )
        return None

    def newcomer(self) -> str:
        """The value of a cookie for a browser that has none, where there are no keys."""
        return self._value("browser", secrets.token_hex(16))

    def with_key(self, token: str) -> str:
        """The value of a cookie for somebody who shows an API key.

        Args:
            token: What was typed.

        Returns:
            The value; it holds the key's id and not its secret.

        Raises:
            ServiceError: 401, the key does not work; 404, there are no keys here.
        """
        if self._service.keys is None:
            raise ServiceError(404, "not_found", "there is nothing to sign in to: this studio has no keys")
        return self._value("key", self._service.keys.check(token).id)

    def cookie(self, value: str, secure: bool) -> str:
        """The header Set-Cookie that gives a cookie, or with an empty value takes it away.

        Args:
            value: From :meth:`newcomer` or :meth:`with_key`.
            secure: Whether the page came over HTTPS.

        Returns:
            The header's value.
        """
        age = _SECONDS if value else 0
        end = "; Secure" if secure else ""
        return f"{COOKIE}={value}; Path={self._path}; Max-Age={age}; HttpOnly; SameSite=Strict{end}"

    def _value(self, kind: str, identity: str) -> str:
        said = f"{kind}.{identity}.{int(time.time())}"
        return f"{said}.{self._sign(said)}"

    def _read(self, value: str) -> tuple[str, str, int]:
        found = _VALUE.fullmatch(value)
        if found is None or not hmac.compare_digest(self._sign(value.rpartition(".")[0]), found[4]):
            return "", "", 0
        born = int(found[3])
        return (found[1], found[2], born) if born > time.time() - _SECONDS else ("", "", 0)

    def _sign(self, said: str) -> str:
        return hmac.new(self._secret, f"atonce studio cookie 1:{said}".encode(), hashlib.sha256).hexdigest()


def secret_of(service: Service, private: Path) -> bytes:
    """What signs cookies: the owner's secret where one is set, so that all replicas know each other's cookies; else one that is
    kept beside the people's folders, so that a restart makes nobody a stranger.

    Args:
        service: The service.
        private: Folder of the folders of people.

    Returns:
        The secret.

    Raises:
        StorageError: It cannot be read or written.
    """
    if service.settings.link_secret is not None:
        return service.secret
    path = private / "secret"
    try:
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            write_atomic(path, lambda temporary: _write(temporary, secrets.token_hex(32)), mode=0o600)
        return path.read_bytes().strip()
    except OSError as error:
        raise StorageError(f"the studio cannot keep its secret in {path}: {error.strerror or error}") from error


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    os.chmod(path, 0o600)
    path.write_text(text)


def _cookies(scope: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                jar = SimpleCookie(value.decode("latin-1"))
            except CookieError:
                continue
            if COOKIE in jar:
                found.append(jar[COOKIE].value)
    return found
