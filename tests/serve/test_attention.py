"""How requests attend, as a client says it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from minicpm4 import AsyncLLM
from minicpm4.serve.app import create_app
from minicpm4.serve.settings import ServeSettings
from tests.asgi import client_of
from tests.engine.conftest import SPARSE
from tests.fixtures.random_checkpoint import make_checkpoint
from tests.serve.conftest import CHAT, HELLO

ASKED = {"prompt": "x" * 150, "max_tokens": 3, "temperature": 0, "ignore_eos": True}


def ask(checkpoint: Path, bodies: list[dict[str, Any]], **options: Any) -> tuple[Any, list[httpx.Response]]:
    """``/props``, and what is answered to completions, of a server over the model."""

    async def run() -> Any:
        async with (
            AsyncLLM(checkpoint, threads=1, **options) as llm,
            client_of(create_app(llm, ServeSettings(page=None))) as client,
        ):
            props = (await client.get("/props")).json()
            return props, [await client.post("/v1/completions", json=body) for body in bodies]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def test_a_request_chooses_among_what_props_name(checkpoint: Path) -> None:
    bodies = [{**ASKED, **more} for more in ({}, {"attention": "dense"}, {"attention": "sparse"})]
    props, replies = ask(checkpoint, bodies, sparse={**SPARSE, "dense_len": 300})
    assert props["attention"] == {"default": "auto", "options": ["auto", "dense", "sparse"]}
    assert [one.json()["timings"]["attention"] for one in replies] == ["dense", "dense", "sparse"]


def test_where_there_is_no_choice_none_is_offered_and_none_taken(checkpoint: Path) -> None:
    bodies = [{**ASKED, "attention": way} for way in ("dense", "sparse", "some")]
    scored = {**ASKED, "attention": "dense", "echo": True, "logprobs": 1}
    props, (dense, *refused) = ask(checkpoint, [*bodies, scored], attention="dense")
    assert props["attention"] == {"default": "dense", "options": []} and dense.status_code == 200
    for reply in refused:
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "attention"


def test_chats_take_it_too(serve: Any) -> None:
    server = serve("a")
    assert server.chat(attention="dense").status_code == 200 and server.engine.params[0].attention == "dense"
    error = server.post(CHAT, messages=HELLO, attention="sparse").json()["error"]
    assert error["param"] == "attention" and "loaded with dense attention" in error["message"]
