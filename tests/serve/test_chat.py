"""``/v1/chat/completions`` over a scripted engine: shapes, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from typing import Any

import pytest

from minicpm4.engine.outputs import Prefilled
from tests.serve.conftest import events, joined_calls
from tests.waiting import PATIENCE

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
    }
]


def joined(chunks: list[Any], key: str) -> str:
    return "".join(c["delta"].get(key) or "" for chunk in chunks for c in chunk["choices"])


def test_an_answer_has_the_form_that_clients_read(serve: Any) -> None:
    server = serve("Paris.")
    answer = server.chat(model="scripted").json()
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    prompt = len(server.llm.llm.chat_ids([{"role": "user", "content": "hello"}]))
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 7,  # the token that ends it counts
        "total_tokens": prompt + 7,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert answer["timings"]["prompt_n"] == prompt and answer["timings"]["predicted_n"] == 7
    assert "user\nhello\nassistant" in server.engine.prompts[0]


def test_cached_tokens_are_told(serve: Any) -> None:
    server = serve("a")
    long = [{"role": "user", "content": "x" * 200}]
    assert server.chat(messages=long).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    second = server.chat(messages=long, stream=True, stream_options={"include_usage": True})
    *_, before, last = events(second)
    assert last["choices"] == [] and last["usage"]["prompt_tokens_details"]["cached_tokens"] == 192
    assert before["timings"]["cache_n"] == 192 and before["choices"][0]["finish_reason"] == "stop"


def test_a_stream_says_the_same_as_a_whole_answer(serve: Any) -> None:
    text = "<think>\nLet me see 你好.\n</think>\n\nIt is naïve."
    whole = serve(text).chat().json()["choices"][0]["message"]
    response = serve(text).chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert joined(chunks, "content") == whole["content"] == "It is naïve."
    assert joined(chunks, "reasoning_content") == whole["reasoning_content"] == "Let me see 你好."
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools(serve: Any, stream: bool) -> None:
    response = serve(f"Let me look.\n{CALL}\n{CALL}").chat(tools=TOOLS, stream=stream)
    if stream:
        chunks = events(response)
        calls = joined_calls(chunks)
        content, reason = joined(chunks, "content"), chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        calls, content = choice["message"]["tool_calls"], choice["message"]["content"]
        reason = choice["finish_reason"]
    assert content == "Let me look." and reason == "tool_calls"
    assert [call["function"]["name"] for call in calls] == ["weather", "weather"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Paris"}
    assert len({call["id"] for call in calls}) == 2 and all(call["type"] == "function" for call in calls)


def test_calls_are_read_only_where_tools_are_offered(serve: Any) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = serve(CALL).chat(**more).json()["choices"][0]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def test_one_call_where_only_one_is_wanted(serve: Any) -> None:
    message = (
        serve(f"{CALL}\n{CALL}").chat(tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]["message"]
    )
    assert len(message["tool_calls"]) == 1 and message["content"] is None


def test_several_samples(serve: Any) -> None:
    server = serve("yes")
    assert [c["message"]["content"] for c in server.chat(n=3).json()["choices"]] == ["yes"] * 3
    chunks = events(server.chat(n=3, stream=True))
    ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(ends) == [0, 1, 2] and joined(chunks, "content") == "yyyeeesss"


def test_log_probabilities(serve: Any) -> None:
    body = {"logprobs": True, "top_logprobs": 2, "temperature": 0}
    whole = serve("né").chat(**body).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in whole] == ["n", "\ufffd", "\ufffd"]
    assert whole[1]["bytes"] == [0xC3] and whole[0]["logprob"] == pytest.approx(0)
    assert [len(entry["top_logprobs"]) for entry in whole] == [2, 2, 2]
    chunks = events(serve("né").chat(stream=True, **body))
    parts = [c["logprobs"]["content"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    assert [entry for part in parts for entry in part] == whole


def test_settings_reach_the_engine(serve: Any) -> None:
    server = serve("abcdef")
    body = {
        "seed": 7,
        "stop": ["d"],
        "logit_bias": {"65": -100, "66": 2.5},
        "max_completion_tokens": 9,
        "top_k": 5,
    }
    choice = server.chat(**body, temperature=0.5).json()["choices"][0]
    assert choice["message"]["content"] == "abc" and choice["finish_reason"] == "stop"
    params = server.engine.params[0]
    assert (params.seed, params.stop, params.max_tokens, params.top_k) == (7, ("d",), 9, 5)
    assert params.logit_bias == {65: float("-inf"), 66: 2.5} and params.temperature == 0.5
    server.chat()
    assert server.engine.params[1].max_tokens is None  # up to the context, not cut at a number of ours
    assert server.chat(max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_progress_of_reading(serve: Any) -> None:
    server = serve("a", engine={"max_rows": 64})
    long = [{"role": "user", "content": "x" * 200}]
    chunks = events(server.chat(messages=long, stream=True, return_progress=True))
    read = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert [one["processed"] for one in read][:4] == [0, 64, 128, 192]
    assert read[-1]["processed"] == read[-1]["total"] and joined(chunks, "content") == "a"
    again = events(server.chat(messages=long, stream=True, return_progress=True))
    read = [chunk["prompt_progress"] for chunk in again if "prompt_progress" in chunk]
    assert [(one["cache"], one["processed"]) for one in read] == [(192, 192), (192, read[0]["total"])]


def test_the_first_progress_does_not_wait_for_the_first_chunk(serve: Any) -> None:
    """It came after 512 tokens had been read; to a browser nothing seemed to happen."""
    release = threading.Event()
    server = serve(lambda prompt: ["a"])
    execute = server.engine._runner.execute

    def slow(plan: Any) -> Any:
        assert release.wait(PATIENCE)
        return execute(plan)

    server.engine._runner.execute = slow

    async def run() -> None:
        told: list[Prefilled] = []
        async with aclosing(server.llm.stream([1] * 9, read=told.append)) as pieces:
            first = asyncio.ensure_future(anext(pieces))
            while not told:
                await asyncio.sleep(0.005)
            release.set()
            await first
        assert told[0].done == 0 and told[0].total == 9

    asyncio.run(run())


def test_models_and_health(serve: Any) -> None:
    server = serve(names=("small", "other"))
    listed = server.ask("GET", "/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["small", "other"] and listed["data"][0][
        "max_model_len"
    ] == 4096
    assert server.chat(model="other").json()["model"] == "small"
    assert server.ask("GET", "/health").json() == {"status": "ok"}
    assert (
        'minicpm4_http_requests_total{path="/health",status="200"} 1.0' in server.ask("GET", "/metrics").text
    )
