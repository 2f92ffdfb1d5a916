"""What answering over HTTP takes of an engine's speed: the part ``toll`` of serving.py.

    python benchmarks/toll.py MODEL '{"max_batch": 32}'        # answers batches, a line of JSON each

The other side of each pair: the engine by itself, in a process of its own. It is asked for the same chats as
one ``LLM.generate``, with the same options.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4 import LLM, SamplingParams

GREEDY = {"temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class Written:
    """Tokens that were written in so many seconds."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


async def streamed(port: int, texts: Sequence[str], tokens: int) -> Written:
    """One chat of each text, all at once, every event read. Over bare sockets: on a small machine a client
    takes from the server what it needs itself. Raises RuntimeError."""
    began = time.perf_counter()
    written = await asyncio.gather(*(_streamed(port, text, tokens) for text in texts))
    return Written(sum(written), time.perf_counter() - began)


async def _streamed(port: int, text: str, tokens: int) -> int:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    asked = {"messages": _chat(text), "max_tokens": tokens, **stream, **GREEDY}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    usage = b""
    try:
        writer.write(head.encode() + body)
        while line := await reader.readline():
            if line.startswith(b"data: {") and b'"usage"' in line:
                usage = line[6:]
    finally:
        writer.close()
    if not usage:
        raise RuntimeError("a stream ended without its usage")
    return int(json.loads(usage)["usage"]["completion_tokens"])


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Batch:
    """An engine in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def write(self, texts: Sequence[str], tokens: int) -> Written:
        """The same chats as one batch. Raises RuntimeError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"texts": texts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process has ended (code {self._process.wait()})")
        return Written(**json.loads(line))


@contextlib.contextmanager
def batches(model: str, options: Mapping[str, Any]) -> Iterator[Batch]:
    """Start the engine's process, and end it."""
    command = [sys.executable, str(Path(__file__)), model, json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Batch(process)
        finally:
            process.kill()


Pair = tuple[Written, Written]
"""What the server wrote, and what the engine by itself."""


async def pairs(port: int, batch: Batch, rounds: Sequence[Sequence[str]], tokens: int) -> list[Pair]:
    """Each round's texts over HTTP and as a batch; whichever went first the last time goes second. The first
    round is for warmth, and left out."""
    found = []
    for number, texts in enumerate(rounds):
        if number % 2:
            written = await streamed(port, texts, tokens)
            found.append((written, batch.write(texts, tokens)))
        else:
            alone = batch.write(texts, tokens)
            found.append((await streamed(port, texts, tokens), alone))
    return found[1:]


def shares(found: Sequence[Pair]) -> dict[str, Any]:
    """Figures of pairs: tokens/s of both, and the server's share of the batch's: median,
    least, most."""
    share = [server.rate / batch.rate for server, batch in found]
    return {
        "server_tokens_per_second": [server.rate for server, _ in found],
        "batch_tokens_per_second": [batch.rate for _, batch in found],
        "share": {"median": float(np.median(share)), "least": min(share), "most": max(share)},
        "shares": share,
    }


def main() -> None:
    """Answer batches from standard input until it ends."""
    model, options = sys.argv[1:]
    with LLM(model, **json.loads(options)) as llm:
        for line in sys.stdin:
            asked = json.loads(line)
            params = SamplingParams(max_tokens=asked["tokens"], **GREEDY)
            began = time.perf_counter()
            outputs = llm.generate([llm.chat_ids(_chat(text)) for text in asked["texts"]], params)
            seconds = time.perf_counter() - began
            print(
                json.dumps({"tokens": sum(len(o.token_ids) for o in outputs), "seconds": seconds}), flush=True
            )


if __name__ == "__main__":
    main()
