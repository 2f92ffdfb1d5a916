"""A server through its life: started when it is needed and allowed, started anew when it has died."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import mcp_types as types

from minicpm4 import __version__
from minicpm4.agents.mcp.asking import Ask
from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.connection import Connection
from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.tools import Tool, read_tool
from minicpm4.errors import ConfigError, ToolServerError

__all__ = ["Health", "Server"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How a server is. ``state``: off, ready, ended or given up; ``why``: it is not ready."""

    name: str
    state: str
    protocol: str = ""
    tools: int = 0
    restarts: int = 0
    why: str = ""
    notes: tuple[str, ...] = ()


class Server:
    """``allowed`` is asked before it is started or reached, each time; it raises what refuses."""

    def __init__(
        self, spec: ServerSpec, limits: Limits, ask: Ask, allowed: Callable[[ServerSpec], Awaitable[None]]
    ) -> None:
        self.spec, self.limits = spec, limits
        self.notes: tuple[str, ...] = ()
        self._ask, self._allowed = ask, allowed
        self._connection: Connection | None = None
        self._tools: tuple[Tool, ...] = ()
        self._starts = 0  # since it last answered
        self._restarts = 0

    @property
    def health(self) -> Health:
        connection = self._connection
        state, why, protocol = "off", "", ""
        if connection is not None:
            protocol = connection.protocol
            state, why = ("ready", "") if connection.alive else ("ended", connection.wire.why)
        if self._starts > self.limits.restarts:
            state = "given up"
        return Health(
            name=self.spec.name,
            state=state,
            protocol=protocol,
            tools=len(self._tools),
            restarts=self._restarts,
            why=why,
            notes=self.notes,
        )

    async def tools(self) -> tuple[Tool, ...]:
        """Its tools as it tells them now; what cannot be offered is in ``notes``. Raises ToolServerError."""
        told, more = await (await self._ready()).tools()
        notes = [f"{self.spec.name} has over {len(told)} tools: the rest is left out"] if more else []
        found: dict[str, Tool] = {}
        for one in told:
            try:
                tool = read_tool(self.spec.name, one, self.limits)
            except ConfigError as error:
                notes.append(f"left out: {error}")
                continue
            if tool.name in found:
                notes.append(f"left out: {self.spec.name} tells of two tools {tool.name!r:.80}")
            found.setdefault(tool.name, tool)
        self._starts, self.notes, self._tools = 0, tuple(notes), tuple(found.values())
        return self._tools

    async def tool(self, name: str) -> Tool | None:
        """One of its tools, as it tells of it now. Raises ToolServerError."""
        return next((tool for tool in await self.tools() if tool.name == name), None)

    async def call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Raises ToolServerError."""
        connection = self._connection
        if connection is None or not connection.alive:
            # What it offers may be another thing now: whoever allows calls looks first, by ``tool``.
            raise ToolServerError(f"{self.spec.name} has ended", "its tools are to be read anew")
        return await connection.call(name, arguments)

    async def close(self) -> None:
        """End it; it is started again when it is needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _ready(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.alive:
            return connection
        if self._starts > self.limits.restarts:
            last = f": {connection.wire.why}" if connection is not None and connection.wire.why else ""
            raise ToolServerError(
                f"{self.spec.name} ended {self._starts} times in a row{last}",
                "see what it writes: mcp servers",
            )
        await self._allowed(self.spec)
        await self.close()
        self._restarts += connection is not None
        self._starts += 1
        self._connection = made = Connection(self.spec, self.limits, self._ask, __version__)
        try:
            await made.open()
        except ToolServerError as error:
            made.wire.broke(str(error))
            raise
        return made
