"""What is wrong is said in one form, with the field's path; nothing that a client sends is a 5xx."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from minicpm4.errors import EngineError, RequestError
from tests.serve.conftest import CHAT, HELLO, events

WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 10**299}, "n"),
    ({"seed": "x"}, "seed"),
    ({"seed": 1 << 64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"model": 5}, "model"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters"),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"functions": []}, "functions"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {}}, "response_format.type"),
    ({"enable_thinking": 1}, "enable_thinking"),
    ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"trust_content": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(body)[:60] for body, _ in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_a_400_with_its_path(serve: Any, body: Any, param: str, stream: bool) -> None:
    table = {"messages": HELLO, **({"stream": True} if stream else {}), **body}
    content = json.dumps(table)
    response = serve().ask("POST", CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"messages": [',
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe\x00",
        b'{"messages": NaN}',
        b'{"temperature": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"n": ' + b"9" * 5_000 + b"}",
        b'{"seed": 1' + b"0" * 399 + b', "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"chat_template_kwargs": {"a": [-1e999]}, "messages": [{"role": "user", "content": "x"}]}',
    ],
    ids=range(15),
)
def test_hostile_bodies_are_400(serve: Any, content: bytes) -> None:
    response = serve().ask("POST", CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(serve: Any) -> None:
    server = serve(engine={"context": 256})
    response = server.chat(messages=[{"role": "user", "content": "x" * 300}])
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    tokens = len(server.llm.llm.chat_ids([{"role": "user", "content": "x" * 300}]))
    assert f"{tokens:,} tokens" in error["message"] and "256" in error["message"]
    assert error["param"] == "messages" and server.engine.prompts == []


def test_unknown_fields_are_named_in_a_header(serve: Any) -> None:
    response = serve().chat(temprature=1, stream_options={"incl": 1}, **{"ümlaut\n": 2})
    assert response.status_code == 200
    assert response.headers["x-unknown-fields"] == "temprature, \\xfcmlaut?, stream_options.incl"
    assert "x-unknown-fields" not in serve().chat().headers
    assert serve().chat(temprature=1, stream=True).headers["x-unknown-fields"] == "temprature"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods(serve: Any, method: str, path: str, status: int, code: str) -> None:
    response = serve().ask(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_an_unknown_model_is_named(serve: Any) -> None:
    response = serve().chat(model="gpt-5")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


def test_other_bodies(serve: Any) -> None:
    server = serve(max_body=2048)
    plain = {"headers": {"content-type": "text/plain"}, "content": "{}"}
    assert server.ask("POST", CHAT, **plain).status_code == 415
    long = server.chat(messages=[{"role": "user", "content": "x" * 3000}])
    assert long.status_code == 413 and "2,048" in long.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [(RequestError("not this"), 400), (EngineError("torn"), 503), (OSError("disk"), 503)],
)
def test_failures_beneath(serve: Any, failure: Exception, status: int) -> None:
    response = serve([failure]).chat()
    assert response.status_code == status and response.json()["error"]["message"]
    *_, last = events(serve(["half", failure]).chat(stream=True))
    assert last["error"]["message"] == response.json()["error"]["message"]


def test_a_role_that_nobody_knows_is_refused_by_its_place(serve: Any) -> None:
    server = serve()
    error = server.chat(messages=[*HELLO, {"role": "bot", "content": "x"}]).json()["error"]
    assert error["param"] == "messages[1].role" and "'bot'" in error["message"]
    assert server.chat(messages=[{"role": "developer", "content": "x"}, *HELLO]).status_code == 200
    own = "{% for m in messages %}{% if m.role == 'bot' %}B{% endif %}{{ m.content }}{% endfor %}"
    known = serve(engine={"chat_template": own})
    assert known.chat(messages=[*HELLO, {"role": "bot", "content": "x"}]).status_code == 200


def test_two_limits_that_differ_are_refused(serve: Any) -> None:
    server = serve()
    error = server.chat(max_tokens=4, max_completion_tokens=6).json()["error"]
    assert error["param"] == "max_tokens" and "max_completion_tokens = 6" in error["message"]
    assert server.chat(max_tokens=4, max_completion_tokens=4).status_code == 200


def test_a_model_is_told_of_by_any_of_its_names(serve: Any) -> None:
    server = serve(names=("mine", "org/model"))
    for name in ("mine", "org/model"):
        told = server.ask("GET", f"/v1/models/{name}").json()
        assert (told["id"], told["object"]) == ("mine", "model")
    told = server.ask("GET", "/v1/models/org/model", headers={"anthropic-version": "x"}).json()
    assert told["type"] == "model"
    missing = server.ask("GET", "/v1/models/other")
    assert 'path="/v1/models",status="404"' in server.ask("GET", "/metrics").text
    assert missing.status_code == 404 and "mine, org/model" in missing.json()["error"]["message"]
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["模型", "café"])
def test_a_model_is_named_in_any_script(serve: Any, name: str) -> None:
    assert serve(names=(name,)).ask("GET", f"/props?model={quote(name)}").status_code == 200


def test_a_variable_that_is_none_of_the_template_s_is_named(serve: Any) -> None:
    response = serve().chat(chat_template_kwargs={"messages": 1})
    assert response.status_code == 400 and response.json()["error"]["param"] == "chat_template_kwargs"


def test_a_template_that_shows_no_tools_is_told_of(serve: Any) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    response = serve(engine={"chat_template": plain}).chat(tools=[tool], user="x")
    assert "tools" in response.headers["X-Ignored-Fields"].split(", ")
    shown = plain + "{% if tools %}{{ tools | tojson }}{% endif %}"
    response = serve(engine={"chat_template": shown}).chat(tools=[tool])
    assert "tools" not in response.headers.get("X-Ignored-Fields", "")


def test_a_text_that_is_too_long_is_called_one(serve: Any) -> None:
    response = serve(engine={"context": 64}).post("/v1/embeddings", input="x" * 100)
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "the text has 101 tokens, the context is 64" in error["message"]
