"""A server on a socket: from its start until it is told to end, and has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.errors import ConfigError
from minicpm4.machine.signals import ending_signals
from minicpm4.serve.app import APIS, Server, create_app
from minicpm4.serve.connections import patient, watch_the_door
from minicpm4.serve.endpoints import Api
from minicpm4.serve.guard import is_loopback
from minicpm4.serve.settings import ServeSettings
from minicpm4.serve.shelf import Shelf

logger = logging.getLogger("minicpm4.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Socket:
    """Where a server listens. ``port`` 0: one that is free. ``certificate``, ``key``: of TLS, PEM files.

    Raises ConfigError: only this machine may ask a server without keys.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None

    def open(self, settings: ServeSettings) -> socket.socket:
        """A socket that has the address and does not listen yet: before a model is loaded it is known that
        there is room for its server. Raises ConfigError."""
        self.check(settings)
        made: socket.socket | None = None
        try:
            (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            # The protocol is named, as asyncio sends small pieces at once only where it sees that it is TCP:
            # else every second piece waits 40 ms for the client's acknowledgement of the first.
            made = socket.socket(family, kind, protocol)
            if os.name == "posix":  # elsewhere it would let two servers share a port
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            return made
        except OSError as error:
            if made is not None:
                made.close()
            raise ConfigError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror or error}",
                "is another server there? --port chooses another",
            ) from error

    def address(self, port: int) -> str:
        """What clients are told."""
        scheme = "http" if self.certificate is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{port}"

    def check(self, settings: ServeSettings) -> None:
        """Raise ConfigError unless a server with these settings may listen there."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is outside 0 to 65535")
        if not is_loopback(self.host) and not settings.api_keys:
            raise ConfigError(
                f"--host {self.host} lets other machines ask, and there is no API key",
                "give --api-key-file or MINICPM4_API_KEY, or leave --host at 127.0.0.1",
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS needs both --tls-cert and --tls-key", "give the other one too")
        if self.certificate is not None:
            try:
                # Without a password OpenSSL would ask the terminal for that of an encrypted key, and wait.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"--tls-cert {self.certificate} and --tls-key {self.key} are no PEM pair: {error}",
                    "give a certificate and its own key, which has no password",
                ) from error


async def serve(
    models: AsyncLLM | Shelf,
    settings: ServeSettings,
    where: Socket,
    door: socket.socket,
    started: Callable[[str], None],
    apis: Sequence[Api] = APIS,
) -> None:
    """Serve at ``door``, which ``where`` has opened, until told to end (``ending_signals``); then let nobody
    in, and end when those under way have (``drain`` seconds at most). A second signal ends at once.
    ``started`` is told the server's address."""
    app = create_app(models, settings, apis)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # not a line for every scan of our port
    server = uvicorn.Server(
        uvicorn.Config(
            _Asgi(app),
            ssl_certfile=where.certificate,
            ssl_keyfile=where.key,
            http=patient(settings.read, settings.stalled),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=3,  # for goodbyes: answers were waited for before
            ws="none",
        )
    )
    watch_the_door(asyncio.get_running_loop())
    running = asyncio.ensure_future(server.serve(sockets=[door]))
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            _obey_signals(app, server, settings.drain)
            started(where.address(door.getsockname()[1]))
        await running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _obey_signals(app: Server, server: uvicorn.Server, drain: float) -> None:
    """From now on, signals are ours: uvicorn would close its door, where we answer that we are ending."""
    loop = asyncio.get_running_loop()
    endings: list[asyncio.Task[None]] = []

    async def end() -> None:
        logger.info("ending: %d requests under way have %g s", app.shelf.count, drain)
        await app.shelf.drain(drain)
        server.should_exit = True

    def told(*_: Any) -> None:
        if endings:
            app.shelf.hurry()
            server.should_exit = True
        else:
            endings.append(loop.create_task(end()))

    for number in ending_signals():
        try:
            loop.add_signal_handler(number, told)
        except (NotImplementedError, RuntimeError):  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(told))


class _Asgi:
    """Uvicorn looks at an application's class to learn which protocol it speaks."""

    def __init__(self, app: Server) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)
