"""Bodies of requests: every endpoint answers them, with an error of the client's where they are wrong."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import httpx

from minicpm4 import AsyncLLM
from minicpm4.serve.app import Server, create_app
from minicpm4.serve.settings import ServeSettings
from minicpm4.testing import ScriptedEngine
from tests.asgi import client_of
from tests.fuzz.mutate import mutated_json
from tests.fuzz.reader import Reader

_USER = [{"role": "user", "content": "a"}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}, "required": ["a"]}
_FUNCTION = {"name": "f", "description": "d", "parameters": _SCHEMA, "strict": True}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "scripted",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            *_USER,
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "r"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}},
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x"],
        "n": 2,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "stream": False,
        "stream_options": {"include_usage": True},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    },
    "/v1/completions": {
        "model": "scripted",
        "prompt": ["a", "b"],
        "max_tokens": 2,
        "echo": True,
        "logprobs": 1,
    }
    | {"suffix": None, "best_of": 1, "stop": "x", "stream": False, "n": 1},
    "/v1/embeddings": {"model": "scripted", "input": ["a"], "encoding_format": "float", "dimensions": None},
    "/v1/responses": {
        "model": "scripted",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        "instructions": "i",
        "tools": [{"type": "function", **_FUNCTION}],
        "max_output_tokens": 16,
        "text": {"format": {"type": "json_schema", "name": "s", "schema": _SCHEMA}},
        "reasoning": {"effort": "low"},
        "store": False,
        "stream": False,
    },
    "/v1/messages": {
        "model": "scripted",
        "max_tokens": 3,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            *_USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["x"],
        "stream": False,
    },
    "/v1/messages/count_tokens": {"model": "scripted", "messages": _USER, "tools": []},
}


@cache
def _server() -> Server:
    engine = ScriptedEngine(lambda prompt: "ok")
    return create_app(AsyncLLM.over(engine, engine.text, name="scripted"), ServeSettings(page=None))


def _draw(rng: Random) -> bytes:
    path = rng.choice(list(_BODIES))
    body = dict(_BODIES[path])
    for name in list(body):  # else one field's error hides the others
        if name not in ("model", "messages", "input", "prompt", "max_tokens") and rng.random() < 0.6:
            del body[name]
    return path.encode() + b"\n" + mutated_json(rng, body)


def _read(case: bytes, folder: Path) -> None:
    path, _, body = case.partition(b"\n")

    async def ask() -> httpx.Response:
        async with client_of(_server(), timeout=50) as client:
            head = {"content-type": "application/json", "x-api-key": "x", "anthropic-version": "2023-06-01"}
            return await client.post(path.decode(), content=body, headers=head)

    answer = asyncio.run(ask())
    # 501: a scripted engine has no embeddings.
    assert answer.status_code < 500 or answer.status_code == 501, f"{answer.status_code}: {answer.text[:300]}"
    assert answer.status_code == 200 or len(answer.content) < 3000, f"an error of {len(answer.content)} bytes"
    if "json" in answer.headers.get("content-type", ""):
        json.loads(answer.content)


READERS = [Reader(name="bodies", draw=_draw, read=_read)]
