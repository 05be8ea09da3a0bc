"""Who is asking, what they may do, and how much: the address of a caller, keys and scopes, limits.

A caller is known before the body of the request is read, so that nobody without a key can make this process hold large bodies.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from atonce.core.errors import InputError
from atonce.serving.errors import ServiceError
from atonce.serving.keys import SCOPES, Key
from atonce.serving.limits import LimitReachedError, Standing, Wanted
from atonce.serving.service import Service
from atonce.serving.settings import ServeSettings

FAILED_ATTEMPTS = "60/minute"
"""Requests with a missing or wrong key that one address may make; keys that work are not affected."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Scope = MutableMapping[str, Any]

_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="Authorization: Bearer atonce_...")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="header", description="X-API-Key: atonce_...")


@dataclass(frozen=True)
class Principal:
    """A caller.

    Attributes:
        id: ``key:ID``, or ``ip:ADDRESS`` where there are no keys.
        name: For people.
        scopes: What it may do.
        rate: Requests; empty for no limit.
        image_rate: Images; empty for no limit.
        quota: Images too; ``None`` for no limit.
    """

    id: str
    name: str
    scopes: frozenset[str]
    rate: str | None = None
    image_rate: str | None = None
    quota: str | None = None


def require(scope: str) -> Callable[..., Awaitable[Principal]]:
    """A FastAPI dependency: the caller, who must hold a scope. Counts one request against the caller's rate.

    Args:
        scope: One of :data:`~atonce.serving.keys.SCOPES`.

    Returns:
        The dependency. It raises ServiceError: 401 without a key that works, 403 without the scope, 429 beyond the rate.

    Raises:
        ValueError: There is no such scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"there is no scope {scope!r}: {', '.join(SCOPES)}")

    async def principal(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],  # they put the schemes into the
        header: Annotated[str | None, Security(_HEADER)],  # OpenAPI document; admit() reads the headers itself
    ) -> Principal:
        found = await admit(request.scope, request.app.state.service)
        if scope not in found.scopes:
            if found.id.startswith("ip:"):
                message = f"the scope {scope} needs an API key, and this server has none: its owner must start it with keys"
            else:
                message = f"this API key does not have the scope {scope}: ask for one that has"
            raise ServiceError(403, "forbidden", message)
        return found

    return principal


async def charge(request: Request, principal: Principal, images: int) -> None:
    """Count images against a caller's image rate and quota, before they are made.

    Args:
        request: Its answer tells how the limits stand.
        principal: The caller.
        images: How many.

    Raises:
        ServiceError: 429 with the time after which so many would be allowed; 400 for more than is ever allowed at once.
    """
    wanted = [Wanted("images", principal.image_rate, images), Wanted("images", principal.quota, images, "quota")]
    await _take(request.scope, request.app.state.service, principal.id, wanted)


async def admit(scope: Scope, service: Service) -> Principal:
    """The caller of a request, counted once against its rate.

    Args:
        scope: Of ASGI; what is found is kept in its state.
        service: Keys, limits and settings.

    Returns:
        The caller.

    Raises:
        ServiceError: 401, 429 or 503.
    """
    state = scope.setdefault("state", {})
    known: Principal | None = state.get("principal")
    if known is not None:
        return known
    address = caller_address(scope, trusted_networks(service.settings.trusted_proxies))
    found = await _identify(scope, service, address)
    state["principal"] = found
    await _take(scope, service, found.id, [Wanted("requests", found.rate)])
    return found


async def _identify(scope: Scope, service: Service, address: str) -> Principal:
    if service.keys is None:
        return principal_of(None, service.settings, address)
    try:
        token = _token(scope["headers"])
        if token is None:
            message = "an API key is needed: send the header Authorization: Bearer atonce_... or X-API-Key"
            raise ServiceError(401, "missing_api_key", message)
        key = service.keys.check(token)
    except ServiceError as refusal:
        if refusal.status == 401:
            await _count_failure(scope, service, address)
        raise
    return principal_of(key, service.settings)


def principal_of(key: Key | None, settings: ServeSettings, address: str = "") -> Principal:
    """The caller behind a key, or behind an address where there are no keys.

    Args:
        key: The key, or ``None``.
        settings: Limits of keys that have none of their own, and of everybody without keys.
        address: Of the caller.

    Returns:
        The caller.
    """
    if key is None:
        everything = frozenset(SCOPES) - {"admin"}
        return Principal(f"ip:{address}", address, everything, settings.rate, settings.image_rate)
    return Principal(
        id=f"key:{key.id}",
        name=key.name,
        scopes=frozenset(key.scopes),
        rate=settings.rate if key.rate is None else key.rate,
        image_rate=settings.image_rate if key.image_rate is None else key.image_rate,
        quota=key.quota,
    )


async def _count_failure(scope: Scope, service: Service, address: str) -> None:
    """Count a failed attempt; the one beyond the limit is told so. Where it cannot be counted, 401 stands: nothing was done.

    Raises:
        LimitReachedError: The address has failed too often.
    """
    try:
        await _take(scope, service, f"failed:{address}", [Wanted("requests", FAILED_ATTEMPTS)])
    except LimitReachedError:
        raise
    except ServiceError:
        pass


async def _take(scope: Scope, service: Service, who: str, wanted: Sequence[Wanted]) -> None:
    told: list[Standing] = scope.setdefault("state", {}).setdefault("limits", [])
    try:
        told += await service.limits.take(who, wanted)
    except LimitReachedError as reached:
        told[:] = [reached.standing]  # the one that matters now
        raise


def limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """Headers that tell a caller how its limits stand.

    Args:
        standings: Of all limits that the request touched.

    Returns:
        ``RateLimit-Limit``, ``-Remaining`` and ``-Reset`` (seconds) of the limit of which the smallest share is left, and in
        ``RateLimit-Policy`` all of them.
    """
    found = list(standings)
    if not found:
        return {}
    tightest = min(found, key=lambda standing: standing.remaining / standing.limit)
    return {
        "RateLimit-Limit": str(tightest.limit),
        "RateLimit-Remaining": str(tightest.remaining),
        "RateLimit-Reset": str(-int(-tightest.reset // 1)),
        "RateLimit-Policy": ", ".join(f'"{s.unit}";q={s.limit};w={s.window}' for s in found),
    }


def has_token(scope: Scope) -> bool:
    """Whether a request brings a token, of whatever worth."""
    return any(name in (b"x-api-key", b"authorization") for name, _ in scope["headers"])


def _token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token that a request brings, in either header.

    Raises:
        ServiceError: Several different ones, or another way of authorization.
    """
    found: set[str] = set()
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            found.add(text)
        elif name == b"authorization":
            kind, _, rest = text.partition(" ")
            if kind.lower() != "bearer":
                raise ServiceError(401, "invalid_api_key", "send the API key as Authorization: Bearer atonce_...")
            found.add(rest.strip())
    if len(found) > 1:
        raise ServiceError(401, "invalid_api_key", "the request brings several different API keys: send one")
    return found.pop() if found else None


@functools.lru_cache(maxsize=64)
def trusted_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Proxies whose word is taken for the address of a caller.

    Args:
        texts: Addresses and networks, for example ``10.0.0.0/8``.

    Returns:
        Networks.

    Raises:
        InputError: One is neither.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            raise InputError(
                f"the trusted proxy {text!r} is no address or network: give one like 10.0.0.7 or 10.0.0.0/8"
            ) from None
    return tuple(found)


def was_forwarded(scope: Mapping[str, Any], trusted: tuple[Network, ...]) -> bool:
    """Whether a request comes from a trusted proxy.

    Args:
        scope: Of ASGI.
        trusted: From :func:`trusted_networks`.

    Returns:
        True where its word may be taken.
    """
    client = scope.get("client")
    address = _parse(client[0]) if client else None
    return address is not None and _within(address, trusted)


def caller_address(scope: Mapping[str, Any], trusted: tuple[Network, ...]) -> str:
    """The address by which a caller is known.

    ``X-Forwarded-For`` counts only where the connection comes from a trusted proxy. It is read from its end, since each proxy
    adds the address that it saw and anything before is the caller's own claim; the first that is no trusted proxy is taken.

    Args:
        scope: Of ASGI.
        trusted: From :func:`trusted_networks`.

    Returns:
        An IPv4 address, or the /64 network of an IPv6 address, since that is what one customer has.
    """
    client = scope.get("client")
    address = _parse(client[0]) if client else None
    if address is None:
        return "unknown"
    if trusted and _within(address, trusted):
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for part in reversed(b",".join(values).decode("latin-1").split(",")):
            claimed = _parse(part)
            if claimed is None:  # what a trusted proxy wrote is an address; anything else is not believed
                break
            address = claimed
            if not _within(address, trusted):
                break
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, also with a port or in brackets; IPv4 inside IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(text.partition("%")[0])
        return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
    return None


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
