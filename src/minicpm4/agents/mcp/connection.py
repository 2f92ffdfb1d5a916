"""One connection to a server: in which of the protocol's two eras, its tools, and calls of them.

A server is asked ``server/discover`` first, as since July 2026. Whatever else it answers, and silence, means
that it is older: it is started or reached anew, since some end on that question, and greeted with
``initialize``. It lives in a task of its own, which its transport wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import anyio
import mcp_types as types
from mcp.client.session import ClientRequestContext, ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import TypeAdapter, ValidationError

from minicpm4.agents.mcp.asking import MAX_TEXT, Ask, Form, form_of
from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.running import Running, named_versions, told_of, why_not
from minicpm4.agents.mcp.stdio import minimal_variables, stdio
from minicpm4.agents.mcp.wire import Wire, http_client
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError, ToolServerError

__all__ = ["Connection"]

PAUSE = 0.1  # seconds, before a server that is not ready yet is asked again
_CALLED: TypeAdapter[Any] = TypeAdapter(types.CallToolResult | types.InputRequiredResult)


class _OtherEra(Exception):
    """The server did not answer as one of the era that was tried. ``modern``: it said that it is."""

    def __init__(self, why: str, *, modern: bool = False) -> None:
        super().__init__(why)
        self.modern = modern


class Connection:
    """``protocol``: the version in which it is spoken. ``wire``: its counts."""

    def __init__(self, spec: ServerSpec, limits: Limits, ask: Ask, version: str) -> None:
        self.spec, self.limits = spec, limits
        self._ask, self._info = ask, types.Implementation(name="minicpm4", version=version)
        self.protocol = ""
        self.wire = Wire(limits)
        self._session: ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._turn = anyio.Lock()  # one call at a time: a question belongs to the call that runs
        self._running: Running | None = None
        self._questions = 0

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done() and not self.wire.why

    async def open(self) -> None:
        """Start or reach the server, and agree on a version. Raises ToolServerError."""
        self._opened = opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(opened))
        try:
            await opened
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End it, and the process that was started for it."""
        self._closing.set()
        if self._task is not None and not self._task.done():
            if self._opened is None or self._opened.cancelled() or not self._opened.done():
                self._task.cancel()  # it waits for an answer, and nobody does for it
            with anyio.CancelScope(shield=True):
                done, _ = await asyncio.wait({self._task}, timeout=10)
                if not done:
                    self._task.cancel()
                    await asyncio.wait({self._task}, timeout=5)

    async def _run(self, opened: asyncio.Future[None]) -> None:
        limits, silent = self.limits, False
        tries = [(True, limits.probe_seconds), (False, limits.start_seconds)]
        said: list[str] = []
        while tries and not self._closing.is_set():
            modern, seconds = tries.pop(0)
            self.wire = Wire(limits)
            try:
                other = await self._live(opened, modern, seconds)
                if other is None:
                    return
                said.append(str(other))
                silent = silent or (modern and not other.modern)
                if other.modern and modern:
                    break
                if other.modern and silent:  # it was slow to start, and is of the new era all the same
                    tries, silent = [(True, limits.start_seconds)], False
            except (Exception, asyncio.CancelledError) as error:
                if opened.done() or isinstance(error, asyncio.CancelledError):
                    ended = self._closing.is_set() and not opened.done()
                    self.wire.broke("it was ended before it answered" if ended else told_of(error))
                    break
                said.append(self.wire.why or told_of(error))
        if not opened.done():
            opened.set_exception(ToolServerError(why_not(self.spec, said, self.wire)))

    async def _live(self, opened: asyncio.Future[None], modern: bool, seconds: float) -> _OtherEra | None:
        """Serve until it is closed; or say why the server is of another era. An error that passed the
        transport's groups of tasks would come out as a group itself."""
        async with AsyncExitStack() as stack:
            session = await self._entered(stack)
            try:
                with anyio.move_on_after(seconds):
                    await (self._discover(session) if modern else self._initialize(session))
                    self._session, self.protocol = session, session.protocol_version or ""
            except _OtherEra as other:
                return other
            if not self.protocol:
                return _OtherEra(f"it said nothing in {seconds:g} s")
            opened.set_result(None)
            await self._closing.wait()
            self.wire.broke("it was ended")  # which calls that still wait are told
        return None

    async def _entered(self, stack: AsyncExitStack) -> ClientSession:
        spec = self.spec
        if spec.command is not None:
            variables = minimal_variables(spec.env)
            streams: Any = stdio(spec.command, spec.args, variables, spec.cwd, self.wire)
        else:
            assert spec.url is not None
            client = await stack.enter_async_context(
                http_client(dict(spec.headers), spec.timeout + self.limits.start_seconds, self.wire)
            )
            streams = streamable_http_client(
                spec.url, http_client=client, max_sse_event_size=self.limits.message_bytes
            )
        read, write = await stack.enter_async_context(streams)
        session = ClientSession(read, write, client_info=self._info, elicitation_callback=self._elicited)
        return await stack.enter_async_context(session)

    async def _discover(self, session: ClientSession) -> None:
        version = LATEST_MODERN_VERSION
        for first in (True, False):
            try:
                found = types.DiscoverResult.model_validate(await session.send_discover(version))
                session.adopt(found)
                return
            except MCPError as error:
                mutual = named_versions(error)
                if mutual is not None and not mutual:
                    raise _OtherEra(f"it speaks none of our versions: {error}", modern=True) from error
                if not mutual or not first:
                    raise _OtherEra(self.wire.why or told_of(error)) from error
                version = mutual[-1]
            except (ValidationError, RuntimeError) as error:
                raise _OtherEra("its answer to server/discover is none") from error

    async def _initialize(self, session: ClientSession) -> None:
        try:
            await session.initialize()
        except MCPError as error:
            raise _OtherEra(self.wire.why or told_of(error), modern=bool(named_versions(error))) from error
        except ValidationError as error:
            raise _OtherEra("its answer to initialize is none") from error

    async def tools(self) -> tuple[list[types.Tool], bool]:
        """Its tools, as it tells them now; whether there were more than are taken. Raises ToolServerError."""
        found: list[types.Tool] = []
        cursor = None
        with self._patiently(self.limits.start_seconds, "tell its tools") as running:
            for _ in range(self.limits.pages):
                at = types.PaginatedRequestParams(cursor=cursor) if cursor else None
                page = await running.wait(partial(running.session.list_tools, params=at))
                found += page.tools
                if len(found) > self.limits.tools:
                    return found[: self.limits.tools], True
                cursor = page.next_cursor
                if not cursor:
                    return found, False
            return found, True

    async def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """The result of a tool, which may be an error of its own. Raises ToolServerError."""
        async with self._turn:
            with self._patiently(self.spec.timeout, f"answer {name}", name) as running:
                return await self._called(running, name, arguments)

    async def _called(self, running: Running, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        answers: Any = None
        state = None
        for _ in range(self.limits.rounds + 1):
            asked = types.CallToolRequest(
                params=types.CallToolRequestParams(
                    name=name, arguments=arguments, input_responses=answers, request_state=state
                )
            )
            # Not session.call_tool: that holds results to the tool's own schema, whose patterns may hang us.
            result = await running.wait(partial(running.session.send_request, asked, _CALLED))
            if isinstance(result, types.CallToolResult):
                return result
            state, answers = result.request_state, None
            if result.input_requests:
                answers = {key: await self._wanted(one) for key, one in result.input_requests.items()}
            else:
                await anyio.sleep(PAUSE)
        raise ToolServerError(
            f"{self.spec.name}: {name} asked for more input {self.limits.rounds + 1} times and was given up"
        )

    async def _wanted(self, request: types.InputRequest) -> Any:
        """What answers one of a server's requests within a call."""
        if isinstance(request, types.ElicitRequest):
            answer = await self._elicited(None, request.params)
            if isinstance(answer, types.ElicitResult):
                return answer
        raise ToolServerError(
            f"{self.spec.name} asks for {request.method}, which this client does not do",
            "leave that tool out",
        )

    async def _elicited(
        self, context: ClientRequestContext | None, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """Ask the user, while the call's time stands still. What nobody called for is declined."""
        running = self._running
        if running is None:
            return types.ElicitResult(action="decline")
        self._questions += 1
        running.questions += 1
        if running.questions > self.limits.rounds or self._questions > self.limits.questions:
            running.give_up(f"asked the user more than {running.questions - 1} times")
            return types.ElicitResult(action="cancel")
        try:
            form = self._form(running.tool, params)
        except ConfigError as error:
            running.give_up(str(error))
            return types.ElicitResult(action="decline")
        answer = await running.answered(partial(self._ask.tell, form))
        if answer is None:
            return types.ElicitResult(action="decline")
        defaults = {one.name: one.default for one in form.fields if one.default is not None}
        content = None if form.url else {**defaults, **answer}
        return types.ElicitResult(action="accept", content=content)

    def _form(self, tool: str, params: types.ElicitRequestParams) -> Form:
        if isinstance(params, types.ElicitRequestURLParams):
            fits = len(params.message) <= MAX_TEXT and len(params.url) <= MAX_TEXT
            require(fits, f"{self.spec.name} asks for a page in more than {MAX_TEXT:,} characters")
            return Form(server=self.spec.name, tool=tool, message=params.message, url=params.url)
        return form_of(self.spec.name, tool, params.message, params.requested_schema)

    @contextmanager
    def _patiently(self, seconds: float, what: str, tool: str = "") -> Iterator[Running]:
        running = Running(self.spec, self.wire, self._require_session(), seconds, what, tool)
        if tool:  # nobody answers what is asked beside a call; a list may be read while one runs
            self._running = running
        try:
            with running:
                yield running
        finally:
            if self._running is running:
                self._running = None

    def _require_session(self) -> ClientSession:
        """Raises ToolServerError."""
        if self._session is None or not self.alive:
            raise ToolServerError(why_not(self.spec, [self.wire.why or "it is not connected"], self.wire))
        return self._session
