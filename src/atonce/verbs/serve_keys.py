"""The verbs ``serve keys make``, ``serve keys list`` and ``serve keys revoke``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from atonce.verbs.output import show

Scope = Literal["generate", "edit", "jobs", "models", "metrics", "admin"]


def make(
    name: Positional[str],
    keys: Path = Path("serve-keys.json"),
    scopes: tuple[Scope, ...] = ("generate", "edit", "jobs", "models"),
    expires: str | None = None,
    rate: str | None = None,
    image_rate: str | None = None,
    quota: str | None = None,
    json: bool = False,
) -> int:
    """Make an API key. Its token is shown this once and kept nowhere: the file holds a hash.

    Example: atonce serve keys make "the web shop" --keys runs/keys.json --quota 100000/day

    Args:
        name: Whose key it is, for people.
        keys: File of hashed keys; it is made where it is missing, readable for you alone. Running servers see the new key.
        scopes: What the key may be used for.
        expires: A date, to whose end (UTC) the key works, or a moment such as 2027-01-31T12:00:00Z; none by default.
        rate: Requests, for example 600/minute; what the server sets by default.
        image_rate: Images, for example 10000/hour; what the server sets by default.
        quota: Images too, beside the image rate, for example 100000/day; none by default.
        json: Print the key and its token as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: A value cannot be used, or the file is damaged.
    """
    from atonce.serving.keys import make_key

    key, token = make_key(keys, name, scopes=scopes, expires=expires, rate=rate, image_rate=image_rate, quota=quota)
    facts = {"id": key.id, "name": key.name, "scopes": list(key.scopes), "expires": key.expires, "token": token}
    show(facts, f"{token}\nkey {key.id} in {keys}; its token is shown this once: keep it now", json)
    return 0


def list_keys(keys: Path = Path("serve-keys.json"), json: bool = False) -> int:
    """List the API keys of a file: who has them, what for, and whether they work.

    Example: atonce serve keys list --keys runs/keys.json

    Args:
        keys: File of hashed keys.
        json: Print the list as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: The file is missing or damaged.
    """
    from atonce.serving.keys import read_keys

    now = time.time()
    found = [{**dataclasses.asdict(key), "state": key.state(now)} for key in read_keys(keys).values()]
    for entry in found:
        del entry["hash"]
    lines = [
        f"{entry['id']}  {entry['state']:8} {','.join(entry['scopes']):28} {entry['expires'] or 'no end':20}  {entry['name']}"
        for entry in found
    ]
    show({"keys": found}, "\n".join(lines) or f"{keys} holds no key", json)
    return 0


def revoke(key: Positional[str], keys: Path = Path("serve-keys.json"), json: bool = False) -> int:
    """Revoke an API key: running servers refuse it from their next request on.

    Example: atonce serve keys revoke 0123456789ab --keys runs/keys.json

    Args:
        key: Its id, as the list shows it.
        keys: File of hashed keys.
        json: Print what was done as JSON.

    Returns:
        The exit status.

    Raises:
        InputError: There is no such key, or the file is missing or damaged.
    """
    from atonce.serving.keys import revoke_key

    found = revoke_key(keys, key)
    show({"id": found.id, "revoked": found.revoked}, f"{found.id} ({found.name}) is revoked since {found.revoked}", json)
    return 0
