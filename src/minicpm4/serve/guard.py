"""Who may ask, before anything is read: the Host and Origin of web pages, keys, a server that is ending."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from minicpm4.serve.endpoints import Api, family
from minicpm4.serve.errors import ApiError, api_error
from minicpm4.serve.gate import ending
from minicpm4.serve.responses import Scope, Send
from minicpm4.serve.shelf import Shelf

logger = logging.getLogger("minicpm4.serve")

CLOSED = 499  # in the log: the client went
MAX_PATH = 80  # characters of a path, in the log

App = Callable[[Scope, Any, Send], Awaitable[None]]


@dataclass(slots=True)
class Guard:
    """An ASGI application before another. ``api_of(scope)`` words the refusals; ``paths`` are those that are
    counted; ``open_paths`` are answered without a key: they tell nothing of the model or of other people."""

    app: App
    shelf: Shelf
    api_of: Callable[[Scope], Api]
    paths: frozenset[str]
    open_paths: frozenset[str]
    _hosts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        own = {"localhost", socket.gethostname().lower()}
        self._hosts = frozenset(own | {name.lower() for name in self.shelf.settings.hosts})

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        started, status, path = time.monotonic(), CLOSED, str(scope["path"])
        begun = False

        async def tell(message: Any) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                more = {"x-request-id": request_id, "x-content-type-options": "nosniff"}
                more_raw = [(name.encode(), value.encode()) for name, value in more.items()]
                message = {**message, "headers": [*message["headers"], *more_raw]}
            await send(message)

        request_id = f"req_{uuid.uuid4().hex[:24]}"
        try:
            self._check(scope, path)
            await self.app(scope, receive, tell)
        except Exception as error:
            if begun:
                raise
            await self.api_of(scope).refuse(api_error(error))(scope, receive, tell)
        finally:
            seconds = time.monotonic() - started
            known = family(path) if family(path) in self.paths else "other"
            self.shelf.metrics.answered(known, status, seconds)
            logger.info("%s %s %s %.3f s %s", scope["method"], _as_asked(path), status, seconds, request_id)

    def _check(self, scope: Scope, path: str) -> None:
        """Raise ApiError unless the request may go on."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # Where a proxy before us reads it the other way, the rest would be a request of somebody else's.
            message = "Content-Length and Transfer-Encoding are both given: send one of them"
            raise ApiError(400, message, code="two_lengths", headers={"Connection": "close"})
        self._check_host(headers)
        if path in self.open_paths:
            return
        self._check_key(headers)
        if self.shelf.closed and path != "/metrics":
            raise ending()

    def _check_host(self, headers: Mapping[bytes, str]) -> None:
        """A web page elsewhere must not reach this server, neither by its own name made to point here (DNS
        rebinding) nor by asking across origins."""
        host = headers.get(b"host", "")
        name = _name_of(host)
        if not (name in self._hosts or _is_address(name)):
            message = (
                f"this server is not called {name[:100]!r}. If it is, start it with --allow-host"
                if name
                else "the request has no Host header: send this server's name or address"
            )
            raise ApiError(403, message, kind="permission_error", code="host_refused")
        origin = headers.get(b"origin")
        if origin is None or origin in self.shelf.settings.origins:
            return
        if origin.partition("://")[2] != host:
            message = f"pages of {origin[:100]!r} may not ask. If they may, start with --allow-origin"
            raise ApiError(403, message, kind="permission_error", code="origin_refused")

    def _check_key(self, headers: Mapping[bytes, str]) -> None:
        keys = self.shelf.settings.api_keys
        if not keys:
            return
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get(b"x-api-key", "")
        given_bytes = given.strip().encode("latin-1", "replace")
        # All are compared, each in constant time: neither which one nor how much of it fits can be timed.
        fits = [hmac.compare_digest(given_bytes, key.encode()) for key in keys]
        if not any(fits):
            message = "the API key is missing or not right: send Authorization: Bearer KEY"
            raise ApiError(
                401,
                message,
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _as_asked(path: str) -> str:
    """A stranger's path for the log: in ASCII without blanks or ends of lines, as it stands in a request's
    first line, and short. What is behind its "?" may be a key, and is not there."""
    shown = quote(path[: MAX_PATH + 1], safe="/:@!$&'()*+,;=~", errors="replace")
    return shown if len(shown) <= MAX_PATH else f"{shown[: MAX_PATH - 1]}…"


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    """Whether it is an IP address: no name, so nobody else's either."""
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an interface."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
