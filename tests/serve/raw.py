"""Requests as bytes, for servers in processes of their own."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from http.client import HTTPResponse
from typing import Any

import httpx

SECONDS = 60.0  # after which a server hangs


class Raw:
    """A connection. ``buffer``: bytes that the client's side takes before somebody reads."""

    def __init__(self, address: str, buffer: int | None = None) -> None:
        url = httpx.URL(address)
        self.host = f"{url.host}:{url.port}"
        self.socket = socket.socket()
        self.socket.settimeout(SECONDS)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect((url.host, url.port))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """A server that has closed is no error here: what it said is."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def ask(self, path: str, body: Any, method: str = "POST", **headers: Any) -> None:
        """``body``: bytes as they are, anything else as JSON; headers of bytes take the place of ours, None
        leaves one out."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named: dict[str, Any] = {
            "Host": self.host,
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{name}: {value}" for name, value in named.items() if value is not None]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + content)

    def answer(self) -> tuple[int, bytes]:
        """The status and body of one answer."""
        with HTTPResponse(self.socket) as response:
            response.begin()
            return response.status, response.read()

    def codes(self) -> list[int]:
        """The status of every answer, until the server closes."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(1 << 16):
                said += part
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", said)]
