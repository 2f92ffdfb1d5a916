"""Tools and a response_format in one request: the answer is a call, or a text of that form, in each API."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.engine.calling import BOOK, NOISE, NOW, TOOLS, UNFOLLOWED
from tests.serve.conftest import events, joined_calls
from tests.serve.test_calls import KEPT, SCHEMAS, engine, lines, script
from tests.serve.test_constrained import PERSON, form

SAID = '{"age": 5}'
CALLS = [("now", {}), ("book", KEPT)]
KINDS = ["qwen2_5", "minicpm3", "minicpm5", "llama3_1"]


def calls_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    return CALLS[1:] if name == "llama3_1" else CALLS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_chat(serve: Any, name: str, stream: bool) -> None:
    body = {"tools": TOOLS, "temperature": 0, "stream": stream, **form(PERSON)}
    for answer, calls in ((SAID, []), (script(name, *calls_of(name)), calls_of(name))):
        response = serve(answer, engine=engine(name)).chat(**body)
        if stream:
            chunks = events(response)
            content = "".join(c["delta"].get("content", "") for x in chunks for c in x["choices"])
            made, finish = joined_calls(chunks), chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = response.json()["choices"][0]
            content, finish = choice["message"]["content"] or "", choice["finish_reason"]
            made = choice["message"].get("tool_calls", [])
        told = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in made]
        assert (told, content, finish) == ((calls, "", "tool_calls") if calls else ([], SAID, "stop"))


@pytest.mark.parametrize("name", KINDS)
def test_whatever_the_model_would_say(serve: Any, name: str) -> None:
    server, kinds = serve(NOISE, engine=engine(name)), set()
    for seed in range(12):
        body = {"tools": TOOLS, "temperature": 1, "seed": seed, "max_tokens": 2500, **form(PERSON)}
        choice = server.chat(**body).json()["choices"][0]
        if choice["finish_reason"] == "length":
            continue
        kinds.add(choice["finish_reason"])
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)
        for call in choice["message"].get("tool_calls", ()):
            function = call["function"]
            jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
    assert kinds == {"stop", "tool_calls"}


@pytest.mark.parametrize("stream", [False, True])
def test_items(serve: Any, stream: bool) -> None:
    tools = [{"type": "function", **one["function"]} for one in TOOLS]
    held = {"format": {"type": "json_schema", "name": "x", "schema": PERSON}}
    body = {"input": "Do.", "tools": tools, "text": held, "temperature": 0, "stream": stream}
    for answer, kind in ((SAID, "message"), (script("qwen2_5", ("now", {})), "function_call")):
        response = serve(answer, engine=engine("qwen2_5")).post("/v1/responses", **body)
        whole = json.loads(lines(response)[-1][6:])["response"] if stream else response.json()
        ((item), *_) = whole["output"]
        assert [one["type"] for one in whole["output"]] == [kind] and whole["status"] == "completed"
        assert item["content"][0]["text"] == SAID if kind == "message" else item["name"] == "now"


@pytest.mark.parametrize("stream", [False, True])
def test_messages(serve: Any, stream: bool) -> None:
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    body = {
        "messages": [{"role": "user", "content": "Do."}],
        "max_tokens": 2000,
        "temperature": 0,
        "tools": tools,
        "output_config": {"format": {"type": "json_schema", "schema": PERSON}},
        "stream": stream,
    }
    for answer, kind in ((SAID, "text"), (script("qwen2_5", ("now", {})), "tool_use")):
        response = serve(answer, engine=engine("qwen2_5")).post("/v1/messages", **body)
        if stream:
            told = [json.loads(line[6:]) for line in lines(response)]
            blocks = [one["content_block"] for one in told if one["type"] == "content_block_start"]
            text = "".join(one["delta"].get("text", "") for one in told if "index" in one and "delta" in one)
        else:
            blocks = response.json()["content"]
            text = blocks[0].get("text", "")
        assert [one["type"] for one in blocks] == [kind] and text == (SAID if kind == "text" else "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
def test_what_is_forced_is_the_call_alone(serve: Any, choice: Any) -> None:
    server = serve(SAID, engine=engine("qwen2_5"))
    for held in (form(PERSON), {"regex": "[0-9]+"}, {"choice": ["yes"]}):
        body = {
            "tools": [NOW],
            "tool_choice": choice,
            "max_tokens": 400,
            "parallel_tool_calls": False,
            **held,
        }
        message = server.chat(**body).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
        assert message["content"] is None
    tool = {"name": "now", "input_schema": SCHEMAS["now"]}
    said = server.post(
        "/v1/messages",
        messages=[{"role": "user", "content": "Do."}],
        max_tokens=400,
        tools=[tool],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": PERSON}},
    ).json()
    assert [one["type"] for one in said["content"]] == ["tool_use"]


def test_none_is_the_form_alone(serve: Any) -> None:
    call = script("qwen2_5", ("now", {}))
    server = serve(json.dumps({"age": call}), engine=engine("qwen2_5"))
    body = {"tools": TOOLS, "tool_choice": "none", "temperature": 0}
    message = server.chat(**body, response_format={"type": "json_object"}).json()["choices"][0]["message"]
    assert json.loads(message["content"]) == {"age": call} and "tool_calls" not in message
    assert "book" not in server.engine.prompts[0]


def test_a_text_that_spells_a_call_is_text(serve: Any) -> None:
    text = json.dumps({"age": script("qwen2_5", ("now", {}))})
    server = serve(text, engine=engine("qwen2_5"))
    body = {"tools": TOOLS, "temperature": 0, "response_format": {"type": "json_object"}}
    assert server.chat(**body).json()["choices"][0]["message"]["content"] == text
    chunks = events(server.chat(**body, stream=True))
    assert "".join(c["delta"].get("content", "") for x in chunks for c in x["choices"]) == text


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_forgets_its_marks_is_one(serve: Any, stream: bool) -> None:
    server = serve(json.dumps({"name": "book", "arguments": KEPT}), engine=engine("qwen2_5"))
    response = server.chat(tools=TOOLS, temperature=0, stream=stream, **form(PERSON))
    calls = (
        joined_calls(events(response)) if stream else response.json()["choices"][0]["message"]["tool_calls"]
    )
    ((call),) = calls
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("book", KEPT)


def test_the_thought_comes_first(serve: Any) -> None:
    for answer in (SAID, script("qwq", ("book", KEPT))):
        server = serve(f"Hm.</think>{answer}", engine=engine("qwq"))
        body = {"tools": [BOOK], "temperature": 0, **form(PERSON)}
        message = server.chat(**body).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "Hm."
        assert ("tool_calls" in message) == (answer != SAID) and message["content"] == (
            SAID if answer == SAID else None
        )


def test_a_loose_tool_is_told_of_and_one_that_nothing_holds_refused(serve: Any, monkeypatch: Any) -> None:
    server = serve(script("qwen2_5", ("odd", {"a": 1})), engine=engine("qwen2_5"))
    response = server.chat(tools=[NOW, UNFOLLOWED], temperature=0, **form(PERSON))
    assert response.headers["X-Loose-Tools"] == "odd"
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "odd", "arguments": '{"a": 1}'}
    monkeypatch.setattr("minicpm4.engine.calls.MAX_CALL_CHARS", 100)
    refused = server.chat(tools=TOOLS, **form(PERSON))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
    assert server.chat(tools=TOOLS, temperature=0).status_code == 200
