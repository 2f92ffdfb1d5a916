"""``/v1/responses`` over a scripted engine: items, whole and streamed; what is asked, skipped and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minicpm4.errors import EngineError

PATH = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": SCHEMA,
    "strict": False,
}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
SPACE = {"type": "namespace", "name": "box", "description": "Of a box.", "tools": [WEATHER]}
TOOLS = [WEATHER, PATCH, SPACE, {"type": "web_search", "external_web_access": True}]


def call(name: str, **arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def ask(server: Any, **body: Any) -> Any:
    return server.post(PATH, **{"input": "hello", **body})


def events(response: Any) -> list[dict[str, Any]]:
    """What a stream held: named by type, numbered without a gap."""
    found = []
    for i, block in enumerate(response.text.strip().split("\n\n")):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == i
    return found


def put_together(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the events between tell of, held to the order that clients expect."""
    items: list[dict[str, Any]] = []
    part = text = ""
    for one in stream[2:-1]:
        kind = one["type"].removeprefix("response.")
        assert one["output_index"] == len(items) - (kind != "output_item.added")
        if kind == "output_item.added":
            assert not items or items[-1]["status"] != "in_progress"
            items.append(one["item"])
            assert one["item"]["status"] == "in_progress" and not one["item"].get("content")
            part = text = ""
        elif kind == "output_item.done":
            assert one["item"]["id"] == items[-1]["id"]
            said = one["item"]["content"][0]["text"] if "content" in one["item"] else None
            said = said if said is not None else one["item"].get("arguments", one["item"].get("input"))
            assert said == text
            items[-1] = one["item"]
        else:
            assert one["item_id"] == items[-1]["id"]
            if kind == "content_part.added":
                part = one["part"]["type"]
                assert one["part"]["text"] == ""
            elif kind == "content_part.done":
                assert (one["part"]["type"], one["part"]["text"]) == (part, text)
            elif kind.endswith(".delta"):
                text += one["delta"]
            else:
                assert kind.endswith(".done")
                assert one.get("text", one.get("arguments", one.get("input"))) == text
            if part:
                assert one["content_index"] == 0
    return items


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


ANSWERS = {
    "text": ("Paris.", {}, ["message"], "completed"),
    "thought": ("<think>\nso\n</think>\n\nParis.", {}, ["reasoning", "message"], "completed"),
    "call": (
        f"See.\n{call('weather', city='Rome')}",
        {"tools": TOOLS},
        ["message", "function_call"],
        "completed",
    ),
    "two calls": (call("weather", city="A") * 2, {"tools": TOOLS}, ["function_call"] * 2, "completed"),
    "one call": (
        call("weather", city="A") * 2,
        {"tools": TOOLS, "parallel_tool_calls": False},
        ["function_call"],
        "completed",
    ),
    "text tool": (call("patch", input="x\ny"), {"tools": TOOLS}, ["custom_tool_call"], "completed"),
    "space": (call("box__weather", city="A"), {"tools": TOOLS}, ["function_call"], "completed"),
    "no tools": (
        call("weather", city="A"),
        {"tools": TOOLS, "tool_choice": "none"},
        ["message"],
        "completed",
    ),
    "cut": ("Paris.", {"max_output_tokens": 3}, ["message"], "incomplete"),
    "empty": ("", {}, [], "completed"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_stream_says_the_same_as_a_whole_answer(serve: Any, case: str) -> None:
    text, body, kinds, status = ANSWERS[case]
    whole = ask(serve(text), **body).json()
    stream = events(ask(serve(text), stream=True, **body))
    assert [one["type"] for one in stream[:2]] == ["response.created", "response.in_progress"]
    assert stream[0]["response"]["output"] == [] and stream[0]["response"]["status"] == "in_progress"
    assert stream[-1]["type"] == f"response.{status}"
    last = stream[-1]["response"]
    assert put_together(stream) == last["output"]
    assert without_ids(last["output"]) == without_ids(whole["output"])
    assert [item["type"] for item in whole["output"]] == kinds
    if case != "one call":  # the engine may have written some tokens more before it hears of the end
        assert last["usage"] == whole["usage"]
    assert last["status"] == whole["status"] == status
    assert len({one["response"]["id"] for one in stream if "response" in one}) == 1
    assert all(item["status"] == "completed" for item in whole["output"][:-1])
    assert not whole["output"] or whole["output"][-1]["status"] == status


def test_items_have_the_form_that_clients_read(serve: Any) -> None:
    text = f"<think>\nso\n</think>\n\nSee.{call('weather', city='Rome')}{call('patch', input='x')}"
    text += call("box__weather", city="Oslo")
    response = ask(serve(text), tools=TOOLS, instructions="Be brief.").json()
    thought, said, weather, patch, boxed = response["output"]
    assert thought["summary"] == [] and thought["content"] == [{"type": "reasoning_text", "text": "so"}]
    (part,) = said["content"]
    assert said["role"] == "assistant"
    assert part == {"type": "output_text", "text": "See.", "annotations": [], "logprobs": []}
    assert (weather["name"], json.loads(weather["arguments"])) == ("weather", {"city": "Rome"})
    assert (patch["name"], patch["input"]) == ("patch", "x") and "arguments" not in patch
    assert (boxed["namespace"], boxed["name"]) == ("box", "weather") and "namespace" not in weather
    ids = [item["id"] for item in response["output"]]
    assert [one.partition("_")[0] for one in ids] == ["rs", "msg", "fc", "ctc", "fc"]
    assert len({*ids, *(item["call_id"] for item in response["output"][2:])}) == 8
    assert response["object"] == "response" and response["instructions"] == "Be brief."
    assert response["store"] is False and response["tools"] == TOOLS


def test_figures(serve: Any) -> None:
    server = serve("ab")
    first = ask(server, input="x" * 200).json()["usage"]
    second = ask(server, input="x" * 200).json()["usage"]
    assert first["input_tokens"] == second["input_tokens"] and first["output_tokens"] == 3
    assert first["total_tokens"] == first["input_tokens"] + 3
    cached = [one["input_tokens_details"]["cached_tokens"] for one in (first, second)]
    assert cached == [0, 192]


CONVERSATION = [
    {
        "type": "message",
        "id": "m",
        "role": "developer",
        "content": [{"type": "input_text", "text": "Rules."}],
    },
    {"role": "user", "content": "Here?"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"role": "developer", "content": "It is Monday."},
    {"type": "reasoning", "id": "r", "summary": [], "content": None, "encrypted_content": None},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "I look."}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "See."}]},
    {
        "type": "function_call",
        "call_id": "a",
        "namespace": "box",
        "name": "weather",
        "arguments": '{"city":1}',
    },
    {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "x"},
    {"type": "function_call_output", "call_id": "a", "output": "rain"},
    {
        "type": "custom_tool_call_output",
        "call_id": "b",
        "output": [{"type": "input_text", "text": "ok"}],
    },
]
CALLS = [
    {"id": "a", "type": "function", "function": {"name": "box__weather", "arguments": '{"city":1}'}},
    {"id": "b", "type": "function", "function": {"name": "patch", "arguments": {"input": "x"}}},
]
# What the template is given of it.
GIVEN = [
    {"role": "system", "content": "Be brief.\n\nRules."},
    {"role": "user", "content": "Here?\n\nWeather?\n\nIt is Monday."},
    {"role": "assistant", "content": "See.", "reasoning_content": "I look.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "a", "name": "box__weather", "content": "rain"},
    {"role": "tool", "tool_call_id": "b", "name": "patch", "content": "ok"},
]


def test_a_conversation_reaches_the_template(serve: Any) -> None:
    server = serve("done")
    seen = server.watch_chats()
    response = ask(
        server,
        instructions="Be brief.",
        tools=TOOLS,
        reasoning={"effort": "low", "summary": "auto"},
        input=CONVERSATION,
    )
    assert response.status_code == 200, response.text
    ((messages, more),) = seen
    assert messages == GIVEN
    functions = [tool["function"] for tool in more["tools"]]
    assert [one["name"] for one in functions] == ["weather", "patch", "box__weather"]
    assert functions[1]["parameters"]["required"] == ["input"] and 'start: "x"' in functions[1]["description"]
    assert functions[0]["parameters"] == SCHEMA
    assert more["enable_thinking"] is None and more["variables"] == {"reasoning_effort": "low"}


def test_settings_reach_the_engine(serve: Any) -> None:
    server = serve("abc")
    ask(server, temperature=0.5, top_p=0.9, seed=4, max_output_tokens=9)
    params = server.engine.params[0]
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.5, 0.9, 4, 9)
    ask(server)
    assert server.engine.params[1].max_tokens is None


@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        ("required", {"name": "weather", "arguments": {"city": "Rome"}}),
        ({"type": "function", "name": "weather"}, {"name": "weather", "arguments": {"city": "Rome"}}),
        ({"type": "custom", "name": "patch"}, {"name": "patch", "arguments": {"input": "x"}}),
    ],
)
def test_a_call_is_forced(serve: Any, choice: Any, answer: Any) -> None:
    stream = events(ask(serve(json.dumps(answer)), tools=TOOLS, tool_choice=choice, stream=True))
    (item,) = put_together(stream)
    assert item["name"] == answer["name"]


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ],
)
def test_answers_are_held_to_a_form(serve: Any, form: Any, schema: Any) -> None:
    server = serve('{"city": "Rome"}')
    response = ask(server, text={"format": form, "verbosity": "low"}).json()
    assert response["output"][0]["content"][0]["text"] == '{"city": "Rome"}'
    assert server.engine.params[0].json_schema == schema and response["text"]["format"] == form


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call", "call_id": "", "name": "f"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input[0].call_id"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "f", "parameters": 5}]}, "tools[0].parameters"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [5]}]}, "tools[0].tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": "hot"}, "temperature"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(body)[:70] for body, _ in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_a_400_with_its_path(serve: Any, body: Any, param: str, stream: bool) -> None:
    response = ask(serve(), stream=stream, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


def test_a_stream_that_fails_says_so_last(serve: Any) -> None:
    stream = events(ask(serve(["half", EngineError("torn")]), stream=True))
    assert stream[-1]["type"] == "response.failed"
    told = stream[-1]["response"]
    assert told["status"] == "failed" and told["error"] == {"code": "server_error", "message": "torn"}
    assert told["id"] == stream[0]["response"]["id"]


def test_what_codex_sends_is_known(serve: Any) -> None:
    response = ask(
        serve(),
        model="scripted",
        instructions="You are an agent.",
        tools=TOOLS,
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="key",
        service_tier="auto",
        text={"verbosity": "low"},
        client_metadata={"session_id": "x"},
    )
    assert response.status_code == 200 and "x-unknown-fields" not in response.headers
    assert response.headers["x-ignored-fields"] == "tools[3] (web_search), tools"


def test_storing_is_said_to_do_nothing(serve: Any) -> None:
    assert ask(serve(), store=True).headers["x-ignored-fields"] == "store"
    assert "x-ignored-fields" not in ask(serve(), store=False).headers
