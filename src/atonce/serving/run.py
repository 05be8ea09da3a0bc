"""Start a server and stop it again: what is refused before anything is loaded, signals, and finishing what was accepted."""

from __future__ import annotations

import asyncio
import atexit
import gc
import ipaddress
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from atonce.core.errors import InputError, MissingExtraError
from atonce.serving.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn import Server

_log = logging.getLogger("atonce.serving")


def serve(
    settings: ServeSettings,
    say: Callable[[str], str] | None = None,
    extend: Callable[[FastAPI], object] | None = None,
) -> int:
    """Serve models until a signal comes.

    SIGTERM or SIGINT: ``/readyz`` says no at once and new work is refused; what was accepted is finished, for at most
    ``drain_seconds``; then the process ends with 0. A second signal ends it at once.

    Args:
        settings: What to serve, where and to whom.
        say: Makes of the address the line that is printed when the server is ready; default: one for people.
        extend: As for :func:`atonce.serving.app.create_app`.

    Returns:
        The exit status.

    Raises:
        InputError: A setting cannot be used, the address is taken, or it is public and there are no keys.
        MissingExtraError: The packages of the service are not installed.
    """
    try:
        import uvicorn  # noqa: F401 - whether it is there

        from atonce.serving.app import create_app
        from atonce.serving.logs import set_up
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"serving needs the package {error.name}: pip install 'atonce[serve]'") from error
    check(settings)
    listener = listen(settings.host, settings.port)
    try:
        set_up(settings.log, settings.log_level)
        app = create_app(settings, extend=extend)
        server = server_for(app, settings, say)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_run(app, server, listener))
    finally:
        listener.close()
        atexit.register(gc.freeze)  # the interpreter's last searches for garbage, over all of PyTorch, would take seconds
    return 0


async def _run(app: FastAPI, server: Server, listener: socket.socket) -> None:
    # Not by uvicorn's own handling of the lifespan: an error of ours at the start is to reach the user as one line.
    async with app.router.lifespan_context(app):
        await server.serve(sockets=[listener])


def check(settings: ServeSettings) -> None:
    """Refuse settings that cannot work or would be unsafe, before any model is loaded.

    Args:
        settings: What the owner set.

    Raises:
        InputError: One of them; the message says which and what to do.
    """
    from atonce.serving.access import trusted_networks
    from atonce.serving.keys import KeyFile
    from atonce.serving.limits import Limits

    if not is_loopback(settings.host) and settings.keys is None and not settings.public_without_keys:
        raise InputError(
            f"{settings.host} can be reached from other machines and there are no keys: make one with atonce serve keys make"
            " and give --keys FILE, or give --public-without-keys if everybody may use it, or listen on 127.0.0.1"
        )
    if settings.keys is not None and not KeyFile(settings.keys).active():
        raise InputError(f"{settings.keys} holds no key that works, so nobody could call: atonce serve keys make makes one")
    for origin in settings.cors_origins:
        if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", origin):
            raise InputError(f"the origin {origin!r} cannot be used: give one like https://example.org, without a path")
    trusted_networks(settings.trusted_proxies)
    Limits(settings)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    Args:
        host: An address or a name.

    Returns:
        True for loopback addresses and ``localhost``; any other name counts as public.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Take an address, so that a mistake shows before models are loaded. Connections are accepted once the server runs.

    Args:
        host: An address or a name.
        port: 0 for any that is free.

    Returns:
        The bound socket.

    Raises:
        InputError: It is taken, or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except OSError as error:
        raise InputError(f"there is no address {host!r}: {error.strerror or error}; give one of this machine") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        text = error.strerror or str(error)
        raise InputError(f"cannot listen on {host} port {port}: {text}; give another --port or --host") from error
    listener.set_inheritable(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL at which a bound socket is reached.

    Args:
        listener: From :func:`listen`.

    Returns:
        For example ``http://127.0.0.1:8000``.
    """
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_for(app: FastAPI, settings: ServeSettings, say: Callable[[str], str] | None = None) -> Server:
    """A uvicorn server with our protocol that drains on a signal.

    Args:
        app: The application; ``app.state.draining`` becomes true when the end begins. Its lifespan is for the caller to enter.
        settings: Times and numbers.
        say: As for :func:`serve`.

    Returns:
        The server; ``serve(sockets=...)`` runs it.
    """
    import uvicorn

    from atonce.serving.protocol import MAX_HEAD, protocol_for

    class Draining(uvicorn.Server):
        """Goes on accepting connections while it drains, so that health checks and refusals are answers and no resets."""

        drain_until: float | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or ():
                address = address_of(listener)
                _announce(f"atonce: serving on {address}" if say is None else say(address))

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.drain_until is None:
                self.drain()
            elif threading.current_thread() is threading.main_thread():
                os._exit(128 + sig)  # asked twice: nothing is waited for, not even threads inside a network call

        def drain(self) -> None:
            """Begin to stop."""
            app.state.draining = True
            self.drain_until = time.monotonic() + settings.drain_seconds

        async def on_tick(self, counter: int) -> bool:
            if await super().on_tick(counter):
                return True
            if self.drain_until is None or (self.server_state.tasks and time.monotonic() < self.drain_until):
                return False
            left = max(0.0, self.drain_until - time.monotonic())
            self.config.timeout_graceful_shutdown = max(1, int(left))
            return True

    config = uvicorn.Config(
        app,
        http=protocol_for(settings),
        ws="none",
        lifespan="off",
        proxy_headers=False,  # access.caller_address decides whose word is taken
        server_header=False,
        access_log=False,  # the audit log and the metrics know more
        log_config=None,
        backlog=max(128, min(2048, settings.connections)),
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    app.state.draining = False
    return Draining(config)


def _announce(line: str) -> None:
    """Say where the server is, for people and scripts that wait for it; nothing depends on somebody reading it."""
    _log.info(line)
    try:
        print(line, flush=True)  # noqa: T201 - of the command line
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nobody listens; later prints are not to fail either
