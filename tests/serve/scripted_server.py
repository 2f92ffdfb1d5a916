"""A server of its own process over a scripted engine: ``python -m tests.serve.scripted_server``.

A message ``say: "text"`` (JSON) is answered by that text, any other by "ok".
"""

from __future__ import annotations

import asyncio
import json
import sys

from minicpm4 import AsyncLLM
from minicpm4.serve.run import Socket, serve
from minicpm4.serve.settings import ServeSettings
from minicpm4.testing import ScriptedEngine


def answer(prompt: str) -> str:
    """What the last message asks for."""
    before, _, rest = prompt.rpartition("say: ")
    return str(json.JSONDecoder().raw_decode(rest)[0]) if before else "ok"


def main() -> None:
    engine = ScriptedEngine(answer)
    llm = AsyncLLM.over(engine, engine.text, name="scripted")
    settings = ServeSettings(**json.loads(sys.argv[1]))

    def started(address: str) -> None:
        print("scripted at", address, flush=True)

    where = Socket(port=0)
    asyncio.run(serve(llm, settings, where, where.open(settings), started))
    llm.llm.close()


if __name__ == "__main__":
    main()
