"""Readers of what servers of tools send over HTTP: their heads, bodies and streams of events."""

from __future__ import annotations

import asyncio
import json
import threading
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from mcp.client import streamable_http

from minicpm4.agents.mcp import connection, wire
from minicpm4.agents.mcp.config import ServerSpec
from tests.fuzz.mutate import mutated_bytes
from tests.fuzz.reader import Reader
from tests.fuzz.tools import drawn_answers, plain_answers, used

_SECONDS = 0.15  # of all waiting
_MOST_SAID = 64 << 20  # characters of one answer
_MOST = 400  # requests of one input
_BESIDE = ("notified", "GET", "DELETE")
_STATUS = [*[200] * 8, 202, 204, 301, 302, 307, 308, 400, 401, 404, 405, 429, 500, 503]
_ODD_STATUS = [100, 101, 199, 304, 416, 600, 999, 0, -1, "x", "2" * 300, ""]
_TYPES = [
    *(
        "application/json",
        "text/event-stream",
        "Text/Event-Stream; charset=utf-16",
        "application/json;charset=x",
    ),
    *(
        "text/html",
        "",
        "two words " * 90,
        "é\x85",
        "\t",
        "text/event-stream;charset=punycode",
        "text/event-stream; charset=zlib",
        "application/jsonx",
    ),
]
_NAMES = [
    *("Content-Length", "Transfer-Encoding", "Content-Encoding", "Mcp-Session-Id", "Location", "Connection"),
    *("Set-Cookie", "WWW-Authenticate", "Retry-After", "x", "x y", "", "X" * 300, "Upgrade"),
]
_VALUES: list[Any] = [
    *(
        "-1",
        "x",
        "1e3",
        "9" * 400,
        "chunked",
        "gzip",
        "identity",
        "IDENTITY",
        "br, gzip",
        "",
        "é\x85",
        3,
        1 << 62,
    ),
    *("two words " * 90, "s\x7f\x01", "y" * 70_000, "close", "upgrade", "h2c", "a=b; Domain=x; Max-Age=x"),
]
_PLACES = [
    *(
        "",
        "/mcp",
        "/mcp?x",
        "//",
        "//[",
        "http://[::1",
        "HERE/other",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:1/",
    ),
    *(
        "http://127.0.0.1:99999/",
        "file:///etc/passwd",
        "x:y",
        "http://é/",
        "http://" + "a" * 300 + "/",
        "\udc80",
    ),
    *("HERE/" + "two words " * 90, "http://a b/", "http://@:/", "?" + "q" * 3000, "\x01"),
]
_LINES = [
    *(
        "id: 1",
        "id:",
        "id: \0",
        "id: é\x85",
        "id: " + "1" * 3000,
        "id: a\tb",
        "retry: 0",
        "retry: 1",
        "retry: x",
    ),
    *(
        "retry: -1",
        "retry: " + "9" * 400,
        "retry: " + "9" * 5000,
        "retry: ²",
        "retry: 99999999",
        "event: message",
    ),
    *(
        "event: x",
        "event:",
        "event: " + "two words " * 90,
        "data",
        "data:",
        "data: {",
        ": " + "c" * 3000,
        ":",
    ),
    *("x: y", "\ufeffdata: 1", "data: []", 'data: {"jsonrpc": "2.0", "method": "ping", "id": 1}', ""),
    'data: {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}',
    'data: {"jsonrpc": "2.0", "id": 77, "result": {}}',
]


def _draw(rng: Random) -> bytes:
    """The answers of a server, and how those to each method go over the wire."""
    answers = json.loads(drawn_answers(rng)) if rng.random() < 0.4 else plain_answers(rng)
    streams = rng.random() < 0.5
    sent: dict[str, Any] = {name: _good(streams, one) for name, one in answers.items()}
    sent["notified"] = _sent(202, {}, "")
    sent["GET"] = _good(True, "") if rng.random() < 0.3 else _sent(405, {}, "")
    sent["DELETE"] = _sent(200, {}, "")
    if rng.random() < 0.6:
        sent["initialize"]["headers"]["Mcp-Session-Id"] = "s1"
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        where = rng.choice([*sent, "tools/call", "tools/list"])
        _spoil(rng, sent[where], answers.get(where, ""))
    if rng.random() < 0.3:  # old
        sent["server/discover"] = _sent(rng.choice([400, 404, 405]), {}, "")
    return json.dumps(sent).encode()


def _sent(status: object, headers: Mapping[str, object], body: str) -> dict[str, Any]:
    return {"status": status, "headers": dict(headers), "body": body, "at": [], "end": ""}


def _good(stream: bool, answer: str) -> dict[str, Any]:
    body = "".join(f"data: {line}\n\n" for line in answer.split("\n")) if stream else answer
    kind = "text/event-stream" if stream else "application/json"
    return _sent(200, {"Content-Type": kind}, body)


def _spoil(rng: Random, one: dict[str, Any], answer: str) -> None:
    headers, way = one["headers"], rng.random()
    if way < 0.12:
        one["status"] = rng.choice(_STATUS if rng.random() < 0.7 else _ODD_STATUS)
        if one["status"] in (301, 302, 307, 308):
            headers["Location"] = rng.choice(_PLACES)
    elif way < 0.2:
        headers["Content-Type"] = rng.choice(_TYPES)
    elif way < 0.35:
        headers[rng.choice(_NAMES)] = rng.choice(_VALUES)
    elif way < 0.6:  # a stream of odd lines, whose events may be without an answer
        headers["Content-Type"] = "text/event-stream"
        end = rng.choice(["\n", "\r\n", "\r", "\n"])
        lines = [line for part in answer.split("\n") for line in (f"data: {part}", "")]
        for _ in range(rng.randint(1, 4)):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES))
        if rng.random() < 0.3:
            lines = [line for line in lines if "ID" not in line]
        one["body"] = end.join([*lines, rng.choice(["", "", "data: x"])])
    elif way < 0.67:
        one["body"] = _chunked(rng, one["body"])
        headers["Transfer-Encoding"] = "chunked"
    elif way < 0.75:
        one["repeat"] = rng.choice([2, 1000, 300_000 // max(len(one["body"]), 1), 3])
    elif way < 0.85:
        one["end"] = rng.choice(["hang", "hang", "cut", "close", "again"])
    elif way < 0.95:
        one["damaged"] = rng.randrange(1 << 30)
    one["at"] = sorted(rng.randrange(1000) for _ in range(rng.choice([0, 1, 3, 9])))


def _chunked(rng: Random, body: str) -> str:
    size = rng.choice(
        [f"{len(body.encode('utf-8', 'surrogatepass')) + 2:x}", "5", "x", "-1", "f" * 30, "0", ""]
    )
    more, last = rng.choice(["", ";x=y", ";" + "e" * 9000]), rng.choice(["0", "", "z"])
    return f"{size}{more}\r\n{body}\r\n{last}\r\n\r\n"


class _Server:
    """One that answers each method with what the input says, as often as it is asked."""

    def __init__(self, sent: Mapping[str, Any]) -> None:
        self._sent, self._asked, self.open = sent, Counter[str](), 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> bool:
        """Whether the connection is kept."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        verb = head.split(" ", 1)[0].upper()
        length = int(head.partition("\r\ncontent-length:")[2].split("\r\n")[0] or 0)
        asked = json.loads(await reader.readexactly(length) or b"{}")
        name = (
            verb if verb != "POST" else asked["method"] if "id" in asked and "method" in asked else "notified"
        )
        one = self._sent.get(name, self._sent["notified"])
        self._asked[name] += 1
        assert self._asked[name] < _MOST, f"{name} was asked {_MOST} times"
        again = one["end"] == "again" and self._asked[name] > 1
        for piece in self._pieces(one, asked, whole=again):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if one["end"] == "hang":
            await reader.read()  # until it is left
        return one["end"] in ("", "again") and one["headers"].get("Connection") != "close"

    def _pieces(self, one: Mapping[str, Any], asked: Any, *, whole: bool) -> list[bytes]:
        number = json.dumps(asked.get("id", 0))
        times = min(one.get("repeat", 1), 1 + _MOST_SAID // max(len(one["body"]), 1))
        body = (one["body"] * times).replace('"id": ID', f'"id": {number}')
        content = body.encode("utf-8", "surrogatepass")
        headers = dict(one["headers"])
        if one["end"] == "hang" or "Transfer-Encoding" not in headers:
            headers.setdefault("Content-Length", len(content) + (9 if one["end"] in ("hang", "cut") else 0))
        lines = [f"HTTP/1.1 {one['status']} x", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join(lines).replace("HERE", self.address).encode("utf-8", "surrogateescape")
        raw = head + b"\r\n\r\n" + content
        if "damaged" in one:
            raw = mutated_bytes(Random(one["damaged"]), raw, 200)
        at = [0, *(len(raw) * part // 1000 for part in one["at"]), len(raw)]
        return [raw] if whole else [raw[first:last] for first, last in pairwise(at)]


async def _go(sent: Mapping[str, Any]) -> None:
    made = _Server(sent)
    before = asyncio.all_tasks()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
    made.address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        await used(ServerSpec(name="made", url=f"{made.address}/mcp", timeout=_SECONDS))
    finally:
        left = asyncio.all_tasks() - before - made.tasks
        assert not left, left
        for _ in range(200):  # the ends of connections arrive a moment later
            if not made.open:
                break
            await asyncio.sleep(0.005)
        assert not made.open, f"{made.open} connections are left open"
        failed = [task.exception() for task in made.tasks if task.done() and not task.cancelled()]
        listening.close()
        for error in failed:
            if error is not None:
                raise error


def _read(case: bytes, folder: Path) -> None:
    threads = threading.active_count()
    with (
        mock.patch.object(connection, "PAUSE", 0.0),
        mock.patch.object(wire, "HTTP_SECONDS", 1.0),
        mock.patch.object(wire, "PAUSE", 0.005),
        mock.patch.object(streamable_http, "DEFAULT_RECONNECTION_DELAY_MS", 5),
    ):
        asyncio.run(_go(json.loads(case)))
    assert threading.active_count() <= threads


READERS = [Reader(name="http-servers", draw=_draw, read=_read, share=0.1)]
