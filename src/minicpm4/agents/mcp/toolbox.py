"""The tools of several servers together: offered under names of their own, called when they are allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from minicpm4.agents.mcp.approvals import Approvals
from minicpm4.agents.mcp.asking import Answer, Ask, Form, May
from minicpm4.agents.mcp.checks import misfit
from minicpm4.agents.mcp.config import ServerConfig, ServerSpec
from minicpm4.agents.mcp.hidden import escaped
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.results import Secrets, ToolResult, read_result
from minicpm4.agents.mcp.server import Health, Server
from minicpm4.agents.mcp.tools import Tool, changed_texts, likenesses, named, shown_name
from minicpm4.config.strict import suggest
from minicpm4.errors import ConfigError, Minicpm4Error, NotAllowedError, ToolServerError

__all__ = ["Toolbox"]

MAX_ARGUMENTS = 1 << 20  # characters of a call


class Toolbox:
    """Servers of a configuration, as ``async with``. Nothing of them is started, reached or called that
    ``approvals`` do not allow and ``ask`` does not.

    ``tools``: what they offer, since ``refresh``; ``troubles``: why servers offer nothing, by name.
    """

    def __init__(
        self, config: ServerConfig, approvals: Approvals, ask: Ask, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.approvals = approvals
        self._ask = ask
        self._asking = asyncio.Lock()  # a person answers one question at a time
        enabled = [spec for spec in config.servers.values() if not spec.disabled]
        self.secrets = Secrets(enabled)
        told = Ask(ask.may, self._tell)
        self.servers = {spec.name: Server(spec, self.limits, told, self._may_start) for spec in enabled}
        self.tools: dict[str, Tool] = {}
        self.troubles: dict[str, str] = {}
        self._alike: dict[str, list[Tool]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all servers that were started here."""
        await asyncio.gather(*(server.close() for server in self.servers.values()))

    async def refresh(self) -> None:
        """Start the servers that may be started, and read what tools they have now. What fails is in
        ``troubles``."""
        found = await asyncio.gather(*map(self._listed, self.servers.values()))
        every = [tool for tools in found for tool in tools]
        names = named(every)
        self.tools = {name: replace(tool, called=name) for name, tool in zip(names, every, strict=True)}
        self._alike = likenesses(self.tools.values())

    async def _listed(self, server: Server) -> tuple[Tool, ...]:
        self.troubles.pop(server.spec.name, None)
        try:
            return tuple([self._without_secrets(tool) for tool in await server.tools()])
        except (ToolServerError, NotAllowedError) as error:
            self.troubles[server.spec.name] = self.shown(str(error))
            return ()

    def _without_secrets(self, tool: Tool) -> Tool:
        """What a tool says of itself is read by models and kept in transcripts."""
        hide = self.secrets.hide_all
        title, told = hide(tool.title), hide(tool.description)
        return replace(tool, title=title, description=told, schema=changed_texts(tool.schema, hide))

    def shown(self, text: str) -> str:
        """A server's words for a person: without secrets, with nothing unseen."""
        return escaped(self.secrets.hide(text))

    @property
    def health(self) -> list[Health]:
        """How each server is; what they say is shown as ``shown``."""
        states = [server.health for server in self.servers.values()]
        return [
            replace(one, why=self.shown(one.why), notes=tuple(map(self.shown, one.notes))) for one in states
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the tools: what is left out, what looks alike, what is not seen."""
        found = [note for one in self.health for note in one.notes]
        for tool in self.tools.values():
            name = shown_name(f"{tool.server}.{tool.name}")
            found += [f"{name}: {one}" for one in self.warnings(tool)]
        return tuple(found)

    def warnings(self, tool: Tool) -> tuple[str, ...]:
        """What a person should look at before a tool is allowed."""
        found = []
        if tool.has_hidden:
            found.append("it is described in characters that are not seen; the model does not get them")
        others = [f"{one.server}.{one.name}" for one in self._alike.get(tool.called, ())]
        if others:
            found.append(f"its name looks like {', '.join(map(shown_name, others[:3]))}")
        if tool.hints.get("destructiveHint") is True:  # whatever else it says
            found.append("its server says that it may destroy something")
        return tuple(found)

    def find(self, name: str) -> Tool:
        """A tool by SERVER.TOOL, or by what the model calls it. Raises ConfigError."""
        by_name = {f"{tool.server}.{tool.name}": tool for tool in self.tools.values()}
        found = self.tools.get(name) or by_name.get(name)
        if found is None:
            near = suggest(name, list(by_name)) if by_name else "no server offers any"
            raise ConfigError(f"there is no tool {shown_name(name)}", escaped(near))
        return found

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """What a tool answers, by ``find``'s names, if it may be called. Its server is asked for the tool
        once more: as it is now it must be allowed. Raises ConfigError where there is no such tool."""
        known = self.find(name)
        if len(json.dumps(arguments)) > MAX_ARGUMENTS:
            return ToolResult(text=f"not called: over {MAX_ARGUMENTS:,} characters of arguments", failed=True)
        server = self.servers[known.server]
        try:
            tool = await server.tool(known.name)
            if tool is None:
                return ToolResult(text="not called: its server no longer has this tool", failed=True)
            tool = replace(self._without_secrets(tool), called=known.called)
            if unfit := misfit(tool.schema, arguments):
                told = f"not called: the arguments do not fit its schema: {unfit}"
                return ToolResult(text=told, failed=True)
            await self._may_call(server.spec, tool, arguments)
            result = await server.call(tool.name, dict(arguments))
        except NotAllowedError as error:
            return ToolResult(text=f"not called: {error}", failed=True, denied=True)
        except ToolServerError as error:
            words = str(error)[: self.limits.result_chars]
            return ToolResult(text=self.shown(words), failed=True)
        return read_result(result, self.secrets, self.limits)

    async def _may_start(self, spec: ServerSpec) -> None:
        details = [("runs" if spec.command else "reaches", spec.address)]
        if spec.folder:
            details.append(("in", spec.folder))
        if spec.env:
            details.append(("variables", ", ".join(spec.env)))
        if spec.headers:
            details.append(("headers", ", ".join(spec.headers)))
        await self._require(May(what="start", server=spec.name, details=tuple(details)), spec, None)

    async def _may_call(self, spec: ServerSpec, tool: Tool, arguments: Mapping[str, Any]) -> None:
        details = [("at", spec.address), ("in", spec.folder or ""), ("says", tool.description or tool.title)]
        may = May(
            what="call",
            server=spec.name,
            tool=tool.name,
            arguments=arguments,
            details=tuple((key, told) for key, told in details if told),
            warnings=self.warnings(tool),
        )
        await self._require(may, spec, tool)

    async def _tell(self, form: Form) -> Answer:
        """What a server asks within a call: several may ask at once, and one may ask several things."""
        hide = self.secrets.hide_all
        fields = tuple(replace(one, told=hide(one.told)) for one in form.fields)
        async with self._asking:
            return await self._ask.tell(replace(form, message=hide(form.message), fields=fields))

    async def _require(self, may: May, spec: ServerSpec, tool: Tool | None) -> None:
        """Raises NotAllowedError unless it is allowed, or is now."""
        async with self._asking:
            standing = self.approvals.standing(spec, tool)
            if standing.allowed:
                return
            hide = self.secrets.hide_all
            details = tuple((key, hide(told)) for key, told in may.details)
            changed = tuple(hide(one) if ": " in one else one for one in standing.changed)
            consent = await self._ask.may(replace(may, details=details, changed=changed))
            if consent == "no":
                what = f"{may.server}.{may.tool}" if may.tool else f"the start of {may.server}"
                raise NotAllowedError(f"{shown_name(what)} was not allowed by the user")
            try:
                self.approvals.grant(spec, tool, consent)
            except (OSError, Minicpm4Error) as error:
                raise NotAllowedError(f"the consent cannot be kept: {error}") from error
