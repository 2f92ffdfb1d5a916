"""Tools of servers for the chat page: what is asked of a person goes to the page, and nothing runs unasked.

Work is a job: a start of servers, or a call. One runs at a time, as one person answers. What it wants to know
is a question with an id of its own; a page that has gone is a no. Whoever asks shows the token that the
address had which was printed at the start: on this machine others may reach the server, too.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field as Bounded

from minicpm4.agents.mcp.agent import SYSTEM
from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Answer, Ask, Consent, Form, May
from minicpm4.agents.mcp.checks import misfit
from minicpm4.agents.mcp.config import ServerConfig
from minicpm4.agents.mcp.hidden import escaped
from minicpm4.agents.mcp.models import meant_call
from minicpm4.agents.mcp.results import fenced
from minicpm4.agents.mcp.search import best_tools
from minicpm4.agents.mcp.toolbox import Toolbox
from minicpm4.agents.mcp.tools import Tool, shown_name
from minicpm4.errors import ConfigError, Minicpm4Error, shortened
from minicpm4.files import parse_json
from minicpm4.serve.bodies import Shape
from minicpm4.serve.endpoints import Api, Endpoint
from minicpm4.serve.errors import ApiError, openai_error
from minicpm4.serve.openai import error_event
from minicpm4.serve.responses import Reply
from minicpm4.serve.shelf import Shelf

__all__ = ["PageTools"]

POLL = 20.0  # seconds that a page waits for news
GONE = 60.0  # without a page that asks, a question is answered with no
MOST_JOBS = 32  # that wait, or whose end nobody has asked for; as many whose end was told are remembered
OFFERED = 20  # tools of many: those that the conversation is about
MAX_TEXT = 20_000  # characters of a text that is shown
Text = Annotated[str, Bounded(max_length=1 << 20)]


class TokenBody(Shape):
    """Who asks."""

    token: Text


class ToolsBody(TokenBody):
    """``query``: what the conversation is about, where there are many tools."""

    query: Text = ""


class MeantBody(TokenBody):
    """``text`` of an answer without a call."""

    text: Text


class BeginBody(TokenBody):
    """``what``: "start" of the servers, or "call" of the tool ``name`` with ``arguments``, JSON text."""

    what: Literal["start", "call", "plan"]
    name: Text = ""
    arguments: Text = "{}"


class JobBody(TokenBody):
    """A job."""

    job: Text


class AnswerBody(JobBody):
    """``consent`` to a question that asks for one, ``values`` (null: rather not) for a form."""

    question: Text
    consent: Literal["once", "session", "always", "no"] = "no"
    values: dict[str, Any] | None = None


@dataclass(slots=True)
class _Job:
    id: str
    task: asyncio.Task[dict[str, Any]] | None = None
    question: dict[str, Any] | None = None
    reply: asyncio.Future[AnswerBody] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    heard: float = field(default_factory=time.monotonic)
    told: bool = False  # what came of it

    @property
    def ended(self) -> bool:
        return self.task is not None and self.task.done()


class PageTools:
    """``api``: what the page asks; ``token``: without it nothing is answered."""

    def __init__(self, config: ServerConfig, approvals: Approvals) -> None:
        self.token = secrets.token_urlsafe(24)
        self.box = Toolbox(config, approvals, Ask(self._may, self._tell))
        self._jobs: dict[str, _Job] = {}
        self._turn = asyncio.Lock()
        self._current: _Job | None = None
        self._begun = False

    @property
    def api(self) -> Api:
        made = (
            ("tools", self._tools, ToolsBody, "Servers of tools, and what they offer."),
            ("meant", self._meant, MeantBody, "Whether an answer without a call was meant for one."),
            ("begin", self._begin, BeginBody, "Start servers, call a tool, or tell what would be."),
            ("wait", self._wait, JobBody, "What a job wants to know, or what came of it."),
            ("answer", self._answered, AnswerBody, "Answer a job's question."),
            ("drop", self._drop, JobBody, "End a job: what it asks is answered with no."),
        )
        endpoints = tuple(
            Endpoint(
                method="POST",
                path=f"/mcp/{name}",
                handle=self._guarded(handle),
                summary=summary,
                shape=shape,
                needs="server",
            )
            for name, handle, shape, summary in made
        )
        return Api(endpoints=endpoints, error_body=openai_error, error_event=error_event)

    async def close(self) -> None:
        """End all jobs and servers."""
        for job in self._jobs.values():
            if job.task is not None:
                job.task.cancel()
        await self.box.close()

    def _guarded(self, handle: Callable[[Any], Awaitable[Reply]]) -> Callable[[Shelf, Any], Awaitable[Reply]]:
        async def answer(_: Shelf, body: TokenBody) -> Reply:
            if not hmac.compare_digest(body.token.encode(), self.token.encode()):
                message = "the token is not right: open the address that minicpm4 serve printed"
                raise ApiError(403, message, kind="permission_error", code="wrong_token")
            return await handle(body)

        return answer

    async def _tools(self, body: ToolsBody) -> Reply:
        every = list(self.box.tools.values())
        chosen = every if len(every) <= OFFERED else best_tools(every, body.query, OFFERED)
        names = {tool.called for tool in chosen}
        return Reply.of(
            {
                "begun": self._begun,
                "system": SYSTEM,
                "servers": [
                    {
                        "name": one.name,
                        "state": one.state,
                        "why": one.why,
                        "tools": one.tools,
                        "at": self.box.shown(self.box.servers[one.name].spec.address),
                    }
                    for one in self.box.health
                ],
                "tools": [self._row(tool) for tool in every],
                "notes": [*self.box.notes, *self.box.troubles.values()],
                "offered": [tool.function for tool in every if tool.called in names],
            }
        )

    def _row(self, tool: Tool) -> dict[str, Any]:
        told = " ".join((tool.description or tool.title).split())
        spec = self.box.servers[tool.server].spec
        return {
            "called": tool.called,
            "name": shown_name(f"{tool.server}.{tool.name}"),
            "says": shortened(self.box.shown(told), 300, "\n"),
            "allowed": self.box.approvals.standing(spec, tool).allowed,
        }

    async def _meant(self, body: MeantBody) -> Reply:
        tools = [tool.function for tool in self.box.tools.values()]
        return Reply.of({"meant": meant_call(body.text, tools)})

    async def _begin(self, body: BeginBody) -> Reply:
        self._forget_old()
        if sum(not job.told for job in self._jobs.values()) >= MOST_JOBS:
            raise ApiError(429, f"{MOST_JOBS} calls wait already", kind="rate_limit_error", code="too_many")
        given = _arguments(body.arguments) if body.what != "start" else {}
        if body.what == "plan":
            return Reply.of(self._plan(body.name, given))
        job = _Job(secrets.token_urlsafe(12))
        self._jobs[job.id] = job
        job.task = asyncio.get_running_loop().create_task(self._run(job, body, given))
        job.task.add_done_callback(lambda _: job.news.set())
        return Reply.of({"job": job.id})

    def _forget_old(self) -> None:
        """Forget what came of jobs of pages that have gone, and of those that were told a while ago: a page
        says that it is still there by asking beside itself, and both are told the same."""
        now = time.monotonic()
        told = [name for name, job in self._jobs.items() if job.told]
        for name, job in list(self._jobs.items()):
            late = job.ended and now - job.heard > (POLL if job.told else GONE)
            if late or name in told[:-MOST_JOBS]:
                del self._jobs[name]

    async def _run(self, job: _Job, body: BeginBody, given: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            self._current = job
            try:
                if body.what == "start":
                    await self.box.refresh()
                    self._begun = True
                    return {"text": "", "failed": False, "denied": False, "notes": [], "content": ""}
                result = await self.box.call(body.name, given)
            except ConfigError as error:
                return {**_FAILED, "text": escaped(str(error)), "content": f"not called: {error}"}
            finally:
                self._current = None
        return {
            "text": shortened(escaped(result.text), MAX_TEXT, "\n"),
            "failed": result.failed,
            "denied": result.denied,
            "notes": [escaped(one) for one in result.notes],
            "content": fenced(result, body.name),
        }

    def _plan(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """What would be asked and called; nothing is."""
        try:
            tool = self.box.find(name)
        except ConfigError as error:
            return {"told": escaped(str(error)), "asks": False}
        spec = self.box.servers[tool.server].spec
        standing = self.box.approvals.standing(spec, tool)
        asked = "it would be called without asking" if standing.allowed else "you would be asked first"
        unfit = misfit(tool.schema, given)
        told = f"its arguments do not fit: {unfit}" if unfit else asked
        shown = (
            f"{shown_name(f'{tool.server}.{tool.name}')} at {self.box.shown(spec.address)}: {escaped(told)}"
        )
        return {"told": shown, "asks": not standing.allowed}

    async def _wait(self, body: JobBody) -> Reply:
        """The next question or the end; {"state": "works"} where neither came in POLL seconds."""
        job = self._job(body.job)
        job.heard = time.monotonic()
        if job.question is None and not job.ended:
            job.news.clear()
            try:
                await asyncio.wait_for(job.news.wait(), POLL)
            except TimeoutError:
                return Reply.of({"state": "works"})
        job.heard = time.monotonic()
        if job.question is not None:
            return Reply.of({"state": "asks", "question": job.question})
        if job.task is None or not job.ended:
            return Reply.of({"state": "works"})
        job.told = True
        try:
            return Reply.of({"state": "done", "result": job.task.result()})
        except asyncio.CancelledError:
            return Reply.of({"state": "done", "result": {**_FAILED, "text": "stopped", "content": "stopped"}})
        except Minicpm4Error as error:
            told = self.box.shown(str(error))
            return Reply.of({"state": "done", "result": {**_FAILED, "text": told, "content": told}})

    async def _answered(self, body: AnswerBody) -> Reply:
        job = self._job(body.job)
        if job.question is None or job.reply is None or job.question["id"] != body.question:
            raise ApiError(409, "that is no longer asked", code="not_asked")
        if not job.reply.done():
            job.reply.set_result(body)
        return Reply.of({"taken": True})

    async def _drop(self, body: JobBody) -> Reply:
        job = self._jobs.pop(body.job, None)
        if job is not None and job.task is not None:
            job.task.cancel()
        return Reply.of({"dropped": job is not None})

    def _job(self, name: str) -> _Job:
        if name not in self._jobs:
            raise ApiError(404, "there is no such call, or it has ended", code="no_job")
        return self._jobs[name]

    async def _may(self, may: May) -> Consent:
        given = json.dumps(may.arguments, indent=2, ensure_ascii=False)
        body = await self._asked(
            {
                "kind": may.what,
                "server": shown_name(may.server),
                "tool": shown_name(may.tool),
                "arguments": shortened(escaped(given), MAX_TEXT, "\n") if may.what == "call" else "",
                "details": [
                    [name, shortened(self.box.shown(told), 2000, "\n")] for name, told in may.details
                ],
                "changed": [escaped(one) for one in may.changed],
                "warnings": [escaped(one) for one in may.warnings],
            }
        )
        return "no" if body is None else body.consent

    async def _tell(self, form: Form) -> Answer:
        fields = [
            {
                "name": one.name,
                "kind": one.kind,
                "told": escaped(one.told or one.name),
                "choices": [[choice, escaped(choice)] for choice in one.choices],
                "required": one.required,
                "default": one.default,
            }
            for one in form.fields
        ]
        body = await self._asked(
            {
                "kind": "form",
                "server": shown_name(form.server),
                "tool": shown_name(form.tool),
                "message": self.box.shown(form.message),
                "url": escaped(form.url),
                "fields": fields,
            }
        )
        if body is None or body.values is None:
            return None
        known = {one.name: one for one in form.fields}
        return {
            name: value for name, value in body.values.items() if name in known and known[name].takes(value)
        }

    async def _asked(self, question: dict[str, Any]) -> AnswerBody | None:
        """What the page says of it; None: it has gone."""
        job = self._current
        if job is None:
            return None
        job.question = {"id": secrets.token_urlsafe(12), **question}
        # A consent is that of the question shown: the reply is of this question, whatever else is asked.
        reply = job.reply = asyncio.get_running_loop().create_future()
        job.heard = time.monotonic()
        job.news.set()
        try:
            while time.monotonic() - job.heard < GONE:
                done, _ = await asyncio.wait([reply], timeout=1.0)
                if done:
                    return reply.result()
            return None
        finally:
            if job.reply is reply:
                job.question = job.reply = None


_FAILED: dict[str, Any] = {"failed": True, "denied": False, "notes": []}


def _arguments(text: str) -> dict[str, Any]:
    try:
        given = parse_json(text or "{}", "what stands in arguments", ConfigError)
    except ConfigError as error:
        raise ApiError(400, str(error), param="arguments") from error
    if not isinstance(given, dict):
        raise ApiError(400, "the arguments are no JSON object", param="arguments")
    return given
