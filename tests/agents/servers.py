"""What tests of clients share: made servers as specs, and somebody who answers questions."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Ask, Consent, Form, May
from minicpm4.agents.mcp.config import ServerConfig, ServerSpec
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.server import Server
from minicpm4.agents.mcp.toolbox import Toolbox
from tests.waiting import until_true

HERE = Path(__file__).parent
SOON = Limits(probe_seconds=60)  # a server of ours answers, however busy the machine is
SILENT = Limits(probe_seconds=0.5)  # of one that does not


def made(manner: str, log: Path | None = None, name: str = "made", **more: Any) -> ServerSpec:
    """A server of ``made_server.py`` or ``hostile_server.py``."""
    file = HERE / ("hostile_server.py" if manner.startswith("hostile") else "made_server.py")
    words = [str(file), manner, *([str(log)] if log is not None else [])]
    return ServerSpec(name=name, command=sys.executable, args=tuple(words), **more)


def reached(url: str, **more: Any) -> ServerSpec:
    return ServerSpec(name="made", url=url, **more)


class Person:
    """Answers in order, the last for ever; keeps what was asked."""

    def __init__(self, *consents: Consent, values: Mapping[str, Any] | None = None) -> None:
        self._consents = list(consents) or ["no"]
        self.values = values
        self.asked: list[May] = []
        self.forms: list[Form] = []

    @property
    def ask(self) -> Ask:
        return Ask(self._may, self._tell)

    @property
    def calls(self) -> list[May]:
        return [one for one in self.asked if one.what == "call"]

    async def _may(self, may: May) -> Consent:
        self.asked.append(may)
        return self._consents.pop(0) if len(self._consents) > 1 else self._consents[0]

    async def _tell(self, form: Form) -> Mapping[str, Any] | None:
        self.forms.append(form)
        return self.values


async def _fine(_: ServerSpec) -> None:
    """Nobody minds that it is started."""


@asynccontextmanager
async def running(
    spec: ServerSpec, limits: Limits = SOON, person: Person | None = None
) -> AsyncIterator[Server]:
    server = Server(spec, limits, (person or Person()).ask, _fine)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def boxed(
    specs: Sequence[ServerSpec],
    person: Person,
    limits: Limits = SOON,
    approvals: Approvals | None = None,
) -> AsyncIterator[Toolbox]:
    """A toolbox over servers that are listed."""
    config = ServerConfig({spec.name: spec for spec in specs})
    async with Toolbox(config, approvals or Approvals(None), person.ask, limits) as box:
        await box.refresh()
        yield box


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The address of an ASGI application that runs meanwhile."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="auto"))
    task = asyncio.create_task(server.serve())
    try:
        await until_true(lambda: server.started or task.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        await task


async def read_body(receive: Any) -> bytes:
    """The body of a request to an ASGI application."""
    body = b""
    while True:
        part = await receive()
        body += part.get("body", b"")
        if not part.get("more_body"):
            return body


async def send_json(send: Any, status: int, value: Any, *more: tuple[bytes, bytes]) -> None:
    """The answer of an ASGI application, with ``more`` headers."""
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})
