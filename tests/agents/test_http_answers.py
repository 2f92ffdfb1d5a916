"""What servers over HTTP may do with the form of their answers: encoding, pauses, what is no message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.wire import Wire, _Bounded
from minicpm4.errors import ToolServerError
from tests.agents.made_server import ADD
from tests.agents.servers import reached, running, served

_GREETING = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "m", "version": "1"},
}
_RESULTS = {"initialize": _GREETING, "tools/list": {"tools": [ADD]}}
_JSON, _EVENTS = "application/json", "text/event-stream"


class _Old:
    """An old server, whose answers have these types; ``wrong``: the method that is answered with ``body``."""

    def __init__(
        self, kind: str = _JSON, wrong: str = "", body: bytes = b"", wrong_kind: str = _JSON
    ) -> None:
        self.kind, self.wrong, self.body, self.wrong_kind = kind, wrong, body, wrong_kind
        self.streams = 0
        self.stream = b"retry: 0\n\n"
        self.breaks = False  # off in the middle of the wrong answer
        self.silent = False  # at the end of a session

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            self.streams += 1
            await _say(send, 200, _EVENTS, self.stream)
            return
        if scope["method"] == "DELETE" and self.silent:
            await asyncio.sleep(3600)
        asked = json.loads((await receive())["body"] or b"{}")
        method = asked.get("method", "")
        if method == self.wrong and self.breaks:
            more = {"type": "http.response.body", "body": self.body, "more_body": True}
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", self.wrong_kind.encode())],
                }
            )
            await send(more)
            raise ConnectionError
        if method == self.wrong:
            await _say(send, 200, self.wrong_kind, self.body.replace(b"ID", str(asked["id"]).encode()))
        elif method in _RESULTS:
            body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": _RESULTS[method]}).encode()
            told = b"data: " + body + b"\n\n" if self.kind.startswith(_EVENTS) else body
            await _say(send, 200, self.kind, told)
        else:
            await _say(send, 405 if "id" in asked else 202, _JSON, b"")


async def _say(send: Any, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"mcp-session-id", b"s")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _tools(app: _Old, stay: float = 0.0) -> list[str]:
    async def go() -> list[str]:
        async with served(app) as url, running(reached(f"{url}/mcp"), limits=Limits(start_seconds=20)) as one:
            found = await one.tools()
            await asyncio.sleep(stay)
            return [tool.name for tool in found]

    return asyncio.run(go())


@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "zlib", "x"])
def test_a_stream_of_events_is_utf_8_whatever_it_says(charset: str) -> None:
    assert _tools(_Old(f"{_EVENTS}; charset={charset}")) == ["add"]


def test_a_server_that_ends_its_stream_at_once_is_not_asked_without_pause() -> None:
    app = _Old()
    assert _tools(app, stay=1.0) == ["add"]
    assert 1 <= app.streams <= 15


@pytest.mark.parametrize("kind", [_JSON, _EVENTS])
@pytest.mark.parametrize("method", ["tools/list", "initialize"])
def test_an_answer_that_is_no_message_is_not_told_whole(kind: str, method: str) -> None:
    body = json.dumps({"told": "two words " * 90}).encode()
    app = _Old(wrong=method, body=b"data: " + body + b"\n\n" if kind == _EVENTS else body, wrong_kind=kind)
    with pytest.raises(ToolServerError, match="protocol") as caught:
        _tools(app)
    assert "two words" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_refused_greeting_is_told_in_quotes() -> None:
    error = {"code": -32603, "message": "two words\n" * 90}
    body = b'{"jsonrpc": "2.0", "id": ID, "error": ' + json.dumps(error).encode() + b"}"
    with pytest.raises(ToolServerError, match=r"error -32603: 'two words\\n") as caught:
        _tools(_Old(wrong="initialize", body=body))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("pause", [b"9" * 400, b" " + b"9" * 4000, b"-" + b"9" * 310, b"99999999999"])
def test_a_pause_that_no_clock_has_ends_no_connection(pause: bytes) -> None:
    app = _Old()
    app.stream = b"id: 1\nretry:" + pause + b"\n\n"
    assert _tools(app, stay=0.5) == ["add"]


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_only_long_pauses_are_left_out_of_a_stream(size: int) -> None:
    kept = b"retry: 5\n\nr\nretry\nretr: 1\rdata: retry:99999999999\r\nretr"
    whole = b"retry:" + b"9" * 400 + b"\nretry: " + b"8" * 5000 + b"\r\n" + kept + b"y:" + b"7" * 99

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), size):
            yield whole[at : at + size]

    async def go() -> bytes:
        body = _Bounded(pieces(), Wire(Limits()), stream=True, aside=False)
        return b"".join([chunk async for chunk in body])

    assert asyncio.run(go()).startswith(b"retry:\nretry:\r\n" + kept.removesuffix(b"retr"))


def test_a_server_that_answers_no_farewell_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    app, waits = _Old(), []
    app.silent = True
    wait = asyncio.wait

    async def timed(*given: Any, **more: Any) -> Any:
        found = await wait(*given, **more)
        waits.append(found)
        assert found[0], "its task was given up"
        return found

    monkeypatch.setattr(asyncio, "wait", timed)
    assert _tools(app) == ["add"]
    assert waits


@pytest.mark.parametrize(
    ("kind", "told"), [(_JSON, "RemoteProtocolError: peer closed"), (_EVENTS, "SSE stream ended")]
)
def test_how_a_connection_was_lost_is_told(kind: str, told: str) -> None:
    app = _Old(wrong="tools/list", body=b": x\n", wrong_kind=kind)
    app.breaks = True
    with pytest.raises(ToolServerError, match=told):
        _tools(app)
