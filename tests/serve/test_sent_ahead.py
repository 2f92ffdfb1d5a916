"""Clients that send more than is wanted: requests ahead of answers, bytes behind the last one, two lengths,
more connections than there are descriptors."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.endurance import facts
from tests.serve.conftest import CHAT, HELLO
from tests.serve.processes import Running, scripted
from tests.serve.raw import Raw
from tests.waiting import until

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="memory and limits of a process are asked of Linux"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with scripted(read=30.0) as running:
        yield running


def post(body: Any, *lines: str, version: str = "1.1") -> bytes:
    """A request with a body, as bytes."""
    content = json.dumps(body).encode()
    head = [
        f"POST {CHAT} HTTP/{version}",
        "Host: localhost",
        f"Content-Length: {len(content)}",
        *lines,
        "",
        "",
    ]
    return "\r\n".join(head).encode() + content


@linux
def test_what_is_sent_ahead_waits_outside(server: Running) -> None:
    before, done, sent = facts(server.process.pid)["MB"], threading.Event(), 0

    def flood(raw: Raw) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while not done.is_set():
                sent += raw.socket.send(HEALTH * 20_000)

    with Raw(server.address) as raw:
        thread = threading.Thread(target=flood, args=(raw,))
        thread.start()
        said = 0
        while said < 2_000_000:  # bytes: some 9,000 answers
            said += len(raw.socket.recv(1 << 20))
        after = facts(server.process.pid)["MB"]
        done.set()
        raw.socket.shutdown(2)
        thread.join()
    assert said > 100_000
    assert after < before + 30, f"of {sent / 1e6:.0f} MB sent ahead {after - before:.0f} MB are held"


def test_all_that_is_sent_ahead_is_answered(server: Running) -> None:
    """Bodies larger than what is read ahead, and a head that was begun behind them."""
    long = {"messages": [{"role": "user", "content": "x" * 300_000}]}
    with Raw(server.address) as raw:
        thread = threading.Thread(target=raw.send, args=((post(long) + HEALTH * 3000) * 2 + LAST,))
        thread.start()
        codes = raw.codes()
        thread.join()
    assert len(codes) == 2 + 6000 + 1 and codes.count(200) >= 6001


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_bytes_behind_the_last_request_cut_no_answer(version: str, capfd: pytest.CaptureFixture[str]) -> None:
    body = {"messages": [{"role": "user", "content": 'say: "' + "long " * 200 + '"'}], "stream": True}
    with scripted() as server, Raw(server.address) as raw:
        raw.send(post(body, "Connection: close", version=version))
        said = raw.socket.recv(100)
        raw.send(b"\0more" + HEALTH)
        with contextlib.suppress(ConnectionError):
            while part := raw.socket.recv(1 << 16):
                said += part
    assert b"data: [DONE]" in said
    assert capfd.readouterr().err == ""


def test_a_broken_body_behind_its_answer_is_no_error_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with scripted() as server, Raw(server.address) as raw:
        raw.send(head)
        said = raw.socket.recv(1 << 16)
        raw.send(b"this is no chunk\r\n")
        assert b" 404 " in said and raw.codes() == []
    assert capfd.readouterr().err == ""


def test_two_lengths_are_refused_and_nothing_is_read_behind_them(server: Running) -> None:
    with Raw(server.address) as raw:
        raw.ask("/tokenize", b"2\r\n{}\r\n0\r\n\r\n" + HEALTH, Content_Length=5, Transfer_Encoding="chunked")
        with contextlib.closing(raw.socket):
            said = b""
            with contextlib.suppress(ConnectionError):
                while part := raw.socket.recv(1 << 16):
                    said += part
    assert said.count(b"HTTP/1.1 ") == 1 and b" 400 " in said[:20]
    assert b"Content-Length and Transfer-Encoding are both given: send one of them" in said


def test_an_error_of_the_whole_body_names_it(server: Running) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "\\ud83d": 1}'
    told = server.http.post(CHAT, content=body)
    assert told.status_code == 400 and told.json()["error"]["message"].startswith("the body = {'messages'")


@linux
def test_without_descriptors_clients_wait_and_a_line_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    import resource

    with scripted(read=60.0) as server, contextlib.ExitStack() as stack:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (32, 32))
        many = [stack.enter_context(Raw(server.address)) for _ in range(100)]
        until(lambda: facts(server.process.pid)["files"] >= 32)
        time.sleep(2.5)  # asyncio tries again each second
        for raw in many:
            raw.socket.close()
        assert server.http.post(CHAT, json={"messages": HELLO}).status_code == 200
        more = [stack.enter_context(Raw(server.address)) for _ in range(100)]
        until(lambda: facts(server.process.pid)["files"] >= 32)
        del more  # they wait as the server is told to end
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "Too many open files" in told and "ulimit -n" in told
