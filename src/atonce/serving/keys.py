"""API keys: a file of hashes, what makes and revokes them, and the check of a token.

A token is ``atonce_ID_SECRET``; the secret is 256 random bits. The file holds SHA-256 of it and nothing from which it could be
had back. A slow hash (bcrypt, argon2) is for passwords, which people choose and programs can guess; one of 2^256 equally likely
secrets cannot be guessed however quick the hash is, and a slow one would hand every caller a way to keep the processor busy.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from atonce.core.errors import InputError
from atonce.core.files import lock, storage_errors, write_atomic
from atonce.serving.errors import ServiceError

SCOPES = ("generate", "edit", "jobs", "models", "metrics", "admin")
USUAL_SCOPES = ("generate", "edit", "jobs", "models")
GRACE_SECONDS = 60.0
"""How long the last good keys are honoured when their file is damaged or gone."""

_FORMAT = 1
_TOKEN = re.compile(r"atonce_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_HASH = re.compile(r"[0-9a-f]{64}")
_NOBODY = hashlib.sha256(b"").hexdigest()
_log = logging.getLogger("atonce.serving.keys")


@dataclass(frozen=True)
class Key:
    """What is known of a key; not its secret.

    Attributes:
        id: The part of the token that may be seen.
        name: For people.
        hash: Hex SHA-256 of the secret.
        scopes: What it may be used for.
        created: ISO 8601, UTC.
        expires: From this moment on it is refused; ISO 8601, UTC.
        revoked: When it was revoked.
        rate: Requests, for example ``600/minute``; ``None`` for what the server sets, empty for no limit.
        image_rate: Images, likewise.
        quota: Images too, beside ``image_rate``, for example ``100000/day``; ``None`` for no limit.
    """

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created: str
    expires: str | None = None
    revoked: str | None = None
    rate: str | None = None
    image_rate: str | None = None
    quota: str | None = None

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Whether the key works at a time, in seconds since 1970."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= _moment(self.expires).timestamp() else "active"


def make_key(
    path: Path,
    name: str,
    *,
    scopes: Iterable[str] = USUAL_SCOPES,
    expires: str | None = None,
    rate: str | None = None,
    image_rate: str | None = None,
    quota: str | None = None,
) -> tuple[Key, str]:
    """Make a key and add it to a file, which only its owner can read.

    Args:
        path: The file; it is made where it is missing.
        name: For people, one line.
        scopes: What the key may be used for.
        expires: A date (the key works to its end, UTC) or a moment in ISO 8601.
        rate: Requests, for example ``600/minute``.
        image_rate: Images, for example ``10000/hour``.
        quota: Images, for example ``100000/day``.

    Returns:
        The key, and its token, which is kept nowhere.

    Raises:
        InputError: A value cannot be used, or the file is damaged.
        StorageError: The file cannot be written.
    """
    from atonce.serving.rates import parse_limit

    for text, what in ((rate, "the rate"), (image_rate, "the image rate"), (quota, "the quota")):
        if text:
            parse_limit(text, what)
    until = None if expires is None else _expiry(expires)
    if until is not None and until <= datetime.now(UTC):
        raise InputError(f"the key would expire on {expires}, which is past: give a later date or none")
    secret = secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(6),
        name=name,
        hash=_hash(secret),
        scopes=tuple(dict.fromkeys(scopes)),
        created=_text(datetime.now(UTC)),
        expires=None if until is None else _text(until),
        rate=rate,
        image_rate=image_rate,
        quota=quota or None,
    )
    _check(key)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent, wait=True):
        _write(path, [*(read_keys(path).values() if path.exists() else ()), key])
    return key, f"atonce_{key.id}_{secret}"


def revoke_key(path: Path, identity: str) -> Key:
    """Mark a key as revoked. Servers that use the file refuse it from their next request on.

    Args:
        path: The file.
        identity: The key's id.

    Returns:
        The key as it is now.

    Raises:
        InputError: There is no such key, or the file is damaged.
        StorageError: The file cannot be written.
    """
    read_keys(path)  # a missing folder is complained of as a missing file
    with lock(path.parent, wait=True):
        keys = read_keys(path)
        if identity not in keys:
            raise InputError(f"there is no key {identity!r} in {path}: atonce serve keys list --keys {path} shows their ids")
        if keys[identity].revoked is None:
            keys[identity] = replace(keys[identity], revoked=_text(datetime.now(UTC)))
            _write(path, keys.values())
    return keys[identity]


def read_keys(path: Path) -> dict[str, Key]:
    """The keys of a file, by id.

    Args:
        path: The file.

    Returns:
        All of them, also those that were revoked.

    Raises:
        InputError: It is missing or damaged, or others may write it.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the keys in {path}: {error.strerror or error}; atonce serve keys make makes one"
        ) from error
    if mode & stat.S_IWOTH:
        raise InputError(f"everybody on this machine may write {path}, so its keys prove nothing: chmod 600 {path}")
    try:
        found = json.loads(content)
        if found["format"] != _FORMAT:
            raise InputError(f"its format is {found['format']!r}, this version reads {_FORMAT}")
        keys = [_check(Key(**{**entry, "scopes": tuple(entry["scopes"])})) for entry in found["keys"]]
    except KeyError as error:
        raise InputError(f"{path} is no file of keys or is damaged: {error} is missing") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no file of keys or is damaged: {error}") from error
    by_id = {key.id: key for key in keys}
    if len(by_id) != len(keys):
        raise InputError(f"{path} is damaged: it holds an id twice")
    return by_id


class KeyFile:
    """The keys of a running server: read again whenever their file has changed, so that a revocation needs no restart.

    A file that is damaged or gone while the server runs changes nothing for :data:`GRACE_SECONDS` (a tool that copies in place
    leaves it so for a moment); after that every key is refused with 503, since nobody can say any more which were revoked.

    Args:
        path: The file.
        clock: Seconds since 1970, for expiry.
        monotonic: Seconds from any origin, for the grace.

    Raises:
        InputError: It is missing or damaged at the start.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self._clock, self._monotonic = path, clock, monotonic
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._bad_since: float | None = None
        self._keys = read_keys(path)

    def check(self, token: str) -> Key:
        """The key of a token.

        Args:
            token: What the caller sent.

        Returns:
            Its key.

        Raises:
            ServiceError: 401 for a token that is not known, was revoked or has expired; 503 while the keys cannot be read.
        """
        keys = self._current()
        parts = _TOKEN.fullmatch(token)
        key = keys.get(parts[1]) if parts else None
        # The same work whether or not there is such an id, and no difference in time that depends on the hash.
        same = hmac.compare_digest(_hash(parts[2] if parts else ""), key.hash if key else _NOBODY)
        if key is None or not same:
            raise ServiceError(401, "invalid_api_key", "the API key is not known: check that it was copied whole")
        return self._working(key)

    def still(self, identity: str) -> Key:
        """The key of an id, for callers who have shown its token before.

        Args:
            identity: The part of the token that may be seen.

        Returns:
            The key.

        Raises:
            ServiceError: 401 for one that is gone, was revoked or has expired; 503 while the keys cannot be read.
        """
        key = self._current().get(identity)
        if key is None:
            raise ServiceError(401, "invalid_api_key", "the API key is not known any more: ask for a new one")
        return self._working(key)

    def _working(self, key: Key) -> Key:
        state = key.state(self._clock())
        if state != "active":
            said = "was revoked" if state == "revoked" else f"expired on {key.expires}"
            raise ServiceError(401, "invalid_api_key", f"the API key {key.id} {said}: ask for a new one")
        return key

    def active(self) -> int:
        """How many keys work now."""
        return sum(key.state(self._clock()) == "active" for key in self._current().values())

    def _current(self) -> dict[str, Key]:
        with self._lock:
            signature = self._signature()
            if signature != self._seen or self._bad_since is not None:
                self._read(signature)
            if self._bad_since is not None and self._monotonic() - self._bad_since > GRACE_SECONDS:
                message = "this server cannot read its keys at the moment: its owner must repair them"
                raise ServiceError(503, "keys_unavailable", message, retry_after=30.0)
            return self._keys

    def _read(self, signature: tuple[int, ...]) -> None:
        try:
            self._keys = read_keys(self.path)
        except InputError as error:
            if self._bad_since is None:
                self._bad_since = self._monotonic()
            if signature != self._seen:  # once for each state of the file
                _log.error("%s; the keys as they were are honoured for %.0f s, then none", error, GRACE_SECONDS)
        else:
            self._bad_since = None
            _log.info("read %d keys from %s", len(self._keys), self.path)
        self._seen = signature

    def _signature(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            return (error.errno or 0,)
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _write(path: Path, keys: Iterable[Key]) -> None:
    content = json.dumps({"format": _FORMAT, "keys": [asdict(key) for key in keys]}, indent=2) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(content, encoding="utf-8")

    write_atomic(path, write, mode=0o600)


def _check(key: Key) -> Key:
    """A key whose fields are what they must be.

    Raises:
        InputError: One is not.
    """
    optional = (key.expires, key.revoked, key.rate, key.image_rate, key.quota)
    texts: list[Any] = [key.id, key.name, key.hash, key.created, *key.scopes, *(o for o in optional if o is not None)]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("a field of a key is not text")
    if not key.name.strip() or not key.name.isprintable() or len(key.name) > 100:
        raise InputError(f"the name of a key is {key.name[:100]!r}, must be one line of 1 to 100 characters")
    if not re.fullmatch(r"[0-9a-f]{12}", key.id) or not _HASH.fullmatch(key.hash):
        raise InputError(f"the key {key.id[:100]!r} has no proper id or hash")
    wrong = [scope for scope in key.scopes if scope not in SCOPES]
    if wrong or not key.scopes:
        raise InputError(f"there is no scope {wrong[0]!r}" if wrong else "a key needs a scope; scopes: " + ", ".join(SCOPES))
    for moment in (key.created, key.expires, key.revoked):
        if moment is not None:
            _moment(moment)
    from atonce.serving.rates import parse_limit

    for text in (key.rate, key.image_rate, key.quota):
        if text:
            parse_limit(text, f"a limit of key {key.id}")
    return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text[:100]!r} is no date: give one like 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _expiry(text: str) -> datetime:
    """A moment; a date alone means its end."""
    found = _moment(text)
    return found + timedelta(days=1) if re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text) else found
