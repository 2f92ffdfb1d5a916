"""What `@modelcontextprotocol/conformance client` runs: our client against the server at the last argument.

conformance client --command "python tests/agents/conformance_client.py" --scenario tools_call
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from minicpm4.agents.mcp.limits import Limits
from minicpm4.agents.mcp.tools import Tool
from tests.agents.servers import Person, boxed, reached

NUMBERS = {"a": 5, "b": 3}
SOME: Mapping[str, Any] = {
    "string": "x",
    "number": 1,
    "integer": 1,
    "boolean": True,
    "object": {},
    "array": [],
}


async def main(url: str) -> int:
    person = Person("session", values={})
    async with boxed([reached(url)], person, Limits(probe_seconds=5)) as box:
        for trouble in box.troubles.values():
            print(trouble, file=sys.stderr)
        for name, tool in list(box.tools.items()):
            for given in arguments_of(tool, box.tools):
                result = await box.call(name, given)
                print(name, result.text)
    return 1 if box.troubles else 0


def arguments_of(tool: Tool, every: Mapping[str, Tool]) -> Iterator[dict[str, Any]]:
    """What a tool is called with: what the suite says, or its schema asks for."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    told = [one["arguments"] for one in context.get("toolCalls", ()) if one["name"] == tool.name]
    if told:  # a null where the schema has none is refused here before it is sent: it is left out
        yield from ({key: value for key, value in one.items() if value is not None} for one in told)
    elif tool.name == "json_schema_echo":
        yield from ({"schema": one.schema} for one in every.values() if one is not tool)
    else:
        asked = tool.schema.get("properties") or {}
        needed = [key for key in tool.schema.get("required", ()) if key in asked]
        some = {
            key: SOME.get(asked[key].get("type"), "x") for key in needed if isinstance(asked[key], Mapping)
        }
        yield {**some, **{key: value for key, value in NUMBERS.items() if key in asked}}


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[-1])))
