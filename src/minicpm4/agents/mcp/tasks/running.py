"""A task in its own folder with its servers: calls given, or an agent's, and how both are scored."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minicpm4.agents.mcp.agent import SYSTEM, Agent, AgentOptions, called
from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Ask
from minicpm4.agents.mcp.catalogue import CATALOGUE
from minicpm4.agents.mcp.config import ServerConfig, ServerSpec, spec_of
from minicpm4.agents.mcp.data.talks import call_message
from minicpm4.agents.mcp.evaluate import Mark, Sample, Setting, evaluate
from minicpm4.agents.mcp.install import server_table
from minicpm4.agents.mcp.models import Model
from minicpm4.agents.mcp.search import best_tools
from minicpm4.agents.mcp.tasks.state import BASE, GRAPH, set_up, wrong
from minicpm4.agents.mcp.tasks.task import Task, placed
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.tools import Tool
from minicpm4.config.strict import require
from minicpm4.errors import RequestError, ToolServerError
from minicpm4.text.toolcalls import ToolCall

__all__ = ["Outcome", "Runner", "tools_of"]

PORT = 18730  # where pages are, if nothing else is there: prompts are then the same in every run
COMPANIONS = ("calculator", "filesystem", "time", "sqlite")  # whose tools are offered beside the task's own
OPTIONS = AgentOptions(max_steps=8, most_tools=512)
UNFIT = "not called: the arguments do not fit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """``marks``: of calls with the right steps before; ``wrong``: of the end that the agent left; ``made``:
    its calls, ``unfit`` of them not by the tool's schema; ``refused``: why the agent was not asked on."""

    marks: Sequence[Mark]
    wrong: Sequence[str]
    ended: str
    answer: str
    made: int
    unfit: int
    seconds: float
    refused: str = ""


@dataclass(kw_only=True, slots=True)
class Runner:
    """``folder``: where each task is set up anew; ``pool``: tools of all servers, of which ``offer`` are
    offered, those that solve the task among them. ``ask``: who allows what ``allowed`` does not name."""

    folder: Path
    pool: Sequence[Tool]
    ask: Ask
    allowed: tuple[str, ...] = ()
    offer: int = 10

    async def gold(self, task: Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Make the calls that solve it: the conversation, and the tools that were offered. Raises
        ToolServerError where one fails, or the end is not what it should be."""
        async with self._world(task) as (box, url):
            offered = self._offered(box, task)
            messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
            messages.append({"role": "user", "content": placed(task.task, self.folder, url)})
            for number, (name, given) in enumerate(placed(list(task.calls), self.folder, url)):
                call = ToolCall(name=box.find(name).called, arguments=given)
                step, result = await called(box, f"call_{number}", call)
                if step.failed:
                    raise ToolServerError(f"{task.id}: {name} failed: {step.text[:500]}")
                messages += [call_message([(f"call_{number}", call.name, given)]), result]
            messages.append({"role": "assistant", "content": task.answer or "Done."})
            missed = wrong(self.folder, placed(list(task.end), self.folder, url), task.answer, task.answer)
            if missed:
                raise ToolServerError(f"{task.id} is not solved by its own calls: {'; '.join(missed)}")
            return messages, [tool.function for tool in offered]

    async def score(
        self, model: Model, task: Task, gold: tuple[list[dict[str, Any]], list[dict[str, Any]]], *, held: bool
    ) -> Outcome:
        """Ask a model for each step with the right ones before, then let the agent do all of it."""
        begun, (messages, tools) = time.monotonic(), gold
        samples = [
            Sample(messages=messages[:i], tools=tools, calls=[(one["name"], one["arguments"])])
            for i, message in enumerate(messages)
            for one in [call["function"] for call in message.get("tool_calls", ())]
        ]
        marks = await evaluate(model, samples, Setting(held=held))
        model.hold = held
        async with self._world(task) as (box, url):
            offered = self._offered(box, task)
            box.tools = {tool.called: tool for tool in offered}
            agent, refused = Agent(model, box, OPTIONS), ""
            try:
                done = await agent.run(placed(task.task, self.folder, url))
            except RequestError as error:  # its conversation does not fit any more, say
                done, refused = agent.transcript, str(error)
            end = placed(list(task.end), self.folder, url)
            missed = wrong(self.folder, end, done.answer, task.answer)
        return Outcome(
            marks=marks,
            wrong=missed,
            ended="refused" if refused else done.ended,
            answer=done.answer,
            refused=refused,
            made=len(done.steps),
            unfit=sum(step.text.startswith(UNFIT) for step in done.steps),
            seconds=round(time.monotonic() - begun, 1),
        )

    @asynccontextmanager
    async def _world(self, task: Task) -> AsyncIterator[tuple[Toolbox, str]]:
        """The task's folder as it begins, its pages, and the servers of the tools that are offered."""
        set_up(self.folder, task.start)
        names = dict.fromkeys([*task.servers, *(tool.server for tool in self._chosen(task))])
        specs = {name: spec(name, self.folder) for name in names}
        with _Pages(task.start.get("pages", {})) as url:
            async with Toolbox(ServerConfig(specs), Approvals(None, self.allowed), self.ask) as box:
                await box.refresh()
                if box.troubles:
                    raise ToolServerError("; ".join(box.troubles.values()))
                for name, given in placed(list(task.start.get("before", ())), self.folder, url):
                    result = await box.call(name, given)
                    if result.failed:
                        raise ToolServerError(f"{task.id}: {name} failed before it: {result.text[:500]}")
                yield box, url

    def _chosen(self, task: Task) -> list[Tool]:
        """Tools that solve it, and others that a search finds for it among those of its servers, and of a few
        that are always there."""
        right = [tool for tool in self.pool if f"{tool.server}.{tool.name}" in task.tools]
        near = {*task.servers, *COMPANIONS}
        rest = [tool for tool in self.pool if tool not in right and tool.server in near]
        return [*right, *best_tools(rest, task.task, self.offer - len(right))]

    def _offered(self, box: Toolbox, task: Task) -> list[Tool]:
        """As they are now, always in the same order."""
        names = [f"{tool.server}.{tool.name}" for tool in self._chosen(task)]
        return sorted((box.find(name) for name in names), key=lambda tool: tool.called)


def spec(name: str, folder: Path) -> ServerSpec:
    """A server of the catalogue that works in the folder, and has its settings there."""
    entry = CATALOGUE[name]
    settings = {"folder": str(folder), "file": str(folder / (BASE if name == "sqlite" else GRAPH))}
    made = server_table(entry, {key: settings[key] for key in entry.settings})
    if name == "fetch":
        made["args"] = ["--ignore-robots-txt", "--allow-private-ips"]
    made["env"] = {**made.get("env", {}), "HOME": str(folder / "home")}
    return spec_of(name, {**made, "cwd": str(folder)}, name, dict.fromkeys(entry.needs, "x"))


async def tools_of(servers: Sequence[str], folder: Path, ask: Ask, allowed: tuple[str, ...]) -> list[Tool]:
    """All tools of servers of the catalogue. Raises ToolServerError."""
    set_up(folder, {})
    specs = {name: spec(name, folder) for name in servers}
    async with Toolbox(ServerConfig(specs), Approvals(None, allowed), ask) as box:
        await box.refresh()
        require(not box.troubles, "; ".join(box.troubles.values()), "see: minicpm4 mcp servers")
        return list(box.tools.values())


class _Pages:
    """Pages on this machine, as long as it is open: its address."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.get(self.path)
                body = (page or "There is no such page.").encode()
                self.send_response(404 if page is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is written."""

        self._answer = Answer
        self._server: ThreadingHTTPServer | None = None
        self._wanted = bool(pages)

    def __enter__(self) -> str:
        if not self._wanted:
            return f"http://127.0.0.1:{PORT}"
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", PORT), self._answer)
        except OSError:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
