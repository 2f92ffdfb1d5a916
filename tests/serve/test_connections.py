"""Clients that are slow: no connection stays open for what does not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.serve.conftest import CHAT, HELLO
from tests.serve.processes import Running, scripted
from tests.serve.raw import Raw

READ = 1.0  # seconds that the server lets clients take
BODY = {"messages": HELLO}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with scripted(read=READ) as running:
        yield running


def drip(raw: Raw, data: bytes, until: threading.Event) -> None:
    """A byte every tenth of a second."""
    for byte in data * 100:
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
    assert READ * 0.9 < time.monotonic() - began < 15 * READ


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
