"""A small stand-in for the hub, on loopback: the two addresses that a pull uses."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from minicpm4.zoo import hub as hub_module

REPO = "openbmb/MiniCPM4-0.5B"
OLD = "openbmb/Old"  # its name before
COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server holds and how it misbehaves; ``requests`` collects (path, Range header)."""

    files: dict[str, bytes]
    address: str = ""
    cut_after: int = 0  # bytes after which each answer is cut, 0 for never
    cuts_left: int = 10**9
    ranges: bool = True
    drips: str = ""  # what addresses hold that answer 5 bytes at a time, for ever
    status: int = 200
    lies: dict[str, str] = field(default_factory=dict)  # file -> listed checksum
    extra: list[dict[str, Any]] = field(default_factory=list)
    commit: Any = COMMIT
    redirect: str = ""  # where it says that files are
    renamed: str = ""  # the address, without the name, of where it says that the repository is by now
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def listing(self) -> dict[str, Any]:
        entries = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if name.endswith((".safetensors", ".gguf")):
                sha = self.lies.get(name, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            elif name in self.lies:
                entry["blobId"] = self.lies[name]
            entries.append(entry)
        counts = {"private": False, "downloads": 0, "likes": 0, "tags": []}
        return {"id": REPO, "modelId": REPO, "sha": self.commit, "siblings": entries + self.extra, **counts}


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve ``files`` as the repository REPO."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def asked(files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that is asked from now on, without long waits; what is fetched goes below ``home``."""
    monkeypatch.setenv("MINICPM4_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "WAIT", 0.01)
    with serve(dict(files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def kept(folder: Path) -> set[str]:
    """The model's files in ``folder``."""
    return {p.name for p in folder.iterdir() if not p.name.startswith(".minicpm4")}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((path, self.headers.get("Range")))
            hub.tokens.append(self.headers.get("Authorization"))
            prefix = f"/{REPO}/resolve/{COMMIT}/"
            if path.startswith((f"/api/models/{OLD}", f"/{OLD}/")):
                self.send_response(307)
                self.send_header("Location", hub.renamed + path.replace(OLD, REPO))
                self.end_headers()
            elif path == f"/api/models/{REPO}" and hub.status in (200, 500):
                self.answer(200, json.dumps(hub.listing()).encode())
            elif hub.status != 200:
                self.answer(hub.status, b"{}")
            elif hub.redirect and path.startswith(prefix):
                self.send_response(302)
                self.send_header("Location", hub.redirect)
                self.end_headers()
            elif path.startswith(prefix) and path[len(prefix) :] in hub.files:
                self.content(hub.files[path[len(prefix) :]])
            else:
                self.answer(404, b"{}")

        def content(self, body: bytes) -> None:
            asked = self.headers.get("Range")
            if not asked or not hub.ranges:
                self.answer(200, body)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.answer(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

        def answer(self, status: int, body: bytes, content_range: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            cut = hub.cut_after if "/resolve/" in self.path and hub.cuts_left > 0 else 0
            if cut and len(body) > cut:
                hub.cuts_left -= 1
                body = body[:cut]
                self.close_connection = True
            if hub.drips and hub.drips in self.path:
                self.drip(body)
            else:
                self.wfile.write(body)

        def drip(self, body: bytes) -> None:
            with suppress(OSError):  # of whoever no longer listens
                for at in range(0, len(body), 5):
                    self.wfile.write(body[at : at + 5])
                    time.sleep(0.02)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
