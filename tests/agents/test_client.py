"""The client against servers of both eras, over standard streams and HTTP."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicpm4.agents.mcp.asking import form_of
from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.limits import Limits
from minicpm4.errors import ToolServerError
from tests.agents.servers import (
    HERE,
    SILENT,
    SOON,
    Person,
    made,
    reached,
    read_body,
    running,
    send_json,
    served,
)
from tests.waiting import until_true


async def added(spec: ServerSpec, limits: Limits = SOON) -> tuple[str, str]:
    """What a server makes of 2 + 3, and the protocol in which it was asked."""
    async with running(spec, limits) as server:
        await server.tools()
        result = await server.call("add", {"a": 2, "b": 3})
        return result.content[0].text, server.health.protocol


@pytest.mark.parametrize("manner", ["made", "badparams", "silent", "exits"])
def test_old_servers_are_reached_whatever_they_answer_first(manner: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    limits = SILENT if manner == "silent" else SOON
    assert asyncio.run(added(made(manner, log), limits)) == ("5", "2025-06-18")
    # Whatever the first answer was, a new process is greeted: some end on it.
    assert log.read_text().split("\n").count("start") == 2


def test_a_new_server_is_spoken_to_without_a_greeting(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert asyncio.run(added(made("new", log))) == ("5", "2026-07-28")
    assert log.read_text().count("start") == 1


def test_the_sdk_s_own_server_is_new_over_standard_streams() -> None:
    spec = ServerSpec(name="sums", command=sys.executable, args=(str(HERE / "sdk_server.py"),))
    limits = Limits(probe_seconds=60)
    assert asyncio.run(added(spec, limits)) == ("5", "2026-07-28")


def test_the_sdk_s_own_server_is_new_over_http() -> None:
    async def go() -> tuple[str, str]:
        module = importlib.import_module("tests.agents.sdk_server")
        async with served(module.server.streamable_http_app()) as url:
            return await added(reached(f"{url}/mcp"), Limits())

    assert asyncio.run(go()) == ("5", "2026-07-28")


class OldHttp:
    """An old server over HTTP: without its session a request is a 400; the header ``token`` is asked for."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.heard: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        body = await read_body(receive)
        status, answer = await self.answer(headers, json.loads(body or b"{}"), scope["method"])
        await send_json(send, status, answer, (b"mcp-session-id", b"s-1"))

    async def answer(self, headers: dict[str, str], asked: dict[str, Any], method: str) -> tuple[int, Any]:
        name = asked.get("method", method)
        self.heard.append(f"{name} {headers.get('token')}")
        if method != "POST":
            return 405, {}
        if name == "initialize":
            info = {"protocolVersion": "2025-03-26", "capabilities": {"tools": {}}}
            result = {**info, "serverInfo": {"name": "old", "version": "1"}}
            return 200, {"jsonrpc": "2.0", "id": asked["id"], "result": result}
        if headers.get("mcp-session-id") != "s-1":
            if self.silent:
                await asyncio.sleep(3600)
            return 400, {"error": "Bad Request: no session id"}
        if "id" not in asked:
            return 202, {}
        tool = {"name": "add", "inputSchema": {"type": "object"}}
        given = (asked.get("params") or {}).get("arguments") or {}
        content = [{"type": "text", "text": str(sum(given.values()))}]
        result = {"tools": [tool]} if name == "tools/list" else {"content": content}
        return 200, {"jsonrpc": "2.0", "id": asked["id"], "result": result}


@pytest.mark.parametrize("silent", [False, True], ids=["400", "silence"])
def test_old_servers_over_http_are_reached(silent: bool) -> None:
    old = OldHttp(silent=silent)

    async def go() -> tuple[str, str]:
        async with served(old) as url:
            limits = SILENT if silent else SOON
            return await added(reached(url, headers={"token": "t-1"}), limits)

    assert asyncio.run(go()) == ("5", "2025-03-26")
    assert {one.split()[1] for one in old.heard} == {"t-1"}, "headers go with every request"


def fails(spec: ServerSpec, limits: Limits = SOON) -> str:
    """What is told of a server that cannot be used."""

    async def go() -> None:
        async with running(spec, limits) as server:
            await server.tools()
            await server.call("add", {"a": 1, "b": 1})

    with pytest.raises(ToolServerError) as told:
        asyncio.run(go())
    return str(told.value)


def test_a_version_that_nobody_here_speaks_is_told() -> None:
    assert "none of our versions" in fails(made("newonly"))


def test_what_a_broken_server_says_is_told() -> None:
    told = fails(made("broken"))
    assert "code 7" in told and "no database at /nowhere" in told


def test_a_program_that_is_not_there_is_named() -> None:
    assert "no-such-program" in fails(ServerSpec(name="x", command="no-such-program"))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_relative_program_is_that_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    program = tmp_path / "there" / "go"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    cwd = str(tmp_path / "there") if absolute else "../there"
    spec = replace(made("made"), command="./go", cwd=cwd)
    assert asyncio.run(added(spec))[0] == "5"


def test_neither_addresses_nor_answers_reach_a_log() -> None:
    told, log, root = "t0p-s3cret", io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(log), root.level  # pytest's own hears loggers that pass nothing on

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            more = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": more})
            await send({"type": "http.response.body", "body": f"{{\x1b[2J no json {told}".encode()})

    async def go() -> None:
        async with served(app) as url, running(reached(f"{url}/mcp?key={told}")) as server:
            with pytest.raises(ToolServerError):
                await server.tools()

    root.addHandler(handler)
    root.setLevel(logging.INFO)  # as serve logs
    try:
        asyncio.run(go())
        logging.getLogger("other").info("heard")
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert "heard" in log.getvalue() and told not in log.getvalue() and "\x1b" not in log.getvalue()


def test_an_address_where_nobody_listens_is_told() -> None:
    assert "cannot be reached" in fails(reached("http://127.0.0.1:9/mcp"))


def test_a_server_s_process_sees_few_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")

    async def go() -> dict[str, str]:
        async with running(made("variables", env={"OWN": "1"})) as server:
            await server.tools()
            return json.loads((await server.call("add", {})).content[0].text)

    seen = asyncio.run(go())
    assert seen["OWN"] == "1" and "PATH" in seen
    assert "AWS_SECRET_ACCESS_KEY" not in seen


def test_a_server_that_died_is_started_again(tmp_path: Path) -> None:
    async def go() -> tuple[str, int]:
        async with running(made("dies", tmp_path / "log")) as server:
            await server.tools()
            with pytest.raises(ToolServerError, match="code 3"):
                await server.call("add", {"a": 1, "b": 1})
            assert server.health.state == "ended"
            await server.tools()
            result = await server.call("add", {"a": 1, "b": 1})
            return result.content[0].text, server.health.restarts

    assert asyncio.run(go()) == ("2", 1)


def test_a_server_that_never_starts_is_given_up() -> None:
    async def go() -> str:
        async with running(made("broken"), Limits(restarts=2)) as server:
            for _ in range(3):
                with pytest.raises(ToolServerError, match="code 7"):
                    await server.tools()
            with pytest.raises(ToolServerError, match="3 times in a row"):
                await server.tools()
            return server.health.state

    assert asyncio.run(go()) == "given up"


def test_tools_come_in_pages_and_an_endless_list_ends() -> None:
    async def names(manner: str, limits: Limits) -> tuple[int, tuple[str, ...]]:
        async with running(made(manner), limits) as server:
            return len(await server.tools()), server.health.notes

    assert asyncio.run(names("pages", SOON)) == (5, ())
    count, notes = asyncio.run(names("endless", Limits(tools=7)))
    assert count == 7 and "over 7 tools" in notes[0]


@pytest.mark.parametrize("manner", ["asks", "newasks"])
def test_a_server_s_question_is_the_user_s(manner: str) -> None:
    person = Person(values={"n": 7})

    async def go() -> Any:
        async with running(made(manner), SOON, person) as server:
            await server.tools()
            return json.loads((await server.call("add", {})).content[0].text)

    told = asyncio.run(go())
    answer = told["answers"]["one"] if manner == "newasks" else told
    assert answer["action"] == "accept" and answer["content"]["n"] == 7
    assert answer["content"].get("way", "up") == "up", "what nobody said is the server's default"
    (form,) = person.forms
    assert form.message == "Which number?" and form.tool == "add"
    first = form.fields[0]
    assert (first.name, first.kind, first.required) == ("n", "integer", True)


def test_defaults_of_a_question_are_taken_where_they_fit() -> None:
    properties = {
        "a": {"type": "integer", "default": 3},
        "b": {"type": "integer", "default": "x"},
        "c": {"type": "boolean", "default": True},
        "d": {"type": "array", "items": {"enum": ["p", "q"]}, "default": ["p"]},
        "e": {"type": "string", "enum": ["up"], "default": "down"},
    }
    form = form_of("s", "t", "?", {"properties": properties})
    assert [one.default for one in form.fields] == [3, None, True, ["p"], None]


def test_a_question_that_is_declined_is_declined() -> None:
    async def go() -> Any:
        async with running(made("asks")) as server:
            await server.tools()
            return json.loads((await server.call("add", {})).content[0].text)

    assert asyncio.run(go()) == {"action": "decline"}


def test_time_for_an_answer_ends_and_is_the_call_s_alone() -> None:
    assert "did not answer add in 0.3 s" in fails(made("hangs", timeout=0.3))


@pytest.mark.parametrize("by", ["who waits", "another"])
def test_a_server_that_has_not_answered_yet_is_ended_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its time for an answer is not waited for."""
    in_time, wait, log = [], asyncio.wait, tmp_path / "log"

    async def noted(tasks: Any, **more: Any) -> Any:
        found = await wait(tasks, **more)
        in_time.append(bool(found[0]))
        return found

    async def go() -> None:
        async with running(made("silent", log)) as server:
            asking = asyncio.create_task(server.tools())
            await until_true(lambda: log.exists() and "asked" in log.read_text())
            monkeypatch.setattr(asyncio, "wait", noted)
            if by == "another":
                await server.close()
            else:
                asking.cancel()
            with pytest.raises((ToolServerError, asyncio.CancelledError)):
                await asking

    asyncio.run(go())
    assert in_time and all(in_time)
