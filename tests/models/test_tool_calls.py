"""A real model calls tools over HTTP: valid by their schemas, streamed as whole, in all three interfaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from minicpm4 import zoo
from minicpm4.errors import ModelNotFoundError
from tests.serve.processes import small

pytestmark = pytest.mark.models

NAME = "qwen2.5-coder-0.5b-instruct"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather in a city", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
QUESTIONS = ("What is the weather in Paris in celsius?", "How warm is it in Oslo, in fahrenheit?")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    try:
        zoo.resolve(NAME)
    except ModelNotFoundError:
        pytest.skip(f"{NAME} is not here: make models fetches it")
    with small(NAME, "--name", "qwen") as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


# To the other question it answers with JSON in a fence, which is no call.
@pytest.mark.parametrize(
    ("question", "choice"),
    [(QUESTIONS[1], "auto"), (QUESTIONS[0], "required"), (QUESTIONS[1], "required")],
)
def test_a_call_streamed_is_the_whole_answers(client: openai.OpenAI, question: str, choice: Any) -> None:
    common: Any = {
        "model": "qwen",
        "messages": [{"role": "user", "content": question}],
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 120,
    }
    whole = client.chat.completions.create(**common).choices[0]
    with client.chat.completions.stream(**common) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        streamed = stream.get_final_completion().choices[0]
    assert whole.message.tool_calls and streamed.message.tool_calls
    (one,), (two,) = whole.message.tool_calls, streamed.message.tool_calls
    assert one.function.arguments == two.function.arguments and len(pieces) > 3  # type: ignore[union-attr]
    assert one.function.name == two.function.name == "get_weather"  # type: ignore[union-attr]
    given = json.loads(one.function.arguments)  # type: ignore[union-attr]
    jsonschema.validate(given, WEATHER)
    assert given["city"] in question and given["unit"] in question
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"


def test_at_any_temperature_calls_are_valid(client: openai.OpenAI) -> None:
    for seed in range(6):
        answer = client.chat.completions.create(
            model="qwen",
            messages=[{"role": "user", "content": "Tell me a joke."}],
            tools=TOOLS,
            tool_choice="required",
            temperature=1.5,
            seed=seed,
            max_tokens=300,
        ).choices[0]
        whole = answer.finish_reason == "tool_calls"  # else the last is cut off
        assert whole or answer.finish_reason == "length"
        calls = answer.message.tool_calls or []
        for call in calls if whole else calls[:-1]:
            jsonschema.validate(json.loads(call.function.arguments), WEATHER)  # type: ignore[union-attr]


def test_the_other_interfaces(client: openai.OpenAI, address: str) -> None:
    response = client.responses.create(
        model="qwen",
        input=QUESTIONS[0],
        tools=[{"type": "function", "strict": False, **FUNCTION}],  # type: ignore[list-item]
        tool_choice="required",
        temperature=0,
        max_output_tokens=120,
    )
    call = response.output[0]
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, timeout=120) as other:
        asked: Any = {
            "model": "qwen",
            "messages": [{"role": "user", "content": QUESTIONS[0]}],
            "tools": [{"name": "get_weather", "input_schema": WEATHER}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "max_tokens": 120,
        }
        with other.messages.stream(**asked) as stream:
            message = stream.get_final_message()
    (block,) = message.content
    assert block.type == "tool_use" and message.stop_reason == "tool_use"
    jsonschema.validate(block.input, WEATHER)
