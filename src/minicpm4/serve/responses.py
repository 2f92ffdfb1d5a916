"""What goes back: JSON at once, or events one by one. Both are ASGI applications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from minicpm4.files import finite, json_text
from minicpm4.serve.bodies import ClientGoneError, Receive
from minicpm4.serve.errors import ApiError, api_error
from minicpm4.serve.gate import Ticket

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]

PING = 15.0  # seconds without an event after which something shows that the stream lives


def to_json(value: Any) -> bytes:
    """JSON in UTF-8, whatever strings hold: lone surrogates, which models do not write but clients send."""
    try:
        return json_text(value, ascii_only=False).encode()
    except ValueError:
        return json_text(finite(value)).encode()


PATIENCE = 5.0  # seconds for a last word
MAX_HEADER = 1000  # characters


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    @classmethod
    def of(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        return cls(to_json(value), status, headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"content-type": self.media_type, "content-length": str(len(self.body)), **self.headers}
        await send(_start(self.status, headers))
        await send({"type": "http.response.body", "body": self.body})


def _comment() -> str:
    return ": still here\n\n"


@dataclass(frozen=True, slots=True)
class Events:
    """Server-sent events, each a text of lines (``event_text``), as they come. ``on_error``: the last words
    of a stream that cannot go on; None: those of its API. ``alive``: what is sent where none comes for long.
    A comment is enough for proxies; clients that count events alone give up after some minutes, so where an
    API has one that says nothing, it is that."""

    source: AsyncGenerator[str]
    on_error: Callable[[ApiError], str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    alive: Callable[[], str] = _comment


def header_list(names: Sequence[str]) -> str:
    """Names for a header: ASCII in one line, of bounded length, no spaces around it, which HTTP forbids."""
    each = (name.encode("ascii", "backslashreplace").decode().strip(" ") or '""' for name in names)
    text = "".join(char if char.isprintable() else "?" for char in ", ".join(each))
    return text if len(text) <= MAX_HEADER else text[: MAX_HEADER - 3] + "..."


def event_text(data: Any, event: str | None = None) -> str:
    """One event. ``data``: a string as it is, anything else as JSON."""
    text = data if isinstance(data, str) else to_json(data).decode()
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


@dataclass(frozen=True, slots=True)
class EventReply:
    """Sends events until they end, the client goes or time is over; ``on_error`` words what went
    wrong, ``on_gone`` is told that nobody listens any more, ``on_end`` that it has ended."""

    events: Events
    ticket: Ticket
    headers: Mapping[str, str]
    on_error: Callable[[ApiError], str]
    on_gone: Callable[[], None]
    on_end: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send_all(send))
        except ClientGoneError:
            self.on_gone()
        finally:
            self.on_end()

    async def _send_all(self, send: Send) -> None:
        async def put(text: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            **self.headers,
        }
        await send(_start(200, headers))
        try:
            async with self.ticket.timed():
                await self._pass_on(put)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            with suppress(TimeoutError):  # it may be that the client does not read
                async with asyncio.timeout(PATIENCE):
                    await put(self.on_error(api_error(error)))
                    await put("", more=False)
        else:
            await put("", more=False)

    async def _pass_on(self, put: Callable[[str], Awaitable[None]]) -> None:
        source = self.events.source
        following: asyncio.Future[str] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(source))
                while not (await asyncio.wait({following}, timeout=PING))[0]:
                    await put(self.events.alive())
                try:
                    text = following.result()
                except StopAsyncIteration:
                    return
                await put(text)
        finally:
            if following is not None and not following.done():
                following.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await following
            await source.aclose()


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes: then ClientGoneError is raised."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}
