"""A server over a scripted engine, asked in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from minicpm4 import AsyncLLM
from minicpm4.serve.app import Server, create_app
from minicpm4.serve.settings import ServeSettings
from minicpm4.testing import ScriptedEngine
from tests.asgi import client_of
from tests.serve.processes import scripted

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


@dataclass
class Scripted:
    """A server and the engine beneath."""

    app: Server
    engine: ScriptedEngine
    llm: AsyncLLM

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, of a client of its own."""

        async def run() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.ask("POST", path, json=body)

    def chat(self, **body: Any) -> httpx.Response:
        """A chat of one message unless ``body`` has others."""
        return self.post(CHAT, **{"messages": HELLO, **body})

    def watch_chats(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """From here on what reaches the template: messages, and what comes with them."""
        seen: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        below = self.llm.llm
        chat_ids = below.chat_ids

        def watched(messages: Any, **more: Any) -> Any:
            seen.append((messages, more))
            return chat_ids(messages)

        below.chat_ids = watched  # type: ignore[method-assign]
        return seen

    def client(self) -> httpx.AsyncClient:
        return client_of(self.app)


def events(response: httpx.Response) -> list[Any]:
    """What a stream held, its end mark left out, which must be there."""
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def joined_calls(chunks: Sequence[Any]) -> list[dict[str, Any]]:
    """The calls of a stream's only sample, put together as clients do: each piece says which it belongs to,
    and the first its name and id."""
    calls: list[dict[str, Any]] = []
    for piece in (c for chunk in chunks for x in chunk["choices"] for c in x["delta"].get("tool_calls", ())):
        if piece["index"] == len(calls):
            assert piece["id"] and piece["type"] == "function" and piece["function"]["name"]
            calls.append(piece)
        else:
            assert piece["index"] == len(calls) - 1 and set(piece["function"]) == {"arguments"}
            calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    return calls


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    """``serve(*answers, engine={...}, **settings)``."""
    made: list[AsyncLLM] = []

    def start(*answers: Any, engine: dict[str, Any] | None = None, **settings: Any) -> Scripted:
        only = answers[0] if len(answers) == 1 and callable(answers[0]) else answers or ("ok",)
        below = ScriptedEngine(only, **(engine or {}))
        llm = AsyncLLM.over(below, below.text, name="scripted")
        made.append(llm)
        return Scripted(create_app(llm, ServeSettings(**{"page": None, **settings})), below, llm)

    yield start
    for llm in made:
        llm.llm.close()


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """OpenAI's client of a scripted server in a process of its own (``scripted_server``)."""
    with (
        scripted() as server,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made
