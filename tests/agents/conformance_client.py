"""What `@modelcontextprotocol/conformance client` runs: our client against the server at the last argument.

conformance client --command "python tests/agents/conformance_client.py" --scenario tools_call
"""

from __future__ import annotations

import asyncio
import sys

from minicpm4.agents.mcp.limits import Limits
from tests.agents.servers import Person, boxed, reached

NUMBERS = {"a": 5, "b": 3}


async def main(url: str) -> int:
    person = Person("session", values={})
    async with boxed([reached(url)], person, Limits(probe_seconds=5)) as box:
        for trouble in box.troubles.values():
            print(trouble, file=sys.stderr)
        for name, tool in box.tools.items():
            wanted = tool.schema.get("properties") or {}
            result = await box.call(name, {key: NUMBERS[key] for key in wanted if key in NUMBERS})
            print(name, result.text)
    return 1 if box.troubles else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[-1])))
