"""``/v1/messages`` over a scripted engine: blocks, whole and streamed; what is asked, counted and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
VERSION = {"anthropic-version": "2023-06-01"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "weather", "description": "Of a city.", "input_schema": SCHEMA}]
THOUGHT = f"<think>\nI look.\n</think>\n\nLet me see.\n{CALL}"
HELLO = [{"role": "user", "content": "hello"}]


def ask(server: Any, **body: Any) -> Any:
    return server.post(MESSAGES, **{"messages": HELLO, "max_tokens": 200, **body})


def events(response: Any) -> list[dict[str, Any]]:
    """What a stream held; an event has the name of its type."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def put_together(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream tells of, held to the order of events that clients expect."""
    assert [one["type"] for one in stream[:2]] == ["message_start", "ping"]
    assert [one["type"] for one in stream[-2:]] == ["message_delta", "message_stop"]
    message = {**stream[0]["message"], "content": []}
    open_block: dict[str, Any] | None = None
    parts = ""
    for one in stream[2:-2]:
        assert one["index"] == len(message["content"])
        if one["type"] == "content_block_start":
            assert open_block is None
            open_block, parts = one["content_block"], ""
        elif one["type"] == "content_block_delta":
            kind = one["delta"].pop("type")
            (name,) = one["delta"]
            own = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "input"}[kind]
            parts += one["delta"][name]
            if own != "input":
                open_block[own] = parts  # type: ignore[index]
        else:
            assert one["type"] == "content_block_stop" and open_block is not None
            if open_block["type"] == "tool_use":
                open_block["input"] = json.loads(parts)
            message["content"].append(open_block)
            open_block = None
    assert open_block is None
    return {**message, **stream[-2]["delta"], "usage": stream[-2]["usage"]}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {**message, "id": "", "content": content}


def test_a_message_has_the_form_that_clients_read(serve: Any) -> None:
    server = serve("Paris.")
    message = ask(server, model="scripted").json()
    prompt = len(server.llm.llm.chat_ids(HELLO))
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": "Paris."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }


ANSWERS = {
    "text": ("Paris.", {}, ["text"], "end_turn"),
    "thought": ("<think>\nso\n</think>\n\nParis.", {}, ["thinking", "text"], "end_turn"),
    "call": (THOUGHT, {"tools": TOOLS}, ["thinking", "text", "tool_use"], "tool_use"),
    "two calls": (f"{CALL}\n{CALL}", {"tools": TOOLS}, ["tool_use", "tool_use"], "tool_use"),
    "one call": (
        f"{CALL}\n{CALL}",
        {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ["tool_use"],
        "tool_use",
    ),
    "no tools": (CALL, {}, ["text"], "end_turn"),
    "tools off": (CALL, {"tools": TOOLS, "tool_choice": {"type": "none"}}, ["text"], "end_turn"),
    "cut": ("Paris.", {"max_tokens": 3}, ["text"], "max_tokens"),
    "stopped": ("Paris.", {"stop_sequences": ["x", "is"]}, ["text"], "stop_sequence"),
    "empty": ("", {}, [], "end_turn"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_stream_says_the_same_as_a_whole_answer(serve: Any, case: str) -> None:
    text, body, kinds, reason = ANSWERS[case]
    whole = ask(serve(text), **body).json()
    response = ask(serve(text), stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    stream = events(response)
    told = put_together(stream)
    if case == "one call":  # the engine may have written some tokens more before it hears of the end
        assert told["usage"].pop("output_tokens") > 0 < whole["usage"].pop("output_tokens")
    assert without_ids(told) == without_ids(whole)
    assert [block["type"] for block in whole["content"]] == kinds
    assert whole["stop_reason"] == reason
    assert whole["stop_sequence"] == ("is" if reason == "stop_sequence" else None)
    assert stream[0]["message"]["content"] == [] and stream[0]["message"]["stop_reason"] is None
    assert stream[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_blocks_hold_thought_text_and_calls(serve: Any) -> None:
    thought, text, call = ask(serve(THOUGHT), tools=TOOLS).json()["content"]
    assert thought == {"type": "thinking", "thinking": "I look.", "signature": ""}
    assert text == {"type": "text", "text": "Let me see."}
    assert (
        call["name"] == "weather" and call["input"] == {"city": "Paris"} and call["id"].startswith("toolu_")
    )


def test_an_answer_that_fills_the_context_says_so(serve: Any) -> None:
    message = ask(serve("x" * 400, engine={"context": 256}), max_tokens=1000).json()
    assert message["stop_reason"] == "model_context_window_exceeded"


def test_cached_tokens_are_told_apart(serve: Any) -> None:
    server = serve("a")
    long = [{"role": "user", "content": "x" * 200}]
    first = ask(server, messages=long).json()["usage"]
    second = put_together(events(ask(server, messages=long, stream=True)))["usage"]
    assert (first["cache_read_input_tokens"], second["cache_read_input_tokens"]) == (0, 192)
    assert second["input_tokens"] == first["input_tokens"] - 192


def test_what_a_tool_said_is_read_however_it_begins(serve: Any) -> None:
    server = serve("done")
    said = "x-anthropic-billing-header: as the page has it"
    seen = server.watch_chats()
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": said}]}
    ask(server, messages=[{"role": r, "content": [b]} for r, b in (("assistant", use), ("user", result))])
    assert said in str(seen)


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "system", "content": "It is Monday."},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I look.", "signature": ""},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
            {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Rome"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "rain", "is_error": False},
            {
                "type": "tool_result",
                "tool_use_id": "t2",
                "content": [{"type": "text", "text": "sun"}],
            },
            {"type": "text", "text": "And?"},
        ],
    },
    {"role": "user", "content": "Well?"},
]
CALLS = [
    {"id": number, "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
    for number, city in (("t1", "Paris"), ("t2", "Rome"))
]
# What the template is given of it.
GIVEN = [
    {"role": "system", "content": "Be brief.\n\nBe kind."},
    {"role": "user", "content": "Weather?\n\nIt is Monday."},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "I look.",
        "tool_calls": CALLS,
    },
    {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "rain"},
    {"role": "tool", "tool_call_id": "t2", "name": "weather", "content": "sun"},
    {"role": "user", "content": "And?\n\nWell?"},
]


def test_a_conversation_reaches_the_template(serve: Any) -> None:
    server = serve("done")
    seen = server.watch_chats()
    response = ask(
        server,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=5;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ],
        tools=TOOLS,
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "max"},
        messages=CONVERSATION,
    )
    assert response.status_code == 200, response.text
    ((messages, more),) = seen
    assert messages == GIVEN
    function = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}
    assert more == {
        "tools": [{"type": "function", "function": function}],
        "enable_thinking": True,
        "variables": {"reasoning_effort": "high"},
    }
    assert response.headers["x-ignored-fields"] == "thinking.budget_tokens, tools"


def test_settings_reach_the_engine(serve: Any) -> None:
    server = serve("abcdef")
    ask(server, temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["q"], max_tokens=9)
    params = server.engine.params[0]
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 7)
    assert (params.stop, params.max_tokens) == (("q",), 9)


@pytest.mark.parametrize(
    ("thinking", "told"), [({"type": "disabled"}, False), ({"type": "adaptive"}, None), (None, None)]
)
def test_thinking_is_told_to_the_template(serve: Any, thinking: Any, told: bool | None) -> None:
    server = serve("ok")
    seen = server.watch_chats()
    ask(server, thinking=thinking)
    assert [more["enable_thinking"] for _, more in seen] == [told]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        ({"type": "any"}, {"name": "weather", "arguments": {"city": "Rome"}}),
        ({"type": "tool", "name": "add"}, {"name": "add", "arguments": {"a": {"n": 1}}}),
    ],
)
def test_a_call_is_forced(serve: Any, choice: Any, answer: Any, stream: bool) -> None:
    add = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/one"}},
        "required": ["a"],
        "$defs": {"one": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    }
    tools = [*TOOLS, {"name": "add", "input_schema": add}]
    response = ask(serve(json.dumps(answer)), tools=tools, tool_choice=choice, stream=stream)
    message = put_together(events(response)) if stream else response.json()
    block = message["content"][-1]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", answer["name"], answer["arguments"])
    assert message["stop_reason"] == "tool_use"
    assert [one["type"] for one in message["content"]].count("text") == 0


def test_a_forced_call_holds_the_model_to_its_schema(serve: Any) -> None:
    """The script wants to write prose, which no grammar lets through."""
    server = serve("I would rather talk about it at length.", engine={"seed": 1})
    body = {"tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 40, "temperature": 1.0}
    message = ask(server, **body).json()
    text = message["content"][0].get("text", '{"name": "weather", "arguments": {"city": ')
    assert text.startswith('{"name": "weather", "arguments": {"city": '[: len(text)])


def test_answers_are_held_to_a_schema(serve: Any) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    for body in ({"output_config": {"format": form}}, {"output_format": form}):
        server = serve('{"city": "Rome"}')
        assert ask(server, **body).json()["content"][0]["text"] == '{"city": "Rome"}'
        assert server.engine.params[0].json_schema == SCHEMA
    server = serve("{}")
    ask(server, output_format={"type": "json_schema", "schema": {}})
    assert server.engine.params[0].json_schema == {"type": "object"}


def test_tokens_are_counted(serve: Any) -> None:
    server = serve(engine={"context": 256})
    system = "x" * 300
    told = server.post(COUNT, messages=HELLO, system=system, tools=TOOLS, tool_choice={"type": "auto"})
    wanted = server.llm.llm.chat_ids([{"role": "system", "content": system}, *HELLO])
    assert told.json() == {"input_tokens": len(wanted)} and len(wanted) > 256
    assert server.engine.prompts == []
    assert server.post(COUNT, messages=[]).json()["error"]["type"] == "invalid_request_error"


def test_models_by_header(serve: Any) -> None:
    server = serve(names=("small", "other"))
    told = server.ask("GET", "/v1/models", headers=VERSION).json()
    assert [(one["type"], one["id"]) for one in told["data"]] == [("model", "small"), ("model", "other")]
    assert (told["first_id"], told["last_id"], told["has_more"]) == ("small", "other", False)
    assert told["data"][0]["created_at"].endswith("Z")
    assert server.ask("GET", "/v1/models").json()["object"] == "list"


CLAUDE_CODE = {
    "model": "scripted",
    "max_tokens": 32000,
    "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}}],
        },
        {"role": "system", "content": "There are agents."},
    ],
    "tools": [*TOOLS, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
    "metadata": {"user_id": "{}"},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}


def test_what_claude_code_sends_is_known(serve: Any) -> None:
    response = serve().ask(
        "POST",
        f"{MESSAGES}?beta=true",
        headers=VERSION,
        json=CLAUDE_CODE,
    )
    assert response.status_code == 200 and put_together(events(response))["stop_reason"] == "end_turn"
    assert response.headers["x-unknown-fields"] == "tools[1].max_uses"
    assert response.headers["x-ignored-fields"] == "tools[1] (web_search_20250305), tools"
