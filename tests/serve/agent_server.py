"""A server whose model solves one task: ``python -m tests.serve.agent_server SETTINGS NAME TOOL ARGUMENT``.

It writes a file by a call of TOOL, whose ARGUMENT is a command, looks at it by another, and says what it has
seen; a request for a title it answers with one.
"""

from __future__ import annotations

import asyncio
import json
import sys

from minicpm4 import AsyncLLM
from minicpm4.serve.run import Socket, serve
from minicpm4.serve.settings import ServeSettings
from minicpm4.testing import ScriptedEngine

STEPS = (
    ("<think>\nFirst the file.\n</think>\n\nI write it.", "echo forty-two > answer.txt"),
    ("Now I look.", "cat answer.txt"),
)


def main() -> None:
    settings, name, tool, argument = sys.argv[1:]

    def answer(prompt: str) -> str:
        if "title generator" in prompt:
            return "A title"
        step = sum(said in prompt for said in ("I write it.", "Now I look."))
        if step == len(STEPS):
            seen = prompt.rpartition("tool\n")[2]
            return "It says forty-two." if "forty-two" in seen else "It says something else."
        said, command = STEPS[step]
        # In the order of their schemas, to which calls are held; Codex's has no description.
        told = {} if argument == "cmd" else {"description": "A step."}
        call = {"name": tool, "arguments": {argument: command, **told}}
        return f"{said}<tool_call>\n{json.dumps(call)}\n</tool_call>"

    engine = ScriptedEngine(answer, context=200_000, max_rows=8192)
    llm = AsyncLLM.over(engine, engine.text, name=name)

    def started(address: str) -> None:
        print("scripted at", address, flush=True)

    where, wanted = Socket(port=0), ServeSettings(**json.loads(settings))
    asyncio.run(serve(llm, wanted, where, where.open(wanted), started))
    llm.llm.close()


if __name__ == "__main__":
    main()
