"""A server that plays a script, for tests of the page: the interface as the page uses it, and its files.

``python -m tests.serve.standin [PORT]`` shows it in a browser of yours.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

PAGE = Path(__file__).parents[2] / "src" / "minicpm4" / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".txt": "text/plain",
    ".bin": "application/octet-stream",
}
CONTEXT = 8192  # tokens, where four characters are one

Event = dict[str, Any] | float  # a delta of the answer, another part of a chunk, or seconds to wait
Script = Callable[[str], Iterator[Event]]


def echo(asked: str) -> Iterator[Event]:
    """What was asked, word by word."""
    for word in f"You said: {asked}".split(" "):
        yield {"content": word + " "}


class Refused(Exception):
    """An answer other than 200: status and body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


class Server(ThreadingHTTPServer):
    """``script``: what is answered; ``asked``: bodies of chats so far; ``gone``: how many were broken off;
    ``key``: without it nothing but the page is to be had."""

    daemon_threads = True

    def __init__(self, script: Script = echo, port: int = 0, key: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.key = key
        self.asked: list[dict[str, Any]] = []
        self.gone = threading.Semaphore(0)
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is part of the play."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    models: ClassVar = ["tiny", "small"]

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/v1/models", "/props") and not self._may():
            return self._json(401, {"error": {"message": "an API key is needed", "code": "invalid_api_key"}})
        if path == "/v1/models":
            self._json(
                200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            )
        elif path == "/props":
            attention = {"default": "auto", "options": ["auto", "dense", "sparse"]}
            params = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "max_tokens": -1}
            settings = {"n_ctx": CONTEXT, "params": params}
            self._json(200, {"default_generation_settings": settings, "attention": attention})
        else:
            file = PAGE / ("index.html" if path == "/" else path[1:])
            if "/" in path[1:] or not file.is_file():
                return self._json(404, {"error": {"message": f"no {path}"}})
            self._reply(200, file.read_bytes(), TYPES[file.suffix], {"Content-Security-Policy": POLICY})
        return None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self._json(200, {"tokens": list(range(tokens_of(body["content"])))})
        assert self.path == "/v1/chat/completions", self.path
        self.server.asked.append(body)
        events = self.server.script(body["messages"][-1]["content"])
        try:
            first = next(events, None)
        except Refused as refused:
            return self._json(refused.status, refused.body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._play(first, events)
            self._end(sum(tokens_of(str(message["content"])) for message in body["messages"]))
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone.release()
        return None

    def _may(self) -> bool:
        return self.server.key in ("", self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _play(self, event: Event | None, events: Iterator[Event]) -> None:
        while event is not None:
            if isinstance(event, float):
                time.sleep(event)
                self._event({"choices": []})  # notices who has gone
            elif "prompt_progress" in event or "error" in event:
                self._event(event)
            else:
                self._event({"choices": [{"index": 0, "delta": event, "finish_reason": None}]})
            event = next(events, None)

    def _end(self, prompt: int) -> None:
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
        }
        timings = {"predicted_per_second": 41.5, "blocks_read_share": 0.18, "attention": "sparse"}
        self._event({"choices": [], "usage": usage, "timings": timings})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._reply(status, json.dumps(body).encode(), "application/json", {})

    def _reply(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def tokens_of(text: str) -> int:
    return -(-len(text) // 4)


if __name__ == "__main__":
    server = Server(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(server.address)
    server.serve_forever()
