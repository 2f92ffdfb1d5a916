"""``minicpm4 serve`` with a real model: its text, clients that go, hostile ones, and its end."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.serve.processes import PATIENCE, ROOT, Running, small
from tests.waiting import until

CHAT = "/v1/chat/completions"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
LONG = [{"role": "user", "content": "Write a very long story about a river."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with small("--max-batch", "4", "--max-waiting", "4") as running:
        yield running


def test_it_answers_and_streams_the_same(server: Running) -> None:
    body = {"messages": FRANCE, "max_tokens": 24, "temperature": 0}
    whole = server.http.post(CHAT, json=body).json()
    assert "Paris" in whole["choices"][0]["message"]["content"]
    text = server.http.post(CHAT, json={**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    assert said == whole["choices"][0]["message"]["content"]


def test_the_snippet_of_the_page_runs(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(code.replace("http://127.0.0.1:8000", server.address), "server.md", "exec"), {})  # noqa: S102
    assert "Paris" in capsys.readouterr().out


def test_texts_of_one_kind_are_nearer(server: Running) -> None:
    texts = ["A cat sat on a mat.", "The cat is sitting on the mat.", "Interest rates rose by two percent."]
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        data = client.embeddings.create(model="smollm2-135m-instruct", input=texts).data
    cat, sitting, rates = (np.array(one.embedding) for one in data)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ sitting > cat @ rates


def test_a_prompt_read_before_comes_from_the_cache(server: Running) -> None:
    text = {"role": "user", "content": "The river runs to the sea. " * 40 + "Where does it run?"}
    body = {"messages": [text], "max_tokens": 1}
    first, _, second = (
        server.http.post(CHAT, json=one).json()["usage"]
        for one in (body, {"messages": FRANCE, "max_tokens": 1}, body)
    )
    assert first["prompt_tokens_details"]["cached_tokens"] < 64
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert cached >= second["prompt_tokens"] // 64 * 64 - 64


def test_scores_are_those_of_the_text(server: Running) -> None:
    """As lm-evaluation-harness asks: the right end is likelier than a wrong one."""
    told = server.http.post(
        "/tokenize", json={"prompt": "The capital of France is", "add_special_tokens": False}
    )
    begin = told.json()["tokens"]
    likely = {}
    for end in (" Paris", " purple"):
        ids = server.http.post("/tokenize", json={"prompt": end, "add_special_tokens": False}).json()[
            "tokens"
        ]
        body = {
            "prompt": [begin + ids],
            "max_tokens": 1,
            "logprobs": 1,
            "echo": True,
            "temperature": 0,
            "seed": 1,
        }
        (choice,) = server.http.post("/v1/completions", json=body).json()["choices"]
        logprobs = choice["logprobs"]["token_logprobs"][len(begin) : -1]
        assert len(logprobs) == len(ids)
        likely[end] = sum(logprobs)
    assert likely[" Paris"] > likely[" purple"] + 1


def test_a_forced_call_is_valid(server: Running) -> None:
    kinds = {"type": "string", "enum": ["celsius", "kelvin"]}
    parameters = {
        "type": "object",
        "properties": {"unit": kinds},
        "required": ["unit"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "temperature", "parameters": parameters}}]
    body = {
        "messages": FRANCE,
        "tools": tools,
        "tool_choice": "required",
        "temperature": 1,
        "seed": 3,
        "n": 2,
    }
    for choice in server.http.post(CHAT, json=body).json()["choices"]:
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "temperature"
        assert json.loads(call["function"]["arguments"])["unit"] in ("celsius", "kelvin")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_pages(server: Running, stream: bool) -> None:
    address = httpx.URL(server.address)
    body = json.dumps({"messages": LONG, "stream": stream, "ignore_eos": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.host, address.port)) as raw:
        raw.sendall(head.encode() + body)
        until(lambda: server.metric("minicpm4_pages_held") > 0)
    until(lambda: server.metric("minicpm4_pages_held") == 0)
    until(lambda: server.metric("minicpm4_requests") == 0)  # it goes after its pages


def test_more_than_it_takes_is_refused_and_the_rest_answered(server: Running) -> None:
    body = {"messages": LONG, "max_tokens": 40, "ignore_eos": True}
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda _: httpx.post(f"{server.address}{CHAT}", json=body, timeout=PATIENCE), range(16))
        )
    refused = [one for one in answers if one.status_code == 429]
    assert refused and all(int(one.headers["retry-after"]) >= 1 for one in refused)
    done = [one for one in answers if one.status_code == 200]
    assert len(done) >= 8 and len(done) + len(refused) == 16
    assert all(one.json()["usage"]["completion_tokens"] == 40 for one in done)


def hostile_bodies() -> list[str]:
    """A good one cut anywhere, and with odd values in the place of its own: not of the bound of tokens, what
    is open would be answered at length."""
    rng = random.Random(7)
    body = json.dumps({"messages": FRANCE, "max_tokens": 1, "temperature": 0.5, "stop": ["x"], "n": 1})
    odd = ["NaN", "1e999", "-1", "9" * 400, '"\\ud800"', "null", "[]", "{}", "[[[[1]]]]", "true"]
    odd.append('"' + "x" * 99999 + '"')
    made = [body[: rng.randrange(len(body))] for _ in range(60)]
    parts = ["0.5", '"n": 1', '"x"', '"user"', '["x"]', '"messages"', '"What is the capital of France?"']
    return made + [body.replace(rng.choice(parts), rng.choice(odd), 1) for _ in range(140)]


def test_hostile_requests_are_never_our_fault(server: Running) -> None:
    """An answer or a 4xx, and the server as before."""
    headers = {"content-type": "application/json"}
    codes = set()
    for i, text in enumerate(hostile_bodies()):
        path = ("/v1/completions", CHAT, CHAT, "/tokenize", "/detokenize")[i % 5]
        response = server.http.post(path, content=text.encode(), headers=headers)
        codes.add(response.status_code)
        assert response.status_code in (200, 400, 404, 413), (path, text[:300], response.text[:300])
    assert codes >= {200, 400}
    until(lambda: server.metric("minicpm4_pages_held") == 0)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_it_finishes_what_is_under_way_when_told_to_end(told: signal.Signals) -> None:
    with small("--drain", str(PATIENCE)) as running:
        body = {"messages": LONG, "max_tokens": 120, "ignore_eos": True, "stream": True}
        got: list[str] = []
        flowing = threading.Event()

        def read() -> None:
            with httpx.stream("POST", f"{running.address}{CHAT}", json=body, timeout=PATIENCE) as response:
                for line in response.iter_lines():
                    got.append(line)
                    flowing.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert flowing.wait(PATIENCE)
        running.process.send_signal(told)
        refused: Any = None
        until(lambda: running.http.get("/health").status_code == 503)
        refused = running.http.post(CHAT, json={"messages": FRANCE})
        assert refused.status_code == 503 and "retry-after" in refused.headers
        thread.join(PATIENCE)
        ends = [json.loads(line[6:]) for line in got if line.startswith("data: {")]
        assert got[-2] == "data: [DONE]" and ends[-1]["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(PATIENCE) == 0
