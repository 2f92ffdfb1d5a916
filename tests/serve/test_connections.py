"""Clients that are slow: no connection stays open for what does not come."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from tests.serve.conftest import CHAT, HELLO
from tests.serve.processes import Running, scripted
from tests.serve.raw import Raw
from tests.waiting import until

READ = 1.0  # seconds that the server lets clients take
STALLED = 2.5  # longer than a client of these tests rests
BODY = {"messages": HELLO}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with scripted(read=READ, stalled=STALLED, max_waiting=0) as running:
        yield running


def drip(raw: Raw, data: bytes, until: threading.Event) -> None:
    """A byte every tenth of a second, for as long as the server takes it."""
    for byte in cycle(data):
        if until.wait(0.1):
            return
        raw.send(bytes([byte]))


@pytest.mark.parametrize(
    ("begun", "dripped", "codes"),
    [
        (b"", b"", []),
        (b"", b"GET /health HTTP/1.1\r\nX-Slow: ", []),
        (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n", b" ", [408]),
        (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n", b" ", [404]),
        (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n", b"", [404]),
    ],
    ids=["nothing", "head", "body", "refused body", "half a refused body"],
)
def test_what_does_not_come_is_not_waited_for(
    server: Running, begun: bytes, dripped: bytes, codes: list[int]
) -> None:
    began, done = time.monotonic(), threading.Event()
    with Raw(server.address) as raw:
        raw.send(begun)
        thread = threading.Thread(target=drip, args=(raw, dripped, done))
        thread.start()
        assert raw.codes() == codes
        done.set()
        thread.join()
    assert time.monotonic() - began > READ * 0.9  # and it was the server that closed: the client drips on


def test_a_connection_may_rest_between_requests(server: Running) -> None:
    with Raw(server.address) as raw:
        for _ in range(2):
            raw.ask(CHAT, BODY)
            assert raw.answer()[0] == 200
            time.sleep(2 * READ)
        raw.ask(CHAT, BODY)
        assert raw.answer()[0] == 200


def test_an_answer_may_take_longer_than_a_request(server: Running) -> None:
    """Nobody is waited for while the server writes."""
    with Raw(server.address) as raw:
        raw.ask(
            CHAT, {"messages": [{"role": "user", "content": 'say: "' + "long " * 400 + '"'}], "stream": True}
        )
        time.sleep(2 * READ)
        assert raw.answer()[0] == 200


WORDS = "word " * 700
LONG: dict[str, Any] = {  # megabytes
    "messages": [{"role": "user", "content": f"say: {json.dumps(WORDS)}"}],
    "logprobs": True,
    "top_logprobs": 20,
}


def read_all(raw: Raw, pause: float, piece: int) -> bytes:
    """What comes until the connection ends or the answer is whole, a piece at a time."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while not said.endswith(b"0\r\n\r\n") and (part := raw.socket.recv(piece)):
            said += part
            time.sleep(pause)
    return said


def test_streams_that_nobody_reads_give_their_places_back(server: Running) -> None:
    gone = server.metric("minicpm4_clients_gone_total")
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(Raw(server.address, buffer=2048)) for _ in range(8)]
        for raw in deaf:
            raw.ask(CHAT, {**LONG, "stream": True})
        until(lambda: server.metric("minicpm4_requests") == 8)  # all places: others are refused
        assert server.http.post(CHAT, json=BODY).status_code == 429
        until(lambda: server.metric("minicpm4_requests") == 0 == server.metric("minicpm4_pages_held"))
        assert server.http.post(CHAT, json=BODY).status_code == 200
        assert server.metric("minicpm4_clients_gone_total") == gone + 8
        for raw in deaf:
            assert b"[DONE]" not in read_all(raw, 0.0, 1 << 16)


def test_a_whole_answer_that_nobody_reads_keeps_no_connection(server: Running) -> None:
    with Raw(server.address, buffer=2048) as raw:
        raw.ask(CHAT, LONG)
        time.sleep(2.5 * STALLED)
        said = read_all(raw, 0.0, 1 << 16)
        assert b" 200 " in said[:20] and not said.endswith(b"}")


def test_a_slow_reader_is_waited_for(server: Running) -> None:
    began = time.monotonic()
    body = {**LONG, "messages": [{"role": "user", "content": f"say: {json.dumps(WORDS[:220])}"}]}
    with Raw(server.address, buffer=2048) as raw:
        raw.ask(CHAT, {**body, "stream": True})
        said = read_all(raw, 0.05, 1 << 15)
    assert b"[DONE]" in said and time.monotonic() - began > 2 * STALLED
