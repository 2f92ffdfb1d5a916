"""What a stream sends while a long prompt is read: what its API's clients take for a sign of life."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from minicpm4.serve import responses
from tests.serve.conftest import CHAT, HELLO

ANTHROPIC = {"messages": HELLO, "max_tokens": 9}


async def streamed(app: Any, path: str, body: Any, sign: bytes, release: threading.Event) -> str:
    """All that is sent; the engine is let go when the sign has come three times more than at the start."""
    asked = json.dumps({"model": "scripted", **body, "stream": True}).encode()
    head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": head}
    never, given, sent = asyncio.Event(), [{"type": "http.request", "body": asked}], b""

    async def receive() -> Any:
        if not given:
            await never.wait()
        return given.pop()

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"")
        if sent.count(sign) >= 4:
            release.set()

    await app(scope, receive, send)
    return sent.decode()


@pytest.mark.parametrize(
    ("path", "body", "sign"),
    [
        (CHAT, {"messages": HELLO}, ": still here\n\n"),
        ("/v1/messages", ANTHROPIC, 'event: ping\ndata: {"type": "ping"}\n\n'),
        ("/v1/responses", {"input": "hello"}, "event: response.in_progress\n"),
    ],
)
def test_a_stream_shows_that_it_lives(
    serve: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, sign: str
) -> None:
    """Codex counts events alone, and gives a stream up where none comes for five minutes."""
    monkeypatch.setattr(responses, "PING", 0.01)
    release = threading.Event()
    server = serve(["a", release, "b"])
    try:
        text = asyncio.run(streamed(server.app, path, body, sign.encode(), release))
    finally:
        release.set()
    assert text.count(sign) >= 4
    data = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    numbers = [one["sequence_number"] for one in map(json.loads, data) if "sequence_number" in one]
    assert numbers == list(range(len(numbers)))
    assert "ab" in "".join(said(json.loads(one)) for one in data)


def said(event: Any) -> str:
    """The text that an event of any of the APIs brings."""
    if choices := event.get("choices"):
        return choices[0]["delta"].get("content") or ""
    delta = event.get("delta")
    return delta if isinstance(delta, str) else (delta or {}).get("text", "")
