"""1,000 requests of clients that are broken or mean: an answer or a 4xx, and the server as before."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.endurance import Facts, facts, growth
from tests.serve.processes import Running, small
from tests.serve.raw import Raw
from tests.waiting import until

pytestmark = pytest.mark.slow

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "Hello."}]
LONG = {"messages": HELLO, "ignore_eos": True}
CLOSE = "Connection: close"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HELLO, "max_tokens": 2, "stop": ["x"], "seed": 1, "temperature": 0.5}),
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, "logprobs": 1, "echo": True}),
    (MESSAGES, {"messages": HELLO, "max_tokens": 2, "system": "Be brief."}),
    (RESPONSES, {"input": "Hello.", "max_output_tokens": 2, "stream": True}),
    ("/v1/embeddings", {"input": ["Hello."]}),
    ("/tokenize", {"content": "Hello."}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
ODD = ["NaN", "-Infinity", "1e999", "-1", "9" * 9000, "1e-999", '"\\ud800"', '"\\u0000"', "null", "[]", "{}"]
ODD += ["[" * 99 + "]" * 99, "true", '"' + "x" * 9999 + '"', "[null, 1, {}]", "0.5", '"\\uffff"', "1e400"]


class Client:
    """One that is hostile: each of its ways is one request or connection, and gives the answers' codes."""

    def __init__(self, address: str, seed: int) -> None:
        self.address, self.rng = address, random.Random(seed)
        self.path, self.body = self.rng.choice(BODIES)
        self.text = json.dumps(self.body).encode()

    def __call__(self) -> list[int]:
        ways = [name for name in vars(Client) if not name.startswith("_")]
        return getattr(self, self.rng.choice(ways))()

    def _said(self, data: bytes, path: str | None = None, **headers: Any) -> list[int]:
        with Raw(self.address) as raw:
            raw.ask(path or self.path, data, **{"Connection": "close", **headers})
            codes = raw.codes()
            assert codes, (path or self.path, data[:300], headers)  # not dropped: it is a request
            return codes

    def _sent(self, data: bytes) -> list[int]:
        with Raw(self.address) as raw:
            raw.send(data)
            return raw.codes()

    def _head(self, *lines: str) -> bytes:
        return "\r\n".join([f"POST {self.path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode(
            "latin-1"
        )

    def truncated(self) -> list[int]:
        return self._said(self.text[: self.rng.randrange(len(self.text))])

    def odd_values(self) -> list[int]:
        values = re.findall(rb"(?<=: )[^,:{}]+", self.text)
        return self._said(self.text.replace(self.rng.choice(values), self.rng.choice(ODD).encode(), 1))

    def odd_keys(self) -> list[int]:
        keys = re.findall(rb'"\w+"(?=:)', self.text)
        odd = [
            b'"\\ud800"',
            b'""',
            b'" "',
            b'"\\n"',
            b'"\\u0000"',
            b'"' + b"k" * 9999 + b'"',
            keys[0],
        ]  # one key twice
        return self._said(self.text.replace(self.rng.choice(keys), self.rng.choice(odd), 1))

    def flipped_bytes(self) -> list[int]:
        data = bytearray(self.text)
        for _ in range(self.rng.randint(1, 5)):
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        return self._said(bytes(data))

    def no_json(self) -> list[int]:
        some = [b"", b"\0", b"\xff\xfe", b"[]", b"1", b"\xef\xbb\xbf" + self.text]
        some += [self.text.decode().encode("utf-16"), b"[" * 99999, b'{"a":' * 99999, self.rng.randbytes(999)]
        return self._said(self.rng.choice(some))

    def compressed(self) -> list[int]:
        data = gzip.compress(self.rng.choice([self.text, b" " * (1 << 26)]))
        return self._said(data, Content_Encoding="gzip")

    def other_types(self) -> list[int]:
        kinds = [
            "text/plain",
            "multipart/form-data; boundary=x",
            "",
            "application/json; charset=utf-16",
            "\xff",
        ]
        return self._said(self.text, Content_Type=self.rng.choice(kinds))

    def wrong_length(self) -> list[int]:
        """Too short: the rest is no request. Too long: the client goes without more."""
        given = self.rng.choice([len(self.text) // 2, len(self.text) + 9, -1, "x", "1, 2", 10**30, 1 << 34])
        with Raw(self.address) as raw:
            raw.ask(self.path, self.text, Content_Length=given)
            if given == len(self.text) + 9:
                time.sleep(0.05)
                return []
            raw.socket.shutdown(socket.SHUT_WR)
            return raw.codes()

    def two_lengths(self) -> list[int]:
        more = self.rng.choice(["Content-Length: 5", "Transfer-Encoding: chunked", "Content-Length: 999999"])
        return self._sent(self._head(f"Content-Length: {len(self.text)}", more, CLOSE) + self.text)

    def chunked(self) -> list[int]:
        size = self.rng.choice([b"%x" % len(self.text), b"zz", b"-5", b"f" * 99, b"5;" + b"x" * 9999, b""])
        head = self._head("Transfer-Encoding: chunked", CLOSE)
        return self._sent(head + size + b"\r\n" + self.text + b"\r\n0\r\n\r\n" + b"x" * 50)

    def huge_head(self) -> list[int]:
        many = [f"X-{i}: y" for i in range(9999)]
        return self._sent(
            self._head(*self.rng.choice([["X-Long: " + "x" * 200_000], many, ["X" * 99999]]), CLOSE)
        )

    def no_http(self) -> list[int]:
        noise = self.rng.randbytes(999)
        data = [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + noise, b"\r\n" * 999 + b"x\r\n\r\n"]
        data += [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n", b"\0" * 999, noise + b"\r\n\r\n"]
        with Raw(self.address) as raw:
            raw.send(self.rng.choice(data))
            raw.socket.shutdown(socket.SHUT_WR)
            return raw.codes()

    def old_http(self) -> list[int]:
        head = self._head(f"Content-Length: {len(self.text)}")
        return self._sent(head.replace(b"HTTP/1.1", b"HTTP/1.0") + self.text)

    def wrong_method(self) -> list[int]:
        method = self.rng.choice(
            ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "HEAD", "BREW"]
        )
        return self._said(self.text, method=method)

    def wrong_path(self) -> list[int]:
        paths = [
            "/../etc/passwd",
            "/%00",
            "/%ff%fe",
            "/v1/chat/completions/",
            "//",
            "/" + "x" * 9999,
            "*",
            "http://x/y",
        ]
        return self._said(self.text, self.rng.choice(paths))

    def other_hosts(self) -> list[int]:
        headers = [
            {"Host": "evil.example"},
            {"Host": ""},
            {"Host": None},
            {"Host": "x" * 9999},
            {"Host": "[::1"},
        ]
        headers += [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "\xff"}]
        return self._said(self.text, **self.rng.choice(headers))

    def odd_headers(self) -> list[int]:
        headers = [{"Expect": "100-continue"}, {"Upgrade": "websocket", "Connection": "upgrade, close"}]
        headers += [
            {"Authorization": "Bearer \xff"},
            {"anthropic_version": "\xff" * 999},
            {"Range": "bytes=9-1"},
        ]
        return self._said(self.text, **self.rng.choice(headers))

    def pipelined(self) -> list[int]:
        """The last one closes, or nobody waits for the answers."""
        ask = self._head(f"Content-Length: {len(self.text)}") + self.text
        with Raw(self.address) as raw:
            raw.send(ask * 4 + self._head(CLOSE, "Content-Length: 0"))
            return raw.codes() if self.rng.random() < 0.5 else []

    def slow_head(self) -> list[int]:
        with Raw(self.address) as raw:
            for byte in self._head()[: self.rng.randint(1, 20)]:
                raw.send(bytes([byte]))
                time.sleep(0.05)
        return []

    def slow_body(self) -> list[int]:
        """It comes in the end."""
        with Raw(self.address) as raw:
            raw.ask(self.path, b"", Content_Length=len(self.text), Connection="close")
            for i in range(0, len(self.text), 8):
                raw.send(self.text[i : i + 8])
                time.sleep(0.03)
            return raw.codes()

    def gone(self) -> list[int]:
        """A long answer whose client goes, at any moment."""
        with Raw(self.address) as raw:
            asked = {
                "messages": HELLO,
                "max_tokens": 500,
                "ignore_eos": True,
                "stream": self.rng.random() < 0.5,
            }
            raw.ask(CHAT, asked)
            time.sleep(self.rng.random())
        return []

    def deaf(self) -> list[int]:
        """A stream that nobody reads."""
        with Raw(self.address, buffer=2048) as raw:
            raw.ask(
                CHAT,
                {"messages": HELLO, "max_tokens": 60, "ignore_eos": True, "stream": True, "logprobs": True},
            )
            time.sleep(0.5)
        return []


def settled(server: Running) -> Facts:
    """What the process holds once nothing is in hand any more."""
    until(lambda: server.metric("minicpm4_pages_held") == 0 == server.metric("minicpm4_requests"))
    return facts(server.process.pid)


@contextlib.contextmanager
def idle(server: Running, count: int) -> Iterator[None]:
    """So many connections that say nothing, or half a head."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            raw = stack.enter_context(Raw(server.address))
            raw.send(b"GET / HT" * (i % 2))
        yield


def half(server: Running, seeds: range) -> Counter[int]:
    """The codes of 500 requests, 16 at a time."""
    codes: Counter[int] = Counter()
    with idle(server, 200), ThreadPoolExecutor(16) as pool:
        asked: list[Callable[[], list[int]]] = [Client(server.address, seed) for seed in seeds]
        for found in pool.map(lambda one: one(), asked):
            codes.update(found)
    return codes


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="memory and files of a process are read in /proc"
)
def test_1000_hostile_requests() -> None:
    with small("--max-batch", "4", "--max-waiting", "32", "--quiet") as server:
        before = settled(server)
        codes = half(server, range(500))
        first = settled(server)
        codes += half(server, range(500, 1000))
        second = settled(server)
        answer = server.http.post(CHAT, json={"messages": HELLO, "max_tokens": 2})
    print(dict(codes), before, first, second)
    assert not [code for code in codes if code >= 500] and codes[200] > 50 and codes[400] > 200
    assert answer.status_code == 200
    assert growth(first, second) == []
