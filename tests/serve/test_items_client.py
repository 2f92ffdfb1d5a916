"""``responses`` of OpenAI's official client against a server in a process of its own."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.serve.conftest import CALL
from tests.serve.processes import small

TOOLS: Any = [
    {
        "type": "function",
        "name": "weather",
        "strict": False,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def say(text: str) -> str:
    return f"say: {json.dumps(text)}"


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="scripted", input=say("<think>so</think>Bonjour 你好"))
    assert response.output_text == "Bonjour 你好" and response.status == "completed"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage is not None and response.usage.input_tokens_details.cached_tokens == 0


def test_a_stream(client: openai.OpenAI) -> None:
    said, numbers = "", []
    with client.responses.stream(model="scripted", input=say(f"Look: {CALL}"), tools=TOOLS) as stream:
        for event in stream:
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                said += event.delta
        response = stream.get_final_response()
    assert said == "Look:" and numbers == sorted(numbers)
    message, call = response.output
    assert message.type == "message" and call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}
    events = client.responses.create(model="scripted", input=say("one"), stream=True)
    assert [event.type for event in events][-1] == "response.completed"


def test_tools_there_and_back(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": say(CALL)}]
    response = client.responses.create(model="scripted", input=asked, tools=TOOLS)
    (call,) = response.output
    assert call.type == "function_call"
    told = {"type": "function_call_output", "call_id": call.call_id, "output": say("It rains.")}
    given: Any = [*asked, call.to_dict(), told]
    assert client.responses.create(model="scripted", input=given, tools=TOOLS).output_text == "It rains."


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as kept:
        client.responses.create(model="scripted", input="x", previous_response_id="resp_1")
    assert kept.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="4,096"):
        client.responses.create(model="scripted", input="x" * 9000, stream=True)


def test_a_real_model_holds_to_a_schema() -> None:
    with (
        small("--name", "small") as server,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        common: Any = {"model": "small", "input": "Name a river.", "max_output_tokens": 24, "temperature": 0}
        whole = client.responses.create(**common)
        with client.responses.stream(**common) as stream:
            parts = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert parts == whole.output_text != ""
        schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
        schema["additionalProperties"] = False
        form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
        assert json.loads(client.responses.create(**common, text=form).output_text).keys() == {"wet"}
