"""A long prompt that comes again is not read again, whatever was asked between."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from minicpm4 import AsyncLLM, zoo
from minicpm4.errors import ModelNotFoundError
from minicpm4.serve.app import create_app
from minicpm4.serve.settings import ServeSettings
from tests.asgi import client_of

pytestmark = pytest.mark.models

NAME = "qwen2.5-coder-0.5b-instruct"
TEXT = Path(__file__).parents[2] / "examples" / "how_sqlite_is_tested.txt"
TOKENS = 16_000


async def usages() -> list[dict[str, Any]]:
    """Of three chats: a long one, another, the long one again."""
    async with AsyncLLM(NAME, context=TOKENS + 2000, max_batch=2, fair=True) as llm:
        words = TEXT.read_text(encoding="utf-8").split()
        drawn = random.Random(0).choices(words, k=TOKENS)
        long = llm.llm.tokenizer.decode(llm.llm.tokenizer.encode(" ".join(drawn))[:TOKENS])
        async with client_of(create_app(llm, ServeSettings(page=None)), timeout=1800) as client:
            found = []
            for text in (long, "What is the capital of France?", long):
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
                found.append((await client.post("/v1/chat/completions", json=body)).json()["usage"])
    return found


def test_the_second_of_two_equal_prompts_comes_from_the_cache() -> None:
    try:
        zoo.resolve(NAME)
    except ModelNotFoundError:
        pytest.skip(f"{NAME} is not here: make models fetches it")
    first, _, again = asyncio.run(usages())
    assert first["prompt_tokens"] >= TOKENS and first["prompt_tokens_details"]["cached_tokens"] < 64
    assert again["prompt_tokens_details"]["cached_tokens"] >= 0.99 * again["prompt_tokens"]
