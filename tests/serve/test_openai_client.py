"""The official client against a server in a process of its own: what users' programs will see."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import openai
import pytest

from minicpm4.serve.run import Socket
from minicpm4.serve.settings import ServeSettings
from tests.serve.conftest import CALL
from tests.serve.processes import scripted

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def say(text: str) -> Any:
    return [{"role": "user", "content": f"say: {json.dumps(text)}"}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=say("Bonjour 你好"), seed=1, temperature=0
    )
    assert answer.choices[0].message.content == "Bonjour 你好" and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_stream(client: openai.OpenAI) -> None:
    said = ""
    usage = None
    for chunk in client.chat.completions.create(
        model="scripted",
        messages=say("one two"),
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=1,
    ):
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert said == "one two" and usage is not None and usage.completion_tokens == 8


def test_reasoning(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=say("<think>so</think>yes"))
    message = answer.choices[0].message
    assert message.content == "yes" and message.model_extra == {"reasoning_content": "so"}


def test_tools_there_and_back(client: openai.OpenAI) -> None:
    asked = say(CALL)
    message = client.chat.completions.create(model="scripted", messages=asked, tools=TOOLS).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Paris"}
    told = {"role": "tool", "tool_call_id": call.id, "content": 'say: "It rains."'}
    given: Any = [*asked, {**message.to_dict(), "content": ""}, told]
    answer = client.chat.completions.create(model="scripted", messages=given, tools=TOOLS)
    assert answer.choices[0].message.content == "It rains."


def test_tools_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="scripted", messages=say(f"Look: {CALL}"), tools=TOOLS
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == "Look:" and message.tool_calls is not None
    assert message.tool_calls[0].function.name == "weather"
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="scripted", prompt='a say: "b"', echo=True, logprobs=1, max_tokens=1
    )
    (choice,) = answer.choices
    assert choice.text == 'a say: "b"b' and choice.logprobs is not None
    assert choice.logprobs.tokens is not None and len(choice.logprobs.tokens) == 1 + len(choice.text)
    parts = client.completions.create(model="scripted", prompt='a say: "bcd"', stream=True)
    assert "".join(part.choices[0].text for part in parts) == "bcd"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError, match="scripted"):
        client.models.retrieve("other/one")


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="scripted", messages=say("x"), temperature=-1)
    assert wrong.value.param == "temperature" and wrong.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="scripted", messages=say("x" * 9000))
    assert long.value.code == "context_length_exceeded" and "4,096" in long.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=say("x"))


def test_keys() -> None:
    key = "a-key-of-some-length"
    with scripted(api_keys=[key]) as server:
        base = f"{server.address}/v1"
        with (
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError),
        ):
            wrong.models.list()
        with openai.OpenAI(base_url=base, api_key=key) as right:
            assert right.models.list().data[0].id == "scripted"


@pytest.mark.parametrize("names", [[""], [" "], ["a", ""], [" a "], ["\n", "\t"], ["é" * 9999]])
def test_fields_of_any_name_are_answered(client: openai.OpenAI, names: list[str]) -> None:
    """They are named in a header, where not all may stand."""
    said = client.chat.completions.with_raw_response.create(
        model="scripted", messages=say("a"), extra_body=dict.fromkeys(names, 1)
    )
    assert said.headers["x-unknown-fields"] and said.parse().choices[0].message.content == "a"


def test_small_answers_do_not_wait_for_acknowledgements() -> None:
    """40 ms each, where sockets gather small pieces: asyncio has those of a door that is TCP send at once."""
    at_once = []

    class Told(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            own = transport.get_extra_info("socket")
            at_once.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def ask() -> None:
        door = Socket(port=0).open(ServeSettings())
        async with await asyncio.get_running_loop().create_server(Told, sock=door):
            reader, writer = await asyncio.open_connection(*door.getsockname()[:2])
            assert await reader.read() == b""
            writer.close()

    asyncio.run(ask())
    assert at_once == [1]
