"""Answers that have a form: response_format, grammars, forced calls. Errors are 400, never free text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import events, joined_calls

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = {"name": "weather", "arguments": {"city": "Paris"}}
NAMED = {"type": "function", "function": {"name": "weather"}}


def form(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        }
    }


@pytest.mark.parametrize(
    ("script", "body", "said"),
    [
        ('{"age": 5}', form(PERSON), '{"age": 5}'),
        ('{"age": "five"}', form(PERSON), None),  # what the model would say is not allowed
        ('{"a": [1]}', {"response_format": {"type": "json_object"}}, '{"a": [1]}'),
        ("no object", {"response_format": {"type": "json_object"}}, None),
        ("free", {"response_format": {"type": "text"}}, "free"),
        ("2024 and more", {"regex": r"\d{4}"}, "2024"),
        ("yes", {"choice": ["yes", "no"]}, "yes"),
        ("abab", {"grammar": 'start: "ab"+'}, "abab"),
    ],
)
def test_an_answer_has_its_form(serve: Any, script: str, body: Any, said: str | None) -> None:
    choice = serve(script).chat(**body, max_tokens=200, temperature=0).json()["choices"][0]
    content = choice["message"]["content"]
    if said is not None:
        assert content == said and choice["finish_reason"] == "stop"
    else:
        assert content != script and (
            choice["finish_reason"] == "length" or isinstance(json.loads(content), dict)
        )


def test_thinking_comes_before_the_form(serve: Any) -> None:
    server = serve("yes")
    message = server.chat(choice=["yes"], temperature=0).json()["choices"][0]["message"]
    assert message["content"] == "yes" and "reasoning_content" not in message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_is_forced(serve: Any, stream: bool, choice: Any) -> None:
    response = serve(json.dumps(CALL)).chat(tools=TOOLS, tool_choice=choice, stream=stream, temperature=0)
    if stream:
        chunks = [c for chunk in events(response) for c in chunk["choices"]]
        calls = joined_calls([{"choices": chunks}])
        assert (
            not any(c["delta"].get("content") for c in chunks) and chunks[-1]["finish_reason"] == "tool_calls"
        )
    else:
        (only,) = response.json()["choices"]
        calls = only["message"]["tool_calls"]
        assert only["message"]["content"] is None and only["finish_reason"] == "tool_calls"
    (call,) = calls
    assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"]) == {
        "city": "Paris"
    }


@pytest.mark.parametrize(("tokens", "said"), [(5, None), (46, '{"city": "Par')])
def test_a_forced_call_that_is_cut_off_says_so(serve: Any, tokens: int, said: str | None) -> None:
    body = {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": tokens, "temperature": 0, "logprobs": True}
    choice = serve(json.dumps(CALL)).chat(**body).json()["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "length"
    if said is None:
        assert message["content"] == "" and "tool_calls" not in message
    else:
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": said}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form({"type": "nonsense"}), "response_format.json_schema.schema"),
        (
            form({"type": "object", "unevaluatedProperties": {"type": "string"}}),
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"regex": "(?=a)"}, "regex"),
        ({"regex": "("}, "regex"),
        ({"grammar": "start: nothing"}, "grammar"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", 5]}, "choice[1]"),
        ({"json_schema": {"type": 5}}, "json_schema"),
        ({"regex": "a", "choice": ["a"]}, None),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice.function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": 5}}}], "tool_choice": "required"},
            "tools",
        ),
        ({"tools": TOOLS, "tool_choice": "required", **form(5)}, "response_format.json_schema.schema"),
        ({"tools": TOOLS, **form({"not": {}})}, "response_format.json_schema.schema"),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_followed_is_a_400(serve: Any, body: Any, param: str | None, stream: bool) -> None:
    server = serve("free text")
    response = server.chat(**body, stream=stream)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert server.engine.prompts == []
    assert param is None or error["param"] == param


def test_a_schema_with_references_is_followed(serve: Any) -> None:
    parameters = {
        "$defs": {"c": {"type": "string"}},
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/c"}},
        "required": ["x"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    script = '{"name": "f", "arguments": {"x": 5}}'
    message = (
        serve(script).chat(tools=tools, tool_choice="required", max_tokens=99).json()["choices"][0]["message"]
    )
    assert message["tool_calls"][0]["function"]["arguments"].startswith('{"x": "')
