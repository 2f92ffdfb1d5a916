"""What Open WebUI asks of an OpenAI-compatible server, as requests: the application itself is too big here.

After its ``routers/openai.py``, ``routers/tasks.py``, ``utils/payload.py`` and ``retrieval/utils.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.processes import Running, scripted, small
from tests.waiting import until

KEY = "a-key-of-some-length"
HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "8d967d73-99b8-40ff-ac3b-c71ac19f6286",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "admin",
}
# All that its settings of a chat send, at once.
ADVANCED = {
    "temperature": 0,
    "top_p": 0.9,
    "min_p": 0.0,
    "max_tokens": 128,
    "frequency_penalty": 0.5,
    "presence_penalty": 0,
    "reasoning_effort": "medium",
    "seed": 1,
    "stop": ["<stop>", "###"],
    "logit_bias": {"5": -100, "7": 10},
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        scripted(api_keys=[KEY]) as server,
        httpx.Client(base_url=f"{server.address}/v1", headers=HEADERS, timeout=60) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with small("--name", "small") as running:
        yield running


def say(text: str) -> str:
    return f"### Task:\nsay: {json.dumps(text)}"


def test_a_connection_is_verified_by_the_models(client: httpx.Client) -> None:
    (model,) = client.get("/models").json()["data"]
    assert model["id"] == "scripted" and model["owned_by"] != "ollama"
    wrong = client.get("/models", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401 and wrong.json()["error"]["message"]


def test_a_chat_with_all_its_settings(client: httpx.Client) -> None:
    """Reasoning is shown folded, usage under the answer; the last words of a stream are waited for."""
    messages = [
        {"role": "system", "content": "You are Ada's assistant."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": say("<think>so</think>Bonjour 你好")}]},
    ]
    body = {"model": "scripted", "messages": messages, "stream": True, **ADVANCED}
    body["stream_options"] = {"include_usage": True}
    with client.stream("POST", "/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "x-unknown-fields" not in response.headers
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Bonjour 你好"
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "so"
    assert chunks[-1]["usage"]["completion_tokens"] > 8


@pytest.mark.parametrize("said", ['{"title": "A river"}', '{"tags": ["Water", "Nature"]}'])
def test_titles_and_tags(client: httpx.Client, said: str) -> None:
    """One message, whole, with max_completion_tokens: JSON is looked for in the answer."""
    for length in ({"max_completion_tokens": 1000}, {}):
        body = {"model": "scripted", "messages": [{"role": "user", "content": say(said)}], "stream": False}
        answer = client.post("/chat/completions", json={**body, **length}).json()
        assert answer["choices"][0]["message"]["content"] == said


def test_its_native_tools(client: httpx.Client) -> None:
    """Calls come in a stream; their results go back with the text that was said before."""
    call = '<tool_call>{"name": "search_web", "arguments": {"query": "Rhine"}}</tool_call>'
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    function = {"name": "search_web", "description": "Search.", "parameters": parameters}
    body: dict[str, Any] = {"model": "scripted", "tools": [{"type": "function", "function": function}]}
    body |= {"messages": [{"role": "user", "content": say(f"I look. {call}")}], "stream": True}
    calls: dict[int, Any] = {}
    with client.stream("POST", "/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for delta in json.loads(line[6:])["choices"][0]["delta"].get("tool_calls", ()):
                    known = calls.setdefault(delta["index"], delta)
                    if known is not delta:
                        known["function"]["arguments"] += delta["function"]["arguments"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"query": "Rhine"}
    body["messages"] += [
        {"role": "assistant", "content": "I look.", "tool_calls": [calls[0]]},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": say("It is 1,233 km long.")},
    ]
    answer = client.post("/chat/completions", json={**body, "stream": False}).json()
    assert answer["choices"][0]["message"]["content"] == "It is 1,233 km long."


def test_embeddings_of_documents_come_in_batches(server: Running) -> None:
    texts = [f"Chunk {i} of a document about rivers." for i in range(40)]
    body = {"input": texts, "model": "small"}
    data = server.http.post("/v1/embeddings", json=body, headers={"Authorization": "Bearer none"}).json()[
        "data"
    ]
    vectors = [one["embedding"] for one in data]
    assert len(vectors) == 40 and {len(vector) for vector in vectors} == {576}
    (alone,) = server.http.post("/v1/embeddings", json={**body, "input": texts[7:8]}).json()["data"]
    # Kernels that round to 16 bits do so for many rows and not for few.
    assert alone["embedding"] == pytest.approx(vectors[7], abs=3e-3)


def test_stop_closes_the_connection(server: Running) -> None:
    """And the next question is answered at once."""
    asked = [{"role": "user", "content": "Write a very long story about a river."}]
    body = {"model": "small", "messages": asked, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        for _, line in zip(range(9), response.iter_lines(), strict=False):
            assert line == "" or line.startswith("data: {")
    until(lambda: server.metric("minicpm4_pages_held") == 0 == server.metric("minicpm4_requests"))
    body |= {"stream": False, "max_tokens": 2}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
