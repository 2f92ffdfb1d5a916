"""The two sides of benchmarks/serving.py's toll, and what it makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.toll import Written, batches, pairs, shares, streamed
from tests.serve.processes import Running, scripted, small


@pytest.fixture
def server() -> Iterator[Running]:
    with scripted() as running:
        yield running


def port(running: Running) -> int:
    found = httpx.URL(running.address).port
    assert found is not None
    return found


def test_every_chat_is_read_to_its_end(server: Running) -> None:
    written = asyncio.run(streamed(port(server), ["one", "two", "three"], 5))
    assert written.tokens == 15 and 0 < written.rate == 15 / written.seconds


def test_a_stream_that_is_refused_is_an_error(server: Running) -> None:
    with pytest.raises(RuntimeError, match="without its usage"):
        asyncio.run(streamed(port(server), ["one"], -1))


def test_a_share_is_that_of_a_pair() -> None:
    found = shares([(Written(90, 1.0), Written(100, 1.0)), (Written(30, 1.0), Written(60, 1.0))])
    assert found["shares"] == [0.9, 0.5]
    assert found["share"] == {"median": 0.7, "least": 0.5, "most": 0.9}
    assert found["server_tokens_per_second"] == [90.0, 30.0]


@pytest.mark.slow
def test_both_sides_write_the_same_chats() -> None:
    options = {"context": 512, "threads": 2, "max_batch": 4}
    with small() as running, batches("smollm2-135m-instruct", options) as batch:
        rounds = [["Hello."], ["What is a river?", "Where is it?"], ["And now?"]]
        found = asyncio.run(pairs(port(running), batch, rounds, 4))
    assert [(server.tokens, alone.tokens) for server, alone in found] == [(8, 8), (4, 4)]
