"""The official client of Anthropic against a server in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.serve.conftest import CALL
from tests.serve.processes import scripted, small

TOOLS: Any = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    key = "a-key-of-some-length"
    with (
        scripted(api_keys=[key]) as server,
        anthropic.Anthropic(base_url=server.address, api_key=key, max_retries=0) as made,
    ):
        yield made


def say(text: str) -> Any:
    return [{"role": "user", "content": f"say: {json.dumps(text)}"}]


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="scripted", max_tokens=99, messages=say("<think>so</think>Bonjour 你好")
    )
    thought, text = answer.content
    assert thought.type == "thinking" and thought.thinking == "so"
    assert text.type == "text" and text.text == "Bonjour 你好"
    assert answer.stop_reason == "end_turn" and answer.usage.cache_read_input_tokens == 0


def test_a_stream_of_text_thought_and_calls(client: anthropic.Anthropic) -> None:
    asked = say(f"<think>so</think>Look: {CALL}")
    with client.messages.stream(model="scripted", max_tokens=200, messages=asked, tools=TOOLS) as stream:
        said = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert said == "Look:" and [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    call = message.content[2]
    assert call.type == "tool_use" and call.input == {"city": "Paris"} and message.stop_reason == "tool_use"
    assert message.usage.output_tokens > 20


def test_tools_there_and_back(client: anthropic.Anthropic) -> None:
    asked = say(CALL)
    message = client.messages.create(model="scripted", max_tokens=200, messages=asked, tools=TOOLS)
    (call,) = message.content
    assert call.type == "tool_use"
    told = {"type": "tool_result", "tool_use_id": call.id, "content": 'say: "It rains."'}
    answer = client.messages.create(
        model="scripted",
        max_tokens=200,
        tools=TOOLS,
        messages=[
            *asked,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [told]},
        ],
    )
    assert answer.content[0].type == "text" and answer.content[0].text == "It rains."


def test_counting_and_models(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="scripted", messages=say("x"), tools=TOOLS).input_tokens
    assert (
        client.messages.create(model="scripted", max_tokens=1, messages=say("x")).usage.input_tokens == count
    )
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(
            model="scripted", max_tokens=9, messages=say("x"), extra_body={"temperature": -1}
        )
    with pytest.raises(anthropic.BadRequestError, match="4,096"):
        client.messages.create(model="scripted", max_tokens=9, messages=say("x" * 9000))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="another", max_tokens=9, messages=say("x"))
    with (
        client.copy(api_key="wrong") as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.models.list()


def test_a_real_model_calls_what_it_must() -> None:
    with (
        small("--name", "small") as server,
        anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0) as client,
    ):
        asked: Any = [{"role": "user", "content": "What is the weather in Paris? " * 20}]
        common: Any = {
            "model": "small",
            "max_tokens": 30,
            "messages": asked,
            "extra_body": {"temperature": 0},
        }
        text = client.messages.create(**common)
        with client.messages.stream(**common) as stream:
            streamed = stream.get_final_message()
        first, second = text.content[0], streamed.content[0]
        assert first.type == second.type == "text" and first.text == second.text != ""
        assert streamed.usage.cache_read_input_tokens  # whole pages of the prompt
        forced = client.messages.create(**common, tools=TOOLS, tool_choice={"type": "any"})
        if forced.stop_reason == "tool_use":
            (call,) = forced.content
            assert call.type == "tool_use" and isinstance(call.input["city"], str)
        else:
            assert forced.stop_reason == "max_tokens"
