"""Calls over HTTP, in models' own formats: held to schemas, told while written, ended where asked."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.engine.calling import BOOK, NOISE, NOW, TOOLS, UNFOLLOWED, opening
from tests.serve.conftest import events, joined_calls
from tests.text.call_templates import KINDS, MINICPM5_TOKENS, NEWER, answer, source_of, template

GIVEN = {"city": "Rome\n<x>", "nights": 3, "kind": "a <b>", "late": True, "note": "n", "guests": [{"age": 4}]}
KEPT = {**GIVEN, "city": "Rome"}  # in tags a text that is bounded stands on one line
ANY_CITY = json.loads(json.dumps(BOOK))
del ANY_CITY["function"]["parameters"]["properties"]["city"]["maxLength"]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


def engine(name: str) -> dict[str, Any]:
    tokens = {
        "minicpm5": MINICPM5_TOKENS,
        "llama3_1": ("<|eot_id|>",),
        "xlam": ("<|end|>",),
        "named": ("[TOOL_CALLS]", "[ARGS]"),
        "mistral_v3": ("[TOOL_CALLS]",),
        "pythonic": ("<|python_start|>", "<|python_end|>"),
    }
    return {"chat_template": source_of(name), "tokens": tokens.get(name, ()), "context": 8192}


def script(name: str, *calls: tuple[str, dict[str, Any]]) -> str:
    return answer(template(name), list(calls))


def message_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


@pytest.mark.parametrize("name", [*KINDS, *NEWER])
def test_a_stream_joined_is_the_whole_answer(serve: Any, name: str) -> None:
    calls = [("book", GIVEN), ("now", {})][: 1 if name in ("llama3_1", "bare_pythonic") else 2]
    body = {"tools": [ANY_CITY, NOW], "temperature": 0}
    server = serve(script(name, *calls), engine=engine(name))
    whole = message_of(server.chat(**body))
    chunks = events(server.chat(**body, stream=True))
    told = [one["function"] for one in whole["tool_calls"]]
    assert [(one["name"], json.loads(one["arguments"])) for one in told] == calls
    assert [one["function"] for one in joined_calls(chunks)] == told
    pieces = [c for chunk in chunks for x in chunk["choices"] for c in x["delta"].get("tool_calls", ())]
    assert len(pieces) > 20 and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["content"] is None and not any(
        x["delta"].get("content") for chunk in chunks for x in chunk["choices"]
    )


@pytest.mark.parametrize("name", ["qwen2_5", "minicpm5", "minicpm3"])
def test_the_other_interfaces_tell_calls_piece_by_piece(serve: Any, name: str) -> None:
    server = serve(script(name, ("book", KEPT)), engine=engine(name))
    functions = [one["function"] for one in TOOLS]
    tools = [
        {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
        for one in functions
    ]
    body = {"messages": [{"role": "user", "content": "Do."}], "max_tokens": 2000, "tools": tools}
    told = [json.loads(line[6:]) for line in lines(server.post("/v1/messages", **body, stream=True))]
    pieces = [one["delta"]["partial_json"] for one in told if one.get("delta", {}).get("partial_json")]
    (block,) = server.post("/v1/messages", **body).json()["content"]
    assert json.loads("".join(pieces)) == block["input"] == KEPT and len(pieces) > 10
    items = {"input": "Do.", "tools": [{"type": "function", **one} for one in functions]}
    told = [json.loads(line[6:]) for line in lines(server.post("/v1/responses", **items, stream=True))]
    pieces = [one["delta"] for one in told if one["type"] == "response.function_call_arguments.delta"]
    (done,) = [one for one in told if one["type"] == "response.function_call_arguments.done"]
    (item,) = server.post("/v1/responses", **items).json()["output"]
    assert "".join(pieces) == done["arguments"] == item["arguments"] and len(pieces) > 10
    assert json.loads(item["arguments"]) == KEPT and item["status"] == "completed"


def lines(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [line for line in response.text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("name", [*KINDS, *NEWER])
def test_calls_are_valid_whatever_the_model_would_say(serve: Any, name: str, choice: str) -> None:
    text = NOISE if choice == "required" else opening(name) + NOISE
    server, found = serve(text, engine=engine(name)), 0
    for seed in range(4):
        body = {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": seed}
        chosen = server.chat(**body, max_tokens=2500).json()["choices"][0]
        for call in chosen["message"].get("tool_calls", ())[
            : None if chosen["finish_reason"] != "length" else -1
        ]:
            function = call["function"]
            jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
            found += 1
    assert found > 2


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_several_calls_or_one(serve: Any, choice: str) -> None:
    text = script("qwen2_5", ("now", {}), ("now", {}), ("book", KEPT))
    for parallel, count in ((True, 3), (None, 3), (False, 1)):
        server = serve(text, engine=engine("qwen2_5"))
        response = server.chat(
            tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, temperature=0, max_tokens=3000
        ).json()
        message = response["choices"][0]["message"]
        assert len(message["tool_calls"]) == count
        if count == 1:  # nothing was written behind it
            first = script("qwen2_5", ("now", {}))
            assert response["usage"]["completion_tokens"] == len(first)


OTHER_MARKS = "<|tool_call_start|>\n```python\nnow()\n```\n<|tool_call_end|>\n"


def one_call(serve: Any, monkeypatch: Any, kind: str) -> tuple[Any, str]:
    """A server whose model writes a call twice, and then much more, with no grammar that ends it: schemas are
    too long to be held (``kind`` "nothing held"), or the call has marks of another format."""
    if kind == "nothing held":
        monkeypatch.setattr("minicpm4.engine.schemas.MAX_SCHEMA_CHARS", 100)
    call = script("qwen2_5", ("now", {})) if kind == "nothing held" else OTHER_MARKS
    return serve(f"{call}\n{call}\n" + "and so on " * 400, engine=engine("qwen2_5")), call


def summed(response: Any, stream: bool) -> tuple[str, int, list[str], int]:
    """Of all samples: the text, how many calls, how each ended, and how many tokens they took."""
    if stream:
        chunks = events(response)
        usage, choices = chunks.pop()["usage"], [x for chunk in chunks for x in chunk["choices"]]
    else:
        usage, choices = response.json()["usage"], response.json()["choices"]
    said = [x["delta" if stream else "message"] for x in choices]
    text = "".join(one.get("content") or "" for one in said)
    count = sum(len(one.get("tool_calls", ())) for one in said)
    ends = [x["finish_reason"] for x in choices if x["finish_reason"]]
    return text, count, ends, usage["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["nothing held", "other marks"])
def test_an_answer_ends_with_its_first_call_where_no_grammar_ends_it(
    serve: Any, monkeypatch: Any, kind: str, stream: bool
) -> None:
    server, call = one_call(serve, monkeypatch, kind)
    body = {"tools": TOOLS, "temperature": 0, "parallel_tool_calls": False, "stream": stream}
    for n in (1, 3):
        response = server.chat(**body, n=n, stream_options={"include_usage": True} if stream else None)
        said, count, ends, tokens = summed(response, stream)
        assert (said, count, ends) == ("", n, ["tool_calls"] * n)
        assert n * len(call.strip()) <= tokens < n * 3000


@pytest.mark.parametrize("kind", ["nothing held", "other marks"])
def test_a_message_ends_with_its_first_call_where_no_grammar_ends_it(
    serve: Any, monkeypatch: Any, kind: str
) -> None:
    server, _ = one_call(serve, monkeypatch, kind)
    said = server.post(
        "/v1/messages",
        messages=[{"role": "user", "content": "Do."}],
        max_tokens=5000,
        tools=[{"name": name, "input_schema": SCHEMAS[name]} for name in ("now", "book")],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    ).json()
    assert [one["type"] for one in said["content"]] == ["tool_use"] and said["stop_reason"] == "tool_use"
    assert said["usage"]["output_tokens"] < 3000


@pytest.mark.parametrize("stream", [False, True])
def test_a_block_of_code_that_is_a_call(serve: Any, stream: bool) -> None:
    call = json.dumps({"name": "book", "arguments": KEPT}, indent=2)
    server = serve(f"I book:\n```json\n{call}\n```", engine=engine("qwen2_5"))
    response = server.chat(tools=TOOLS, temperature=0, stream=stream)
    if stream:
        chunks = events(response)
        calls, finish = joined_calls(chunks), chunks[-1]["choices"][0]["finish_reason"]
        content = "".join(x["delta"].get("content", "") for chunk in chunks for x in chunk["choices"])
    else:
        choice = response.json()["choices"][0]
        calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
        content = choice["message"]["content"]
    ((one,), said) = calls, content
    assert (one["function"]["name"], json.loads(one["function"]["arguments"])) == ("book", KEPT)
    assert (said, finish) == ("I book:", "tool_calls")


@pytest.mark.parametrize("name", ["mistral_v3", "numbered"])
def test_ids_are_such_as_the_template_takes_back(serve: Any, name: str) -> None:
    server = serve(script(name, ("now", {})), engine=engine(name))
    told = message_of(server.chat(tools=TOOLS, temperature=0))
    number = told["tool_calls"][0]["id"]
    result = {"role": "tool", "tool_call_id": number, "content": "noon"}
    messages = [{"role": "user", "content": "Do."}, {**told, "content": ""}, result]
    assert server.chat(messages=messages, tools=TOOLS).status_code == 200 and len(number) == 9
    body = {"messages": [{"role": "user", "content": "Do."}], "max_tokens": 99}
    tools = [{"name": one, "input_schema": schema} for one, schema in SCHEMAS.items()]
    (block,) = server.post("/v1/messages", **body, tools=tools).json()["content"]
    items = {"input": "Do.", "tools": [{"type": "function", **NOW["function"]}]}
    (item,) = server.post("/v1/responses", **items).json()["output"]
    assert len(block["id"]) == len(item["call_id"]) == 9


def test_a_name_asks_for_one_call(serve: Any) -> None:
    server = serve(script("qwen2_5", ("book", KEPT), ("now", {})), engine=engine("qwen2_5"))
    message = message_of(server.chat(tools=TOOLS, tool_choice={"function": {"name": "book"}}, temperature=0))
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["book"]


def test_a_schema_that_cannot_be_followed(serve: Any) -> None:
    text = script("qwen2_5", ("odd", {"a": 1}))
    server = serve(text, engine=engine("qwen2_5"))
    for stream in (False, True):
        forced = server.chat(tools=[NOW, UNFOLLOWED], tool_choice="required", stream=stream)
        assert forced.status_code == 400 and forced.json()["error"]["param"] == "tools"
        assert "'odd'" in forced.json()["error"]["message"] and not server.engine.prompts
        assert forced.json()["error"]["message"].count("cannot be followed") == 1
    response = server.chat(tools=[NOW, UNFOLLOWED], temperature=0)
    assert response.headers["X-Loose-Tools"] == "odd"
    assert message_of(response)["tool_calls"][0]["function"] == {"name": "odd", "arguments": '{"a": 1}'}
    assert server.chat(tools=[NOW, UNFOLLOWED], stream=True).headers["X-Loose-Tools"] == "odd"
    assert server.engine.params[-1].calls.loose == ("odd",)
    assert "X-Loose-Tools" not in server.chat(tools=[NOW]).headers


def test_tools_that_no_grammar_can_hold_are_told_of(serve: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("minicpm4.engine.schemas.MAX_SCHEMA_CHARS", 100)
    server = serve(script("qwen2_5", ("now", {})), engine=engine("qwen2_5"))
    response = server.chat(tools=TOOLS, temperature=0)
    assert response.headers["X-Loose-Tools"] == "book, now" and server.engine.params[-1].calls is None
    assert message_of(response)["tool_calls"][0]["function"]["name"] == "now"


@pytest.mark.parametrize("tokens", [60, 75])
def test_a_call_that_is_cut_off(serve: Any, tokens: int) -> None:
    server = serve(script("qwen2_5", ("book", KEPT)), engine=engine("qwen2_5"))
    body: dict[str, Any] = {"tools": TOOLS, "temperature": 0, "max_tokens": tokens}
    choice = server.chat(**body).json()["choices"][0]
    ((call),) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "length"
    assert json.dumps(KEPT).startswith(call["function"]["arguments"])
    functions = [{"type": "function", **one["function"]} for one in TOOLS]
    told = server.post("/v1/responses", input="Do.", tools=functions, max_output_tokens=tokens).json()
    assert told["output"][0]["status"] == "incomplete" == told["status"]
    tools = [{"name": "book", "input_schema": SCHEMAS["book"]}]
    said = server.post(
        "/v1/messages", messages=[{"role": "user", "content": "x"}], max_tokens=tokens, tools=tools
    ).json()
    assert said["stop_reason"] == "max_tokens" and said["content"][0]["input"] == {}


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", ["qwen2_5", "minicpm5", "mistral_v3", "llama3_1", ""])
def test_no_cut_leaves_marks_in_the_text(serve: Any, name: str, choice: str) -> None:
    """Wherever max_tokens cuts calls off, the answer is calls that are whole, at most one that is not, and
    no text; it is cut exactly where not all that it began is whole."""
    made = [("now", {}), ("book", KEPT)][: 1 if name == "llama3_1" else 2]
    text = script(name or "qwen2_5", *made)
    server = serve(text, engine=engine(name) if name else {"context": 8192})
    shown = set()
    for tokens in (2, 5, 11, 12, 16, 22, 30, 40, 47, 55, 62, 70, 85, 120):
        body = {"tools": TOOLS, "temperature": 0, "max_tokens": tokens, "tool_choice": choice}
        whole = server.chat(**body).json()["choices"][0]
        chunks = events(server.chat(**body, stream=True))
        told = [one["function"] for one in whole["message"].get("tool_calls", ())]
        assert [one["function"] for one in joined_calls(chunks)] == told
        content = "".join(x["delta"].get("content") or "" for c in chunks for x in c["choices"])
        assert content == (whole["message"]["content"] or "")
        finish = chunks[-1]["choices"][0]["finish_reason"]
        assert finish == whole["finish_reason"]
        open_at_end = bool(told) and not told[-1]["arguments"].endswith("}")
        if finish == "tool_calls":
            assert told and not open_at_end
        else:
            assert finish == "length"
        # In auto a bare call may be any text until it has said that it has a name.
        may_be_text = choice == "auto" and len(content) < len('{"name": "') and name == "llama3_1"
        assert not content or may_be_text, (tokens, content)
        shown.add((len(told), finish))
    assert {(0, "length"), (1, "length")} <= shown


@pytest.mark.parametrize("tail", ["a <", "a <b", "```", "{", '{"n'])
def test_a_text_that_is_cut_where_a_call_might_begin_is_kept(serve: Any, tail: str) -> None:
    server = serve(tail + " and more", engine=engine("qwen2_5"))
    body = {"tools": TOOLS, "temperature": 0, "max_tokens": len(tail)}
    choice = server.chat(**body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (tail, "length")


def test_a_call_that_is_cut_off_in_the_other_interfaces(serve: Any) -> None:
    server = serve(script("qwen2_5", ("now", {}), ("book", KEPT)), engine=engine("qwen2_5"))
    functions = [{"type": "function", **one["function"]} for one in TOOLS]
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    for tokens in (8, 30, 70):
        told = server.post("/v1/responses", input="Do.", tools=functions, max_output_tokens=tokens).json()
        assert told["status"] == "incomplete" and {one["type"] for one in told["output"]} <= {"function_call"}
        messages = [{"role": "user", "content": "x"}]
        said = server.post("/v1/messages", messages=messages, max_tokens=tokens, tools=tools).json()
        assert said["stop_reason"] == "max_tokens"
        assert {one["type"] for one in said["content"]} <= {"tool_use"}
