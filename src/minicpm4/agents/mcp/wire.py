"""What happens between a server and us, counted: how much it says, what it complains of, why it ended."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2

from minicpm4.agents.mcp.limits import Limits

__all__ = ["Wire", "http_client"]

# The SDK logs what servers write, as it is: neither a terminal nor a log is a place for that.
for _name in ("mcp", "client"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False
logging.getLogger("httpx2").setLevel(logging.WARNING)  # below, each request is told with its URL, keys too

HTTP_SECONDS = 30.0  # to connect and to send
PAUSE = 0.1  # seconds at least between two streams that are asked for: servers may want none
FAREWELL_SECONDS = 1.0  # for the answer to the end of a session, of which nothing follows
_EMPTY = re.compile(rb"(?:\r\n?|\n)(?:\r\n?|\n)")  # line, which ends a message of a stream
_LONG_PAUSE = re.compile(rb"(?<=[\r\n])retry:[^\r\n]{10,}")  # of months and more: the SDK's sleep overflows
_MAY_BE_PAUSE = re.compile(rb"(?<=[\r\n])(?:r|re|ret|retr|retry[^\r\n]*)\Z")  # a line that has not ended
_MOST_HELD = 64  # bytes of that


class Wire:
    """One connection's counts. ``why``: why it broke, once it has."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.why = ""
        self._heard = self._noise = 0
        self._complaints = bytearray()

    def asked(self) -> None:
        """It was asked something: it may say as much again."""
        self._heard = 0

    def count(self, nbytes: int) -> bool:
        """Whether it may say so much more."""
        self._heard += nbytes
        if self._heard > self.limits.request_bytes:
            self.broke(f"it wrote over {self.limits.request_bytes:,} bytes without being asked for more")
        return not self.why

    def noise(self, nbytes: int) -> bool:
        """Whether it may write so much more that is no message."""
        self._noise += nbytes
        if self._noise > self.limits.noise_bytes:
            self.broke("what it writes is no JSON-RPC")
        return not self.why

    def complained(self, chunk: bytes) -> None:
        self._complaints += chunk
        del self._complaints[: -self.limits.stderr_bytes]

    def broke(self, why: str) -> None:
        self.why = self.why or why

    @property
    def complaints(self) -> str:
        """The end of what it wrote on standard error."""
        return self._complaints.decode(errors="replace")

    @property
    def was_noisy(self) -> bool:
        return self._noise > 0


class _Bounded(httpx2.AsyncByteStream):
    """A body of which no more is read than a message may have. It is not compressed: that was not offered."""

    def __init__(self, inner: Any, wire: Wire, *, stream: bool, aside: bool) -> None:
        """``stream``: of many messages; ``aside``: what breaks it breaks no request."""
        self._inner, self._wire, self._stream, self._aside, self._read = inner, wire, stream, aside, 0
        self._end = b""
        self._last, self._held = b"\n", b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        limits = self._wire.limits
        most = limits.request_bytes if self._stream else limits.message_bytes
        async for chunk in self._inner:
            self._read += len(chunk) + (self._events(chunk) * limits.least_bytes if self._stream else 0)
            if self._read > most:
                why = f"it answered with over {most:,} bytes"
                if not self._aside:
                    self._wire.broke(why)
                raise httpx2.StreamError(why)
            yield self._without_long_pauses(chunk) if self._stream else chunk

    def _without_long_pauses(self, chunk: bytes) -> bytes:
        """What of a stream is read on: a pause that no clock has is left out, as one that is no number is."""
        found = self._last + self._held + chunk
        begun = _MAY_BE_PAUSE.search(found)
        self._held = begun[0][:_MOST_HELD] if begun else b""
        found = _LONG_PAUSE.sub(b"retry:", found[: begun.start()] if begun else found)
        passed, self._last = found[1:], found[-1:]
        return passed

    def _events(self, chunk: bytes) -> int:
        """How many messages of a stream end in ``chunk``, as far as its own empty lines tell."""
        before, self._end = self._end, (self._end + chunk)[-3:]
        return len(_EMPTY.findall(before + chunk)) - len(_EMPTY.findall(before))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire, self._next = wire, 0.0
        self._until: float | None = None  # the farewell, redirections too

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":
            return await self._farewell(request)
        if request.method == "GET":
            now = anyio.current_time()
            wait, self._next = max(self._next - now, 0.0), max(self._next, now) + PAUSE
            await anyio.sleep(wait)
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            self._wire.broke("it answered compressed, which it was not asked for")
            raise httpx2.TransportError(self._wire.why)
        response.encoding = (
            "utf-8"  # as a stream of events is; some of Python's take minutes for what is allowed
        )
        streamed = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        response.stream = _Bounded(
            response.stream, self._wire, stream=streamed, aside=request.method != "POST"
        )
        return response

    async def _farewell(self, request: httpx2.Request) -> httpx2.Response:
        """What a server says to the end of its session, without a body: it is waited for, but not long."""
        self._until = self._until or anyio.current_time() + FAREWELL_SECONDS
        with anyio.CancelScope(deadline=self._until):
            response = await super().handle_async_request(request)
            await response.aclose()
            place = response.headers.get("location")
            return httpx2.Response(response.status_code, headers={"location": place} if place else {})
        raise httpx2.ReadTimeout("no answer to the end of the session", request=request)


@asynccontextmanager
async def http_client(headers: dict[str, str], seconds: float, wire: Wire) -> AsyncIterator[Any]:
    """A client that sends ``headers``, waits so many seconds for each piece of an answer and reads bounded
    answers. It goes through no proxy and follows no redirection by itself."""
    async with httpx2.AsyncClient(
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(HTTP_SECONDS, read=seconds),
        transport=_Transport(wire),
        trust_env=False,
    ) as client:
        yield client
