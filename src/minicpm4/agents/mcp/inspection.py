"""Tools put to the test before a model is offered them: queries that need one, all of which get a response.

As published: for every tool a model writes ten queries that cannot be answered without it; each is put to the
model with that tool alone, its call is made (and asked for, as any), and the tool is offered later only if
all ten got a response that is no error.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.agent import SYSTEM
from minicpm4.agents.mcp.hidden import escaped
from minicpm4.agents.mcp.models import Model
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.tools import Tool, fingerprint
from minicpm4.agents.mcp.writing import queries_for
from minicpm4.config.strict import from_table, require
from minicpm4.errors import ConfigError, Minicpm4Error
from minicpm4.files import finite, json_text, read_json, writing

__all__ = ["Inspection", "Trial", "inspect_tool", "page_of", "passed", "read_report", "write_report"]

QUERIES = 10
MAX_TEXT, MAX_REPORT = 2000, 64 << 20
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A query, the arguments with which the tool was called (None: it was not), and what it said."""

    query: str
    arguments: Mapping[str, Any] | None = None
    text: str = ""
    responded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """One tool's trials. ``key``: a hash of its server and of all that it tells of itself: of another tool
    nothing is known. ``why``: why there are no trials."""

    server: str
    tool: str
    key: str
    trials: tuple[Trial, ...] = ()
    wanted: int = QUERIES
    why: str = ""

    @property
    def passed(self) -> bool:
        return len(self.trials) == self.wanted and all(trial.responded for trial in self.trials)


async def inspect_tool(
    model: Model,
    box: Toolbox,
    tool: Tool,
    *,
    count: int = QUERIES,
    told: Callable[[Trial], None] | None = None,
) -> Inspection:
    """Try a tool. Its calls are asked for as any; one that is refused got no response."""
    key = fingerprint(box.servers[tool.server].spec, tool.parts)
    made = Inspection(server=tool.server, tool=tool.name, key=key, wanted=count)
    try:
        queries = await queries_for(model, tool, count)
    except Minicpm4Error as error:
        return replace(made, why=f"no queries could be written: {error}"[:MAX_TEXT])
    trials = []
    for query in queries:
        trials.append(await _tried(model, box, tool, query))
        if told is not None:
            told(trials[-1])
    return replace(made, trials=tuple(trials))


async def _tried(model: Model, box: Toolbox, tool: Tool, query: str) -> Trial:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query}]
    try:
        reply = await model.answer(messages, [tool.function], must_call=True)
        if not reply.calls:
            cut = "its call was cut at max_tokens" if reply.cut else "the model made no call"
            return Trial(query=query, text=reply.unread or cut)
        call = reply.calls[0][1]
        result = await box.call(call.name, call.arguments)
    except Minicpm4Error as error:
        return Trial(query=query, text=str(error)[:MAX_TEXT])
    return Trial(
        query=query, arguments=call.arguments, text=result.text[:MAX_TEXT], responded=not result.failed
    )


def passed(tools: Mapping[str, Tool], box: Toolbox, found: Sequence[Inspection]) -> dict[str, Tool]:
    """Those of ``tools`` that are, as they are now, what passed."""
    keys = {one.key for one in found if one.passed}
    specs = {name: server.spec for name, server in box.servers.items()}
    return {name: tool for name, tool in tools.items() if fingerprint(specs[tool.server], tool.parts) in keys}


def write_report(file: Path, model: str, found: Sequence[Inspection]) -> None:
    """As JSON, whole. Raises OSError."""
    table = {"version": VERSION, "model": model, "tools": [asdict(one) for one in found]}
    with writing(file, private=True) as out:
        out.write(json_text(finite(table), indent=1, ascii_only=False).encode("utf-8", "backslashreplace"))


def read_report(file: Path) -> list[Inspection]:
    """Raises ConfigError."""
    table = read_json(file, MAX_REPORT, ConfigError)
    require(table.get("version") == VERSION, f"{file} is no report of version {VERSION}")
    tools = table.get("tools")
    require(isinstance(tools, list), f"{file} is no report of an inspection: it has no list of tools")
    assert isinstance(tools, list)
    return [from_table(Inspection, one, f"{file}: tools[{i}]", any_text=True) for i, one in enumerate(tools)]


def page_of(model: str, found: Sequence[Inspection]) -> str:
    """The report as a page that needs nothing else."""
    good = sum(one.passed for one in found)
    parts = [_HEAD, f"<h1>{good} of {len(found)} tools passed</h1><p>Queries by {_text(model)}.</p>"]
    for one in found:
        count = sum(trial.responded for trial in one.trials)
        state = "pass" if one.passed else "fail"
        parts.append(
            f'<details class="{state}"><summary><b>{_text(f"{one.server}.{one.tool}")}</b> '
            f"{count} of {one.wanted} responses {_text(one.why)}</summary><table>"
            "<tr><th>query<th>arguments<th>response"
        )
        for trial in one.trials:
            given = "" if trial.arguments is None else json.dumps(trial.arguments, ensure_ascii=False)
            row = "".join(f"<td>{_text(text)}" for text in (trial.query, given, trial.text))
            parts.append(f'<tr class="{"ok" if trial.responded else "bad"}">{row}')
        parts.append("</table></details>")
    return "\n".join(parts) + "\n"


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Tools inspected</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid #ddd;padding:.3rem .5rem;text-align:left;
vertical-align:top;overflow-wrap:anywhere}summary{cursor:pointer;padding:.3rem 0}
.pass summary::after{content:"passed";color:#2f6f4f}
.fail summary::after{content:"failed";color:#9c2f2f}.bad td:last-child{color:#9c2f2f}</style>"""


def _text(text: str) -> str:
    """A stranger's text: nothing in it is markup, and nothing unseen."""
    return html.escape(escaped(text))
