"""``/v1/messages``: what is wrong, and who may ask, in Anthropic's form."""

from __future__ import annotations

from typing import Any

import pytest

from minicpm4.errors import EngineError
from tests.serve.test_anthropic import HELLO, MESSAGES, TOOLS, VERSION, ask, events

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0]"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": ""}]}
            ]
        },
        "messages[0].content[0].tool_use_id",
    ),
    (
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]},
            ]
        },
        "messages[1].content[0].input",
    ),
    ({"messages": [*HELLO, {"role": "assistant", "content": "The answer is"}]}, "messages[1]"),
    ({"system": [{"type": "image"}]}, "system[0]"),
    ({"system": 5}, "system"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type"),
    (
        {
            "tools": [{"name": "f", "input_schema": {"type": "string", "pattern": "("}}],
            "tool_choice": {"type": "any"},
        },
        "tools",
    ),
    ({"thinking": {"type": "hard"}}, "thinking.type"),
    ({"temperature": -1}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
]


@pytest.mark.parametrize(("body", "named"), WRONG, ids=[str(body)[:70] for body, _ in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_anthropics_form(serve: Any, body: Any, named: str, stream: bool) -> None:
    table = {"messages": HELLO, "max_tokens": 9, "stream": stream, **body}
    response = serve().post(MESSAGES, **{name: value for name, value in table.items() if value is not None})
    assert response.status_code == 400, response.text
    told = response.json()
    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert named in told["error"]["message"]


def test_errors_have_anthropics_kinds(serve: Any) -> None:
    def kind(response: Any, status: int) -> str:
        assert response.status_code == status
        return str(response.json()["error"]["type"])

    assert kind(ask(serve(), model="claude"), 404) == "not_found_error"
    closed = serve(api_keys=("abcdefgh",))
    assert kind(ask(closed), 401) == "authentication_error"
    assert kind(closed.ask("GET", "/v1/models", headers=VERSION), 401) == "authentication_error"
    assert kind(serve().ask("GET", MESSAGES), 405) == "invalid_request_error"
    assert kind(serve().ask("GET", "/v1/nothing", headers=VERSION), 404) == "not_found_error"
    assert kind(serve(max_body=1024).post(MESSAGES, x="x" * 2000), 413) == "request_too_large"
    assert kind(ask(serve([EngineError("torn")])), 503) == "overloaded_error"
    long = ask(serve(engine={"context": 256}), messages=[{"role": "user", "content": "x" * 300}])
    assert kind(long, 400) == "invalid_request_error" and "256" in long.json()["error"]["message"]
    *_, last = events(ask(serve(["half", EngineError("torn")]), stream=True))
    assert last == {"type": "error", "error": {"type": "overloaded_error", "message": "torn"}}


def test_keys_of_both_kinds(serve: Any) -> None:
    server = serve(api_keys=("abcdefgh",))
    body = {"messages": HELLO, "max_tokens": 5}
    for headers in ({"x-api-key": "abcdefgh"}, {"Authorization": "Bearer abcdefgh"}):
        assert server.ask("POST", MESSAGES, json=body, headers=headers).status_code == 200
