"""Readers of what servers of tools say, of which there are, and of what is kept of talks with tools."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

from minicpm4.agents.mcp import connection
from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Ask, Consent, Form, May, declined
from minicpm4.agents.mcp.bfcl import running as bfcl
from minicpm4.agents.mcp.config import ServerConfig, ServerSpec, read_config
from minicpm4.agents.mcp.data import making
from minicpm4.agents.mcp.data.talks import write_set
from minicpm4.agents.mcp.evaluate import offered, pool_of, read_pool, read_samples
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.models import Called
from minicpm4.agents.mcp.results import fenced
from minicpm4.agents.mcp.stdio import _complaints, _read, _write
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.cli import mcp_data, mcp_tasks
from minicpm4.config.strict import from_table
from minicpm4.errors import ToolServerError
from minicpm4.files import Kept
from tests.agents.made_server import ADD, NEW
from tests.fuzz.mutate import ODD, Raw, dumped, mutated_bytes, mutated_value
from tests.fuzz.reader import Reader

_LIMITS = Limits(
    probe_seconds=0.2,
    start_seconds=0.2,
    restarts=1,
    rounds=2,
    pages=3,
    tools=20,
    message_bytes=1 << 18,
    request_bytes=1 << 20,
    noise_bytes=1 << 12,
    result_chars=2000,
)
_OLD = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "m", "version": "1"},
}
_FORM = {
    "mode": "form",
    "message": "Which number?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "title": "t", "default": 3},
            "way": {"type": "string", "enum": ["up", "down"], "default": "up"},
            "all": {"type": "array", "items": {"oneOf": [{"const": "a"}, {"const": "b"}]}},
        },
        "required": ["n"],
    },
}
_ASKED = {"one": {"method": "elicitation/create", "params": _FORM}}
_URL = {
    "two": {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "http://x/"}}
}
_BLOCKS = [
    {"type": "text", "text": "5\u200b"},
    {"type": "image", "data": "aGk=", "mimeType": "image/png"},
    {"type": "resource", "resource": {"uri": "file:///x", "text": "t"}},
    {"type": "resource", "resource": {"uri": "file:///x", "blob": "aGk="}},
    {"type": "resource_link", "uri": "file:///x", "name": "n"},
]
_TOOL = {**ADD, "title": "t", "annotations": {"title": "a", "readOnlyHint": True, "destructiveHint": True}}
_RESULTS: dict[str, list[Any]] = {
    "server/discover": [{"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **NEW}],
    "initialize": [_OLD],
    "tools/list": [{"tools": [_TOOL], **NEW}, {"tools": [_TOOL], "nextCursor": "1", **NEW}],
    "tools/call": [
        {"content": _BLOCKS, "resultType": "complete"},
        {"content": [], "structuredContent": {"a": [1]}, "isError": True, "resultType": "complete"},
        {"resultType": "input_required", "inputRequests": {**_ASKED, **_URL}, "requestState": "s"},
    ],
}
_ERRORS = [
    {"code": -32601, "message": "Method not found"},
    {"code": -32022, "message": "no such version", "data": {"supported": ["2026-07-28"], "requested": "x"}},
]
_DEEP = [Raw('{"a":' * depth + "1" + "}" * depth) for depth in (50, 120, 400, 900)]


def plain_answers(rng: Random) -> dict[str, str]:
    """As drawn_answers has them, with nothing odd."""
    return {
        method: dumped({"jsonrpc": "2.0", "id": Raw("ID"), "result": rng.choice(results)})
        for method, results in _RESULTS.items()
    }


def drawn_answers(rng: Random) -> bytes:
    """For each method what is answered, as JSON with ``ID`` in the place of the request's number."""
    answers: dict[str, str] = {}
    odd = [*ODD, *_DEEP]
    modern = rng.random() < 0.6
    wrong = rng.choice([*_RESULTS, "tools/list", "tools/call", "tools/call"])
    for method, results in _RESULTS.items():
        message: Any = {"jsonrpc": "2.0", "id": Raw("ID"), "result": rng.choice(results)}
        if method == "server/discover" and not modern:
            message = {"jsonrpc": "2.0", "id": Raw("ID"), "error": _ERRORS[0]}
        elif method == wrong and rng.random() < 0.15:
            message = {
                "jsonrpc": "2.0",
                "id": Raw("ID"),
                "error": mutated_value(rng, rng.choice(_ERRORS), odd),
            }
        elif method == wrong:
            key = "result" if rng.random() < 0.9 else rng.choice(["jsonrpc", "id", "result"])
            message[key] = mutated_value(rng, message[key], odd)
        answers[method] = dumped(message)
    if rng.random() < 0.3:  # it asks by itself
        asked = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": _FORM}
        other = rng.choice(["ping", "roots/list", "sampling/createMessage", "notifications/message", "x"])
        method = "elicitation/create" if rng.random() < 0.6 else other
        asked = {**asked, "method": method, "params": mutated_value(rng, _FORM, odd)}
        where = rng.choice([*answers])
        answers[where] = f"{dumped(asked)}\n{answers[where]}"
    if rng.random() < 0.1:
        where = rng.choice([*answers])
        answers[where] = (
            rng.choice(["noise", "{}", "\n\n", "x" * 5000, '{"jsonrpc"', "[]", ""]) + "\n" + answers[where]
        )
    content = json.dumps(answers).encode()
    if rng.random() < 0.1:
        where = rng.choice([*answers])
        damaged = mutated_bytes(rng, answers[where].encode("utf-8", "surrogatepass"))
        content = json.dumps({**answers, where: damaged.decode("latin-1")}).encode()
    return content


_GOOD = dumped({"jsonrpc": "2.0", "id": Raw("ID"), "result": _RESULTS["tools/call"][0]})


class _Process:
    """What ``stdio`` speaks to, in this process: each request is answered as the input says."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.returncode = answers, None
        self.stdout, self.stderr, self.stdin = asyncio.StreamReader(), asyncio.StreamReader(), self

    def write(self, line: bytes) -> None:
        asked = json.loads(line)
        if (asked.get("params") or {}).get("inputResponses"):  # what was asked is answered
            self.answers["tools/call"] = _GOOD
        for one in answered(self.answers, asked):
            self.stdout.feed_data(one + b"\n")

    async def drain(self) -> None:
        await asyncio.sleep(0)


def answered(answers: dict[str, str], asked: Any) -> list[bytes]:
    if "id" not in asked or asked.get("method") not in answers:
        return []
    text = answers[asked["method"]].replace('"id": ID', f'"id": {json.dumps(asked["id"])}')
    return text.encode("utf-8", "surrogatepass").split(b"\n")


@asynccontextmanager
async def _spoken(process: _Process, wire: Any) -> AsyncIterator[Any]:
    """As ``stdio`` has it, but for a process that is started and ended."""
    import anyio

    said, heard = anyio.create_memory_object_stream[Any](0)
    told, queued = anyio.create_memory_object_stream[Any](0)
    given: Any = process
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, given, said, wire)
            tasks.start_soon(_complaints, given, wire)
            tasks.start_soon(_write, given, queued, said, wire)
            try:
                yield heard, told
            finally:
                tasks.cancel_scope.cancel()
    finally:
        for stream in (said, heard, told, queued):
            stream.close()


async def used(spec: ServerSpec) -> None:
    """List and call all tools as the agent does. Raises ToolServerError."""

    async def may(_: May) -> Consent:
        return "session"

    async def tell(form: Form) -> dict[str, Any]:
        return {one.name: one.default for one in form.fields}

    async with Toolbox(ServerConfig({"made": spec}), Approvals(None), Ask(may, tell), _LIMITS) as box:
        await box.refresh()
        result = None
        for tool in list(box.tools.values())[:2]:
            json.dumps(tool.function).encode()
            result = await box.call(tool.called, {"a": 2, "b": 3})
            assert len(result.text) <= _LIMITS.result_chars + 100, len(result.text)
            fenced(result, tool.called).encode()
            box.warnings(tool)
        told = [*box.notes, *(one.why for one in box.health), *box.troubles.values()]
        assert all(len(one) < 2500 for one in told), max(told, key=len)
        " ".join(told).encode()
        if box.troubles or not box.tools or result is None or result.failed:
            raise ToolServerError(
                next(iter(box.troubles.values()), f"nothing came of it: {result}"[:300])[:1000]
            )


def _read_stdio(case: bytes, folder: Path) -> None:
    answers = json.loads(case)

    def spoken(command: str, args: Any, variables: Any, cwd: Any, wire: Any) -> Any:
        return _spoken(_Process(answers), wire)

    with mock.patch.object(connection, "stdio", spoken), mock.patch.object(connection, "PAUSE", 0.0):
        asyncio.run(used(ServerSpec(name="made", command="x", timeout=0.2)))


_ENTRY = {
    "command": "${HERE:-x}",
    "args": ["a", "${KEY}", "https://u:p@h/?q=1"],
    "env": {"API_KEY": "secret-value", "X": "${env:KEY}"},
    "cwd": "/tmp",
    "disabled": False,
    "timeout": 5,
    "type": "stdio",
}
_REMOTE = {
    "url": "https://h:1/p?key=${KEY}&b=%20",
    "headers": {"Authorization": "Bearer ${KEY}"},
    "type": "http",
}


def _draw_config(rng: Random) -> bytes:
    table = {"mcpServers": {"one": _ENTRY, "two": _REMOTE}, "x": 1}
    key = rng.choice(["k" * 12, "\udcff" * 9, "\ud800secret-value", "a b c" * 4, "", "/tmp"])
    return (
        json.dumps(key).encode() + b"\n" + dumped(mutated_value(rng, table)).encode("utf-8", "surrogatepass")
    )


def _read_config(case: bytes, folder: Path) -> None:
    key, _, content = case.partition(b"\n")
    (folder / "servers.json").write_bytes(content)
    config = read_config(folder / "servers.json", {"KEY": json.loads(key)})
    assert all(len(note) < 1000 for note in config.notes), max(config.notes, key=len)[:500]
    asked: list[May] = []

    async def may(one: May) -> Consent:
        asked.append(one)
        return "no"

    async def go() -> None:
        async with Toolbox(config, Approvals(None), Ask(may, declined.tell), _LIMITS) as box:
            await box.refresh()
            for one in asked:
                for name, told in one.details:
                    box.shown(f"{name} {told}").encode()
                    assert json.loads(key) not in told or len(json.loads(key)) < 8
            box.shown(" ".join([*box.notes, *box.troubles.values()])).encode()

    asyncio.run(go())


_MESSAGES = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "s__f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "tool_call_id": "c", "name": "s__f", "content": "1"},
    {"role": "assistant", "content": "b"},
]
_OFFERED = [
    {"type": "function", "function": {"name": "s__f", "description": "d", "parameters": ADD["inputSchema"]}}
]
_TALK = {"messages": _MESSAGES, "tools": _OFFERED}
_CALLED_KEPT = {"calls": [["s__f", {"a": 1}]], "refused": "", "cut": False}
_OUTCOME = {
    "marks": [[["s__f", {"a": 1}], ["s__f", {"a": 1}], "", False], [["s__f", {}], None, "x", None]],
    "wrong": [],
    "ended": "answered",
    "answer": "a",
    "made": 1,
    "unfit": 0,
    "seconds": 0.5,
    "refused": "",
}
_KEPT: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "queries": (["a", "b"], making._texts),
    "arguments": ({"a": 1}, making._table),
    "talk": ({**_TALK, "where": "w"}, making._piece),
    "dropped": ({"reason": "twice", "where": "w", "why": ""}, making._piece),
    "called": (_CALLED_KEPT, lambda value: from_table(Called, value, "it", any_text=True)),
    "outcome": (_OUTCOME, mcp_tasks._outcome),
}
_BFCL = {"id": "simple_0", "category": "simple_python", "messages": _MESSAGES[:1], "tools": _OFFERED}


def _draw_talks(rng: Random) -> bytes:
    odd = [*ODD, *_DEEP]
    kind = rng.choice(["samples", "samples", "pool", "asked", "bfcl", "verdicts", *_KEPT])
    whole: Any = {"samples": _TALK, "pool": _OFFERED, "asked": {"query": "a", "answer": "b"}}.get(kind)
    whole = {"bfcl": _BFCL, "verdicts": {"id": "simple_0", "valid": True, "why": ""}}.get(kind, whole)
    whole = _KEPT[kind][0] if kind in _KEPT else whole
    content = dumped(mutated_value(rng, whole, odd)).encode("utf-8", "surrogatepass")
    return kind.encode() + b"\n" + (mutated_bytes(rng, content, 500) if rng.random() < 0.1 else content)


def _read_talks(case: bytes, folder: Path) -> None:
    name, _, content = case.partition(b"\n")
    kind, file = name.decode(), folder / "f.json"
    file.write_bytes(content)
    if kind == "samples":
        samples = read_samples(file)
        for one in samples:
            offered(one, pool_of(samples), 2)
            offered(one, pool_of(samples), 2, retrieve=True)
            assert one.server is not None
    elif kind == "pool":
        pool_of((), read_pool(file))
    elif kind == "asked":
        assert all(query.text.strip() for query in mcp_data._read_queries(file))
    elif kind in ("bfcl", "verdicts"):
        _read_bfcl(kind, content)
    else:
        _read_kept(kind, content, folder)


def _read_bfcl(kind: str, content: bytes) -> None:
    done = SimpleNamespace(returncode=0, stdout=content.decode("utf-8", "replace"), stderr="")
    with mock.patch.object(bfcl.subprocess, "run", return_value=done), mock.patch.object(bfcl, "install"):
        if kind == "bfcl":
            for one in bfcl.first_of(bfcl.read_entries(["simple_python"]), 1):
                str(one["id"]) + str(one["category"])
                assert isinstance(one["messages"], list) and isinstance(one["tools"], list)
        else:
            found = bfcl.check([{"id": "simple_0", "category": "simple_python", "calls": [], "cut": None}])
            assert type(found["simple_0"]["valid"]) is bool


def _read_kept(kind: str, content: bytes, folder: Path) -> None:
    kept = Kept(folder / "kept", {"a": 1})
    kept.put(None, "key")
    (file,) = (one for one in kept.folder.iterdir() if one.name != "about.json")
    file.write_bytes(b'{"key": ["key"], "value": ' + content + b"}")
    found = kept.get(_KEPT[kind][1], "key")
    if kind == "outcome":
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            scored = {True: [("a-1", found)]}
            mcp_tasks._show(scored)
            mcp_tasks._tell_refused(scored)
            mcp_tasks._tell_cut(scored, "x")
    elif kind in ("talk", "dropped"):
        write_set(folder / "out", [found])


READERS = [
    Reader(name="clients", draw=_draw_config, read=_read_config),
    Reader(name="talks", draw=_draw_talks, read=_read_talks),
    Reader(name="servers", draw=drawn_answers, read=_read_stdio, share=0.2),
]
