"""How many of an answer's tokens were thought, in the field of each API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.conftest import CHAT, HELLO, events

THOUGHT = "<think>\nso\n</think>"  # a token is a byte here
PLACES = {
    CHAT: ({"messages": HELLO}, ("completion_tokens_details", "reasoning_tokens")),
    "/v1/responses": ({"input": "hello"}, ("output_tokens_details", "reasoning_tokens")),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 500}, ("output_tokens_details", "thinking_tokens")),
}
ANSWERS = {
    "thought": (f"{THOUGHT}\n\nParis.", len(THOUGHT)),
    "none": ("Paris <think>", 0),
    "cut off": ("<think>\nand so", len("<think>\nand so")),
    "empty": ("<think>\n\n</think>\n\nParis.", len("<think>\n\n</think>")),
}


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("name", ANSWERS)
def test_tokens_of_a_thought_are_counted(serve: Any, path: str, name: str) -> None:
    body, (details, field) = PLACES[path]
    answer, thought = ANSWERS[name]
    more = {"max_tokens" if path != "/v1/responses" else "max_output_tokens": len(answer)}
    if name != "cut off":
        more = {}
    usage = serve(answer).post(path, **{**body, **more}).json()["usage"]
    assert usage[details][field] == thought


def test_they_are_counted_over_all_samples_and_told_in_a_stream(serve: Any) -> None:
    server = serve(f"{THOUGHT}\n\nParis.")
    options = {"include_usage": True}
    chunks = events(server.chat(n=2, temperature=0, stream=True, stream_options=options))
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2 * len(THOUGHT)}
