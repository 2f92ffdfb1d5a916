"""Readers of what a hub of models sends: its list of files, its redirections, the files themselves; and of
what is kept of a download."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from minicpm4.errors import ModelNotFoundError
from minicpm4.zoo import hub, list_models
from minicpm4.zoo.hub import MANIFEST, is_complete, pull_repo
from minicpm4.zoo.sources import HubSource
from tests.fuzz.model_files import packed, unpacked
from tests.fuzz.mutate import ODD, Raw, mutated_bytes, mutated_json, mutated_value
from tests.fuzz.reader import Reader
from tests.zoo.hub_server import REPO, Hub

_FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 20}
_PLACES = [
    *(
        "/x",
        "",
        "?",
        "#",
        "//",
        "//[",
        "http://[",
        "http://[::1",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:99999/",
    ),
    *(
        "file:///etc/passwd",
        "ftp://127.0.0.1:1/x",
        "data:,x",
        "x:y",
        "http://",
        "http:///x",
        "http://é/",
        "http:x",
    ),
    *(
        "http://a..b/",
        "http://" + "a" * 300 + "/",
        "http://127.0.0.1:1/",
        "\udc80",
        "http://a b/",
        "http://@:/",
    ),
]


class _Answers:
    """A server that answers request after request with some bytes each, the last for ever."""

    def __init__(self) -> None:
        self.listing, self.files, self.asked = b"", [b""], 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            client, _ = self._socket.accept()
            with client, suppress(OSError):
                client.settimeout(5)
                asked = b""
                while b"\r\n\r\n" not in asked and (more := client.recv(1 << 16)):
                    asked += more
                if b"/api/" in asked.split(b"\r\n")[0]:
                    client.sendall(self.listing)
                else:
                    client.sendall(self.files[min(self.asked, len(self.files) - 1)])
                    self.asked += 1


@cache
def _server(process: int) -> _Answers:
    return _Answers()


def _answer(status: object, headers: dict[str, object], body: bytes) -> bytes:
    lines = [
        f"HTTP/1.1 {status} x",
        "Connection: close",
        *(f"{name}: {one}" for name, one in headers.items()),
    ]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def _listed(rng: Random) -> bytes:
    table = Hub(_FILES).listing()
    odd: list[Any] = [
        *ODD,
        "a" * 40,
        "c" * 64,
        "../x.json",
        "a/b.json",
        "x" * 300 + ".json",
        "\0.json",
        "a\n.json",
    ]
    odd += [
        ".x.json",
        "additional_chat_templates/x.jinja",
        "model.safetensors",
        "\ud800.json",
        1.0,
        20.5,
        10**30,
    ]
    if rng.random() < 0.7:
        at = rng.randrange(len(table["siblings"]))
        table["siblings"][at] = mutated_value(rng, table["siblings"][at], odd)
        content = mutated_json(rng, table) if rng.random() < 0.1 else _json(table)
    else:
        content = mutated_json(rng, table)
    status = rng.choice([200] * 20 + [302, 304, 401, 404, 429, 500, 0])
    headers: dict[str, object] = {"Content-Length": len(content), "Content-Type": "application/json"}
    if status == 302:
        headers["Location"] = rng.choice(_PLACES)
    return _answer(status, headers, content)


def _json(value: Any) -> bytes:
    from tests.fuzz.mutate import dumped

    return dumped(value).encode("utf-8", "surrogatepass")


def _sent(rng: Random, content: bytes) -> bytes:
    """One answer for a file."""
    way = rng.random()
    headers: dict[str, object] = {"Content-Length": len(content)}
    if way < 0.3:
        return _answer(200, headers, content)
    if way < 0.5:
        return _answer(rng.choice([301, 302, 303, 307, 308]), {"Location": rng.choice(_PLACES)}, b"")
    if way < 0.7:
        name = rng.choice(["Content-Length", "Content-Range", "Transfer-Encoding", "Content-Encoding", "x"])
        odd = ["-1", "x", "1e3", "9" * 400, "bytes 5-9/9", "bytes x-", "chunked", "gzip", "", "é", 3, 1 << 62]
        body = rng.choice(
            [content, b"5\r\nhello\r\n", b"x\r\n", b"-1\r\n", b"f" * 30 + b"\r\n", b"0\r\n\r\n"]
        )
        return _answer(rng.choice([200, 206]), {**headers, name: rng.choice(odd)}, body)
    if way < 0.8:
        status = rng.choice([100, 204, 206, 304, 400, 404, 416, 429, 500, 503, 999, "x", -1, "2" * 300])
        return _answer(status, headers, content)
    return mutated_bytes(rng, _answer(200, headers, content), 120)


def _draw_pull(rng: Random) -> bytes:
    listing = _listed(rng) if rng.random() < 0.6 else _plain()
    files = [_answer(200, {"Content-Length": len(content)}, content) for content in _FILES.values()]
    if listing == _plain():
        at = rng.randrange(2)
        files[at : at + 1] = [_sent(rng, [*_FILES.values()][at]) for _ in range(rng.choice([1, 2]))]
    return packed({"listing": listing, **{f"answer{i}": one for i, one in enumerate(files)}})


@cache
def _plain() -> bytes:
    content = json.dumps(Hub(_FILES).listing()).encode()
    return _answer(200, {"Content-Length": len(content), "Content-Type": "application/json"}, content)


def _read_pull(case: bytes, folder: Path) -> None:
    from huggingface_hub import constants

    unpacked(case, folder / "answers")
    answers, server = sorted((folder / "answers").iterdir()), _server(os.getpid())
    server.asked, server.listing = 0, (folder / "answers" / "listing").read_bytes()
    server.files = [one.read_bytes() for one in answers if one.name != "listing"]
    home = folder / "home"
    with (
        mock.patch.object(hub, "WAIT", 0.0),
        mock.patch.object(hub, "TIMEOUT", 2.0),
        mock.patch.object(constants, "HF_HUB_OFFLINE", False),
        mock.patch.dict(os.environ, {"HF_ENDPOINT": server.address, "HF_TOKEN": "x"}),
    ):
        try:
            pull_repo(HubSource(repo=REPO), home / "m")
        finally:
            assert {one.name for one in folder.iterdir()} <= {"home", "answers"}
            assert not home.exists() or {one.name for one in home.iterdir()} <= {"m"}
    assert is_complete(home / "m")


def _draw_manifest(rng: Random) -> bytes:
    table = {"repo": REPO, "revision": "c" * 40, "files": {name: len(one) for name, one in _FILES.items()}}
    if rng.random() < 0.4:
        odd = ["\0", "\ud800", "x" * 300, "../x", "/etc/passwd", "", ".", "a/b"]
        table["files"] = {rng.choice(odd): rng.choice([2, "2", None, Raw("1" * 400)]), **_sizes()}
        return _json(table)
    return mutated_json(rng, table)


def _sizes() -> dict[str, int]:
    return {name: len(one) for name, one in _FILES.items()}


def _read_manifest(case: bytes, folder: Path) -> None:
    home = folder / "models" / "a--b"
    home.mkdir(parents=True)
    for name, content in _FILES.items():
        (home / name).write_bytes(content)
    (home / MANIFEST).write_bytes(case)
    with mock.patch.dict(os.environ, {"MINICPM4_HOME": str(folder)}):
        list_models()
    if not is_complete(home):
        raise ModelNotFoundError("it is not complete")


READERS = [
    Reader(name="hub", draw=_draw_pull, read=_read_pull, share=0.1),
    Reader(name="manifest", draw=_draw_manifest, read=_read_manifest),
]
